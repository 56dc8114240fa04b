"""What the Snakefile does about how it was started or imported, before it has any rules."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nullsae import __version__
from nullsae.config.read import BASE, merge, read_config, study_files
from nullsae.core.errors import UserError
from nullsae.core.files import FULL

# A job that is told to end keeps what it has first; its shell must not end before it.
GUARD = "set -euo pipefail; trap : TERM; "
# What the automation builds from envs/Dockerfile and pushes with each release.
IMAGE = "docker://ghcr.io/nullsae/nullsae"
# In a job of SLURM's, Snakemake runs twice beside the verb, as the job and as its step: 375 MB, of
# which 230 are of no other process.
SNAKEMAKE_MEGABYTES = 400
_NOT_SHARED = (
    "results/ must be one folder for all jobs; run on one machine, or on a cluster whose nodes "
    "share a file system (--profile profiles/slurm, docs/cluster.md)"
)


def config_files(workflow: Any) -> list[str]:
    """The configs that others are merged into, in their order.

    They are those of the working folder (`study_files`) that are not empty. A module has the
    checkout's, where the importer gives none: files of the working folder are the importer's.
    Snakemake would read each file without a look at what is given twice, and name none that it
    cannot read: so that ends here, in one line.
    """
    if workflow.modifier.is_main_snakefile():
        own = study_files(Path())
        try:
            held = [str(file) for file in own if read_config(file)]
            for file in map(Path, workflow.config_settings.configfiles):
                if file.is_file():  # and no pipe, which is empty by now
                    read_config(file)
        except UserError as error:
            sys.exit(str(error))
        return held
    checkout = workflow.current_basedir.get_path_or_uri(secret_free=True)
    return [str(Path(checkout, BASE))]


def image() -> str:
    """The container that all jobs run in under `--sdm apptainer`, and only there.

    It is this version's own, or what the environment names: an address, or a .sif file as seen from
    the study's folder. No config names it: an image is code.
    """
    return os.environ.get("NULLSAE_IMAGE") or f"{IMAGE}:{__version__}"


def check_start(workflow: Any, arguments: Sequence[str]) -> None:
    """Refuse what Snakemake takes and this workflow cannot do.

    Args:
        workflow: Snakemake's own.
        arguments: the command line.

    Raises:
        UserError: jobs would share no file system, or `--configfile` is given twice, or Snakemake
            cannot keep its records in the working folder.
    """
    if not workflow.is_main_process:
        return
    _check_records(Path.cwd())
    given = [a.partition("=")[0] for a in arguments]
    if sum(name in ("--configfile", "--configfiles") for name in given) > 1:
        raise UserError(
            "--configfile: given twice, but Snakemake reads only the last; "
            "write --configfile first.yaml second.yaml"
        )
    storage = workflow.storage_settings
    if storage.default_storage_provider is not None:
        where = f"--default-storage-provider {storage.default_storage_provider}"
        raise UserError(f"{where}: {_NOT_SHARED}")
    shared = {str(usage) for usage in storage.shared_fs_usage}
    if missing := [name for name in ("input-output", "sources") if name not in shared]:
        raise UserError(f"--shared-fs-usage: lacks {', '.join(missing)}; {_NOT_SHARED}")
    if (executor := _executor(arguments)) and _shares_nothing(executor):
        raise UserError(f"--executor {executor}: its jobs share no files; {_NOT_SHARED}")


def _check_records(folder: Path) -> None:
    """Refuse a folder in which Snakemake can keep no records, as it does even in a dry run."""
    for place in (folder / ".snakemake/locks", folder / ".snakemake", folder):
        if place.is_dir():
            if not os.access(place, os.W_OK):
                raise UserError(
                    f"{place}: not writable, and Snakemake keeps its records there, also of a dry "
                    f"run; copy the study elsewhere"
                )
            if not shutil.disk_usage(place).free:
                raise UserError(f"{place}: {FULL}")
            return


def check_places(dag: Any) -> None:
    """Refuse to start jobs that cannot write their outputs and logs. Called by `onstart`.

    Args:
        dag: Snakemake's own, worked out.

    Raises:
        UserError: names the first such place.
    """
    files = {str(file) for job in dag.needrun_jobs() for file in (*job.output, *job.log)}
    for folder in sorted({Path(file).parent for file in files}):
        place = next(p for p in (folder, *folder.parents) if p.is_dir())
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"{place}: not writable by this user, and jobs write there; have its owner change "
                f"that, or copy the study elsewhere"
            )


def megabytes_beside(arguments: Sequence[str]) -> int:
    """What Snakemake itself holds in each job's memory, which is none where jobs run here.

    Args:
        arguments: the command line.
    """
    here = (None, "local", "dryrun", "touch")
    return 0 if _executor(arguments) in here else SNAKEMAKE_MEGABYTES


def _executor(arguments: Sequence[str]) -> str | None:
    """The executor that the command line names, or else its profiles, the last one first."""
    if found := list(_values(arguments, "--executor", "-e")):
        return found[-1]
    from snakemake.cli import get_profile_dir

    profiles = [os.environ.get("SNAKEMAKE_PROFILE", "")]
    profiles += _values(arguments, "--profile", "--workflow-profile")
    for name in reversed(profiles):
        if name and name != "none" and (place := get_profile_dir(name)) is not None:
            try:
                profile = yaml.safe_load(place[1].read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue  # Snakemake has read it in its own way
            if isinstance(profile, dict) and profile.get("executor"):
                return str(profile["executor"])
    return None


def _values(arguments: Sequence[str], *names: str) -> Iterator[str]:
    """The values of an option, in the order in which they were given."""
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in names:
            yield value if equals else after


def _shares_nothing(executor: str) -> bool:
    from snakemake_interface_common.exceptions import InvalidPluginException
    from snakemake_interface_executor_plugins.registry import (  # type: ignore[import-untyped]
        ExecutorPluginRegistry,
    )

    try:
        plugin = ExecutorPluginRegistry().get_plugin(executor)
    except InvalidPluginException:
        return False
    return bool(plugin.common_settings.implies_no_shared_fs)


def typed_entries(entries: str | Iterable[str] | None) -> dict[str, Any]:
    """The lists and mappings of `--config name=value`, with numbers that are numbers.

    Snakemake reads all below the first level as text.
    """
    found: dict[str, Any] = {}
    for entry in [entries] if isinstance(entries, str) else entries or ():
        name, _, value = entry.partition("=")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            continue
        if isinstance(parsed, dict | list):
            found[name] = merge(found.get(name), parsed)
    return found


def with_typed_entries(workflow: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run, its `--config` read by `typed_entries`; a module's as it is."""
    if not workflow.modifier.is_main_snakefile():
        return dict(config)
    merged: dict[str, Any] = merge(config, typed_entries(workflow.config_settings.config_args))
    return merged


def take_absolute_targets(workflow: Any) -> None:
    """Let a target, or a file of `--forcerun` or `--until`, be named by its whole path.

    Snakemake compares paths as text, and rules name theirs from the working folder. It hands each
    file that the command line names to this function of a modifier, and has no other place for it.
    """
    if not workflow.modifier.is_main_snakefile():
        return
    modifier = workflow.modifier.path_modifier
    apply = modifier.apply_default_storage
    folder = Path.cwd()

    def from_here(path: Any) -> Any:
        if type(path) is str and path.startswith("/"):
            return apply(relative(path, folder))
        return apply(path)

    modifier.apply_default_storage = from_here


def relative(path: str, folder: Path) -> str:
    """A path as seen from a folder that holds it, however it is linked to; else as it is."""
    whole = Path(os.path.normpath(path))
    for parent in whole.parents:
        if parent == folder or parent.resolve() == folder:
            return str(whole.relative_to(parent))
    return path


def guard_shells(workflow: Any, shell: Any) -> None:
    """Give the shells of this workflow's rules, and of no importer's, what `GUARD` says.

    Called after all rules.
    """
    if workflow.modifier.is_main_snakefile():
        shell.prefix(GUARD)
        return
    for rule in workflow.modifier.rules:
        if rule.shellcmd is not None and not rule.shellcmd.startswith(GUARD):
            rule.shellcmd = GUARD + rule.shellcmd
