"""What the Snakefile does first: handle how it was started or imported."""

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

# A job that gets SIGTERM saves its progress first; its shell must not exit before it.
GUARD = "set -euo pipefail; trap : TERM; "
# CI builds it from envs/Dockerfile and pushes it with each release.
IMAGE = "docker://ghcr.io/nullsae/nullsae"
# In a SLURM job, Snakemake runs twice next to the verb, as the job and as its step: 375 MB, 230 of
# which are shared with no other process.
SNAKEMAKE_MEGABYTES = 400
_NOT_SHARED = (
    "results/ must be one folder for all jobs; run on one machine, or on a cluster whose nodes "
    "share a file system (--profile profiles/slurm, docs/cluster.md)"
)


def config_files(workflow: Any) -> list[str]:
    """Return the config files that others are merged into, in merge order.

    They are the non-empty ones of the working folder (`study_files`). A module has the checkout's,
    for an importer that gives none: files of the working folder belong to the importer. Snakemake
    would not notice a key that is given twice, nor name a file that it cannot read, so such files
    end the run here with one line.
    """
    if workflow.modifier.is_main_snakefile():
        own = study_files(Path())
        try:
            held = [str(file) for file in own if read_config(file)]
            for file in map(Path, workflow.config_settings.configfiles):
                if file.is_file():  # not a pipe, which is empty by now
                    read_config(file)
        except UserError as error:
            sys.exit(str(error))
        return held
    checkout = workflow.current_basedir.get_path_or_uri(secret_free=True)
    return [str(Path(checkout, BASE))]


def image() -> str:
    """Return the container in which jobs run under `--sdm apptainer`.

    It is this version's, or the one named by the environment: an address, or a .sif file relative
    to the study's folder. A config cannot name it, because an image is code.
    """
    return os.environ.get("NULLSAE_IMAGE") or f"{IMAGE}:{__version__}"


def check_start(workflow: Any, arguments: Sequence[str]) -> None:
    """Refuse options that Snakemake accepts but this workflow cannot support.

    Args:
        workflow: Snakemake's workflow object.
        arguments: the command line.

    Raises:
        UserError: jobs would share no file system, `--configfile` is given twice, or Snakemake
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
    """Refuse a folder where Snakemake cannot keep records, which it does even in a dry run."""
    for place in (folder / ".snakemake/locks", folder / ".snakemake", folder):
        if place.is_dir():
            if not os.access(place, os.W_OK):
                raise UserError(
                    f"{place}: not writable, but Snakemake keeps its records there, even in a dry "
                    f"run; copy the study elsewhere"
                )
            if not shutil.disk_usage(place).free:
                raise UserError(f"{place}: {FULL}")
            return


def check_places(dag: Any) -> None:
    """Refuse to start jobs that cannot write their outputs and logs. Called by `onstart`.

    Args:
        dag: Snakemake's resolved DAG.

    Raises:
        UserError: names the first such place.
    """
    files = {str(file) for job in dag.needrun_jobs() for file in (*job.output, *job.log)}
    for folder in sorted({Path(file).parent for file in files}):
        place = next(p for p in (folder, *folder.parents) if p.is_dir())
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"{place}: not writable by this user, but jobs write there; ask its owner to "
                f"change that, or copy the study elsewhere"
            )


def megabytes_beside(arguments: Sequence[str]) -> int:
    """Return the memory that Snakemake itself takes in each job: none if jobs run locally.

    Args:
        arguments: the command line.
    """
    here = (None, "local", "dryrun", "touch")
    return 0 if _executor(arguments) in here else SNAKEMAKE_MEGABYTES


def _executor(arguments: Sequence[str]) -> str | None:
    """Return the executor that the command line names, or else the last of its profiles."""
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
                continue  # Snakemake has already read it in its own way
            if isinstance(profile, dict) and profile.get("executor"):
                return str(profile["executor"])
    return None


def _values(arguments: Sequence[str], *names: str) -> Iterator[str]:
    """Yield the values of an option, in order."""
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
    """Parse the lists and mappings of `--config name=value` with typed numbers.

    Snakemake reads everything below the first level as text.
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
    """Return a run's config with `--config` read by `typed_entries`; a module's stays as it is."""
    if not workflow.modifier.is_main_snakefile():
        return dict(config)
    merged: dict[str, Any] = merge(config, typed_entries(workflow.config_settings.config_args))
    return merged


def take_absolute_targets(workflow: Any) -> None:
    """Allow absolute paths for targets and for files of `--forcerun` and `--until`.

    Snakemake compares paths as text, and rules have paths relative to the working folder. The
    modifier's `apply_default_storage` is the only hook that sees each file of the command line.
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
    """Return a path relative to a folder that contains it, through links too; else unchanged."""
    whole = Path(os.path.normpath(path))
    for parent in whole.parents:
        if parent == folder or parent.resolve() == folder:
            return str(whole.relative_to(parent))
    return path


def guard_shells(workflow: Any, shell: Any) -> None:
    """Put `GUARD` before the shell commands of this workflow's rules, and not of an importer's.

    Called after all rules.
    """
    if workflow.modifier.is_main_snakefile():
        shell.prefix(GUARD)
        return
    for rule in workflow.modifier.rules:
        if rule.shellcmd is not None and not rule.shellcmd.startswith(GUARD):
            rule.shellcmd = GUARD + rule.shellcmd
