"""Whether a profile for Snakemake's SLURM executor fits the cluster that it is to run on."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nullsae.core.errors import UserError, first_line
from nullsae.jobs.limits import Kind, limit

PLUGIN = "snakemake-executor-plugin-slurm"
# In the order in which Snakemake looks for them.
PROFILE_NAMES = ("profile.v9+.yaml", "profile.yaml", "config.v9+.yaml", "config.yaml")
QUERY_TIMEOUT_SECONDS = 30
# The plugin's, and how many of them a finished job must stay in the queue's memory.
INIT_SECONDS, POLLS_REMEMBERED = 40, 3
# Of the profile, where it does not say (`most` in workflow/rules/common.smk).
MAX_RUNTIME_MINUTES, MAX_MEGABYTES = 7 * 24 * 60, 256_000


@dataclass
class Partition:
    """A partition as SLURM knows it: the most that any of its nodes has."""

    up: bool
    runtime_minutes: float
    megabytes: int
    has_gpus: bool


def check_cluster(profile: Path) -> tuple[list[str], list[str]]:
    """Compare a profile, the folder named after `--profile` or its file, with the cluster.

    Returns:
        What is wrong, and what was found to fit: a line each. Nothing wrong: jobs can be sent.

    Raises:
        UserError: there is no SLURM, no plugin, or no profile that can be read.
    """
    files = [profile] if profile.is_file() else [profile / name for name in PROFILE_NAMES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"--profile: {profile}: no profile.yaml there")
    given = _mapping(file)
    # SLURM's own settings.
    lines = _ask("scontrol", "show", "config").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    config = {key.strip(): value.strip() for key, value in pairs}
    partitions = _partitions()
    if not importlib.util.find_spec(PLUGIN.replace("-", "_")):
        raise UserError(
            f"{PLUGIN}: not installed in this environment; pip install -r requirements-slurm.txt"
        )
    wrong = _wrong_status(file, given, config)
    names, limits_file, limits = _named_partitions(file, given)
    if not names:
        wrong.append(
            f"{file}: names no partition; give slurm_partition in default-resources, or "
            f"slurm-partition-config"
        )
    known = ", ".join(sorted(partitions))
    for name, where in names.items():
        if name not in partitions:
            wrong.append(f"{where}: no partition {name!r} on this cluster; it has {known}")
        elif not partitions[name].up:
            wrong.append(f"{where}: partition {name!r} is down or takes no jobs (sinfo -p {name})")
    usable = {name: partitions[name] for name in names if name in partitions}
    for name, own in limits.items():
        gpus = own.get("max_gpu", 0)
        if name in usable and gpus and not usable[name].has_gpus:
            wrong.append(
                f"{limits_file}: partitions.{name}.max_gpu: {gpus}, but no node of it has a GPU "
                f"(sinfo -p {name} -o %G)"
            )
    wrong += _wrong_limits(file, given, usable, limits)
    fits = []
    for name, found in usable.items():
        time = f"{found.runtime_minutes:,.0f} minutes"
        time = "no time limit" if found.runtime_minutes == float("inf") else time
        gpus = ", GPUs" if found.has_gpus else ""
        fits.append(f"{name}: {time}, {found.megabytes:,} MB{gpus}")
    if limits and not any(limit.get("max_gpu") for limit in limits.values()):
        fits.append("no partition takes jobs with a GPU: they need compute.device: cpu")
    return wrong, fits


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{file}: not readable as YAML ({text})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a YAML mapping")
    return content


def _defaults(given: dict[str, Any]) -> dict[str, Any]:
    """`default-resources`, which a profile may also write as `name=value`."""
    found = given.get("default-resources") or {}
    if isinstance(found, dict):
        return found
    return dict(str(item).split("=", 1) for item in found if "=" in str(item))


def _whole(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {value!r}; write a whole number") from None


def _ask(*command: str) -> str:
    """The output of a SLURM command."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{command[0]}: not found: no SLURM on this machine; run it on a login node of the "
            f"cluster, or without --profile profiles/slurm"
        )
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{' '.join(command)}: no answer from SLURM's controller in {QUERY_TIMEOUT_SECONDS} s"
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or first_line(error)
        raise UserError(f"{' '.join(command)}: {' '.join(said.split())}") from None
    return found.stdout


def _partitions() -> dict[str, Partition]:
    """What `sinfo` says of each partition, over the groups of like nodes that it lists."""
    found: dict[str, Partition] = {}
    for line in _ask("sinfo", "-h", "-o", "%R|%a|%l|%m|%G").splitlines():
        name, available, limit, megabytes, gres = line.split("|", 4)
        part = found.setdefault(name, Partition(False, 0.0, 0, False))
        part.up |= available == "up"
        part.runtime_minutes = max(part.runtime_minutes, _minutes(limit))
        part.megabytes = max(part.megabytes, int(megabytes.rstrip("+") or 0))
        part.has_gpus |= re.search(r"(^|,)gpu\b", gres) is not None
    return found


def _minutes(limit: str) -> float:
    """A time limit of SLURM (`[days-]hours:minutes:seconds`, `minutes:seconds`) in minutes."""
    if limit in ("infinite", "UNLIMITED", "n/a"):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _wrong_status(file: Path, given: dict[str, Any], config: dict[str, str]) -> list[str]:
    """Where Snakemake would not learn that a job ended, and wait for ever."""
    accounting = not config.get("AccountingStorageType", "").endswith("/none")
    if accounting or shutil.which("sacct") is None:
        return []
    if (command := given.get("slurm-status-command")) != "squeue":
        return [
            f"{file}: slurm-status-command: {command or 'missing'}: this cluster keeps no accounts "
            f"for sacct to read; write slurm-status-command: squeue"
        ]
    age = int(config.get("MinJobAge", "0").split()[0])
    key = "slurm-init-seconds-before-status-checks"
    init = _whole(given.get(key, INIT_SECONDS), f"{file}: {key}")
    if age < POLLS_REMEMBERED * init:
        return [
            f"{file}: {key}: {init}: this cluster forgets jobs after {age} s (MinJobAge) and keeps "
            f"no accounts; write {age // POLLS_REMEMBERED} or less"
        ]
    return []


def _named_partitions(
    file: Path, given: dict[str, Any]
) -> tuple[dict[str, str], Path, dict[str, dict[str, Any]]]:
    """Partitions with where each is named, and the file of limits with its content."""
    names: dict[str, str] = {}
    if default := _defaults(given).get("slurm_partition"):
        names[str(default)] = f"{file}: default-resources.slurm_partition"
    for rule, resources in given.get("set-resources", {}).items():
        if partition := resources.get("slurm_partition"):
            names.setdefault(str(partition), f"{file}: set-resources.{rule}.slurm_partition")
    limits_file = file
    limits: Any = {}
    if config := given.get("slurm-partition-config"):
        beside = file.parent / str(config)
        limits_file = beside if beside.exists() else Path(str(config))
        limits = _mapping(limits_file).get("partitions")
        if not isinstance(limits, dict):
            raise UserError(f"{limits_file}: partitions: {limits!r}; name each with its limits")
        for name, limit in limits.items():
            if not isinstance(limit, dict):
                raise UserError(f"{limits_file}: partitions.{name}: {limit!r}; write {{}} for none")
            names.setdefault(str(name), f"{limits_file}: partitions.{name}")
    return names, limits_file, limits


def _wrong_limits(
    file: Path,
    given: dict[str, Any],
    usable: dict[str, Partition],
    limits: dict[str, dict[str, Any]],
) -> list[str]:
    """Caps on what jobs ask for that no partition grants: those jobs would wait for ever."""
    defaults, wrong = _defaults(given), []
    caps: tuple[tuple[Kind, int, str, str], ...] = (
        ("runtime", MAX_RUNTIME_MINUTES, "minutes", "runtime_minutes"),
        ("mem_mb", MAX_MEGABYTES, "MB", "megabytes"),
    )
    with_gpus = {n: p for n, p in usable.items() if limits.get(n, {"max_gpu": 1}).get("max_gpu")}
    for kind, able in (("without a GPU", usable), ("with a GPU", with_gpus)):
        for resource, otherwise, unit, grant in caps if able else ():
            key = f"max_{resource}"
            given_cap = defaults.get(key, otherwise)
            cap = limit(resource, given_cap, f"{file}: default-resources.{key}")
            granted = max(getattr(found, grant) for found in able.values())
            if cap > granted:
                wrong.append(
                    f"{file}: default-resources.{key}: {given_cap}: jobs {kind} get at most "
                    f"{granted:.0f} {unit} here ({', '.join(able)}); write {granted:.0f} or less"
                )
    return wrong
