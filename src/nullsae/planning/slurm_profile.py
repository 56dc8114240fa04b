"""Check that a profile for Snakemake's SLURM executor fits the cluster."""

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
# In Snakemake's order.
PROFILE_NAMES = ("profile.v9+.yaml", "profile.yaml", "config.v9+.yaml", "config.yaml")
QUERY_TIMEOUT_SECONDS = 30
# The plugin's default interval of status checks, and for how many of them the queue must remember a
# finished job.
INIT_SECONDS, POLLS_REMEMBERED = 40, 3
# Defaults of the profile (`most` in workflow/rules/common.smk).
MAX_RUNTIME_MINUTES, MAX_MEGABYTES = 7 * 24 * 60, 256_000


# Resources that the executor passes to sbatch, with sbatch's options.
OPTIONS = {
    "slurm_partition": ("-p", "--partition"),
    "constraint": ("-C", "--constraint"),
    "qos": ("-q", "--qos"),
    "clusters": ("-M", "--clusters"),
}
# Other names of the executor for `clusters`.
CLUSTERS = ("clusters", "cluster", "slurm_cluster")


@dataclass(frozen=True)
class Nodes:
    """Equal nodes of one partition, as SLURM reports them."""

    partition: str
    is_default: bool
    """Whether jobs without a partition go there."""
    up: bool
    runtime_minutes: float
    megabytes: int
    has_gpus: bool
    features: frozenset[str]
    """Features that a constraint may name."""


@dataclass
class Partition:
    """A partition, or the nodes that a constraint selects: the most that any of them has."""

    up: bool
    runtime_minutes: float
    megabytes: int
    has_gpus: bool

    @classmethod
    def of(cls, nodes: list[Nodes]) -> Partition:
        """Return the most that any of these nodes has."""
        return cls(
            up=any(node.up for node in nodes),
            runtime_minutes=max(node.runtime_minutes for node in nodes),
            megabytes=max(node.megabytes for node in nodes),
            has_gpus=any(node.has_gpus for node in nodes),
        )


def check_cluster(profile: Path) -> tuple[list[str], list[str]]:
    """Compare a profile, given as its folder or file, with the cluster.

    Jobs may be submitted by partition, constraint or quality of service, to the cluster's default
    partition, or to another cluster (`clusters`).

    Returns:
        Lines about what is wrong, and about what fits. If nothing is wrong, jobs can be submitted.

    Raises:
        UserError: SLURM or the plugin is not installed, or the profile cannot be read.
    """
    files = [profile] if profile.is_file() else [profile / name for name in PROFILE_NAMES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"--profile: {profile}: has no profile.yaml")
    given = _mapping(file)
    clusters = list(_named(file, given, "clusters"))
    there = ("-M", ",".join(clusters)) if clusters else ()
    # SLURM's own settings.
    lines = _ask("scontrol", *there, "show", "config").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    config = {key.strip(): value.strip() for key, value in pairs}
    nodes = _nodes(there)
    if not importlib.util.find_spec(PLUGIN.replace("-", "_")):
        raise UserError(
            f"{PLUGIN}: not installed in this environment; pip install -r requirements-slurm.txt"
        )
    wrong = _wrong_status(file, given, config)
    usable, limits = _usable(file, given, nodes, wrong)
    granted, unknown = _wrong_qos(file, given)
    wrong += [*unknown, *_wrong_limits(file, given, usable, limits), *granted]
    fits = [_described(name, found) for name, found in usable.items()]
    if limits and not any(limit.get("max_gpu") for limit in limits.values()):
        fits.append("no partition accepts jobs with a GPU: set compute.device: cpu")
    return wrong, fits


def _described(name: str, found: Partition) -> str:
    time = f"{found.runtime_minutes:,.0f} minutes"
    time = "no time limit" if found.runtime_minutes == float("inf") else time
    gpus = ", GPUs" if found.has_gpus else ""
    return f"{name}: {time}, {found.megabytes:,} MB{gpus}"


def _usable(
    file: Path, given: dict[str, Any], nodes: list[Nodes], wrong: list[str]
) -> tuple[dict[str, Partition], dict[str, dict[str, Any]]]:
    """Return where jobs may go, by name, and the profile's own limits of partitions.

    What the profile names but the cluster lacks is added to `wrong`.
    """
    names, limits_file, limits = _named_partitions(file, given)
    partitions = {
        name: Partition.of([node for node in nodes if node.partition == name])
        for name in dict.fromkeys(node.partition for node in nodes)
    }
    known = ", ".join(sorted(partitions))
    for name, where in names.items():
        if name not in partitions:
            wrong.append(f"{where}: no partition {name!r} on this cluster; it has {known}")
        elif not partitions[name].up:
            wrong.append(
                f"{where}: partition {name!r} is down or accepts no jobs (sinfo -p {name})"
            )
    usable = {name: partitions[name] for name in names if name in partitions}
    for name, own in limits.items():
        gpus = own.get("max_gpu", 0)
        if name in usable and gpus and not usable[name].has_gpus:
            wrong.append(
                f"{limits_file}: partitions.{name}.max_gpu: {gpus}, but no node of it has a GPU "
                f"(sinfo -p {name} -o %G)"
            )
    chosen = _chosen(file, given, nodes, wrong)
    if names:
        return usable, limits
    if chosen:
        return chosen, limits
    default = next((node.partition for node in nodes if node.is_default), None)
    if default is not None:
        return {default: partitions[default]}, limits
    # By quality of service or another cluster: the site chooses the partition.
    sent_by = [*_named(file, given, "qos"), *_named(file, given, "clusters")]
    if not sent_by and not _named(file, given, "constraint"):
        wrong.append(
            f"{file}: names no partition, but this cluster has no default one; give "
            f"slurm_partition, constraint or qos in default-resources, or slurm-partition-config"
        )
    up = [node for node in nodes if node.up]
    return ({", ".join(sent_by): Partition.of(up)} if sent_by and up else {}), limits


def _chosen(
    file: Path, given: dict[str, Any], nodes: list[Nodes], wrong: list[str]
) -> dict[str, Partition]:
    """Return the nodes that each constraint of the profile may select."""
    found: dict[str, Partition] = {}
    features = frozenset().union(*(node.features for node in nodes))
    for constraint, where in _named(file, given, "constraint").items():
        # Names, joined by & | , and brackets, each possibly with a number of nodes.
        asked = re.findall(r"[^\s&|,()\[\]*]+", re.sub(r"\*\d+", "", constraint))
        if unknown := [name for name in asked if name not in features]:
            wrong.append(
                f"{where}: no node has the feature {unknown[0]!r}; nodes here have "
                f"{', '.join(sorted(features)) or 'none'} (sinfo -o %f)"
            )
            continue
        meant = [node for node in nodes if node.up and node.features & set(asked)]
        if meant:
            found[f"constraint {constraint}"] = Partition.of(meant)
        else:
            wrong.append(f"{where}: all nodes of {constraint!r} are down (sinfo -o '%P %a %f')")
    return found


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
    """Return `default-resources`, which a profile may also write as `name=value`."""
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
    """Return the output of a SLURM command."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{command[0]}: not found: this machine has no SLURM; run on a login node of the "
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


def _nodes(there: tuple[str, ...]) -> list[Nodes]:
    """Return the groups of equal nodes that `sinfo` lists, for the clusters in `there` if any."""
    found = []
    for line in _ask("sinfo", *there, "-h", "-o", "%P|%a|%l|%m|%G|%f").splitlines():
        # With several clusters, each one's name precedes its lines.
        if line.count("|") < 4:
            continue
        # Some versions of sinfo leave out empty fields.
        name, available, limit, megabytes, gres, features, *_ = f"{line}||".split("|", 6)
        found.append(
            Nodes(
                partition=name.removesuffix("*"),
                is_default=name.endswith("*"),
                up=available == "up",
                runtime_minutes=_minutes(limit),
                megabytes=int(megabytes.rstrip("+") or 0),
                has_gpus=re.search(r"(^|,)gpu\b", gres) is not None,
                features=frozenset(features.split(",")) - {"", "(null)"},
            )
        )
    return found


def _named(file: Path, given: dict[str, Any], resource: str) -> dict[str, str]:
    """Return a profile's values of an option of sbatch, each with its place in the file."""
    keys = CLUSTERS if resource == "clusters" else (resource,)
    sections = {"default-resources": _defaults(given)}
    for rule, resources in (given.get("set-resources") or {}).items():
        sections[f"set-resources.{rule}"] = resources
    found: dict[str, str] = {}
    for section, resources in sections.items():
        for key in keys:
            if resources.get(key):
                found.setdefault(str(resources[key]), f"{file}: {section}.{key}")
        extra = str(resources.get("slurm_extra") or "").strip("'\"")
        for value in _of_option(extra, *OPTIONS[resource]):
            found.setdefault(value, f"{file}: {section}.slurm_extra")
    if resource == "qos" and given.get("slurm-qos"):
        found.setdefault(str(given["slurm-qos"]), f"{file}: slurm-qos")
    return found


def _of_option(text: str, short: str, long: str) -> list[str]:
    """Return the values of an option in a command line, such as `-q name` and `--qos=name`."""
    pattern = rf"(?:^|\s)(?:{short}\s*|{long}[=\s]\s*)(\S+)"
    return [value.strip("'\"") for value in re.findall(pattern, text)]


def _wrong_qos(file: Path, given: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return messages about run times that a quality of service does not grant, and unknown names.

    Only the cluster's accounting has them: without sacctmgr nothing is checked.
    """
    named = _named(file, given, "qos")
    if not named or shutil.which("sacctmgr") is None:
        return [], []
    try:
        lines = _ask("sacctmgr", "-n", "-P", "show", "qos", "format=Name,MaxWall").splitlines()
    except UserError:
        return [], []
    grants = dict(line.split("|", 1) for line in lines if "|" in line)
    known = ", ".join(sorted(grants))
    unknown = [
        f"{where}: no quality of service {name!r} on this cluster; it has {known}"
        for name, where in named.items()
        if name not in grants
    ]
    cap, shown = _cap(file, given, "runtime", MAX_RUNTIME_MINUTES)
    limits = {name: _minutes(grants[name] or "infinite") for name in named if name in grants}
    granted = [
        f"{file}: default-resources.max_runtime: {shown}: jobs of qos {name} get at most "
        f"{most:.0f} minutes here; write {most:.0f} or less"
        for name, most in limits.items()
        if cap > most
    ]
    return granted, unknown


def _cap(file: Path, given: dict[str, Any], resource: Kind, otherwise: int) -> tuple[int, Any]:
    """Return the most that a job may request, and how the profile writes it."""
    key = f"max_{resource}"
    value = _defaults(given).get(key, otherwise)
    return limit(resource, value, f"{file}: default-resources.{key}"), value


def _minutes(limit: str) -> float:
    """Return a SLURM time limit (`[days-]hours:minutes:seconds`, `minutes:seconds`) in minutes."""
    if limit in ("infinite", "UNLIMITED", "n/a"):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _wrong_status(file: Path, given: dict[str, Any], config: dict[str, str]) -> list[str]:
    """Return a message if Snakemake could not learn that a job ended, and would wait forever."""
    accounting = not config.get("AccountingStorageType", "").endswith("/none")
    if accounting or shutil.which("sacct") is None:
        return []
    if (command := given.get("slurm-status-command")) != "squeue":
        return [
            f"{file}: slurm-status-command: {command or 'missing'}: this cluster has no accounting "
            f"for sacct to read; write slurm-status-command: squeue"
        ]
    age = int(config.get("MinJobAge", "0").split()[0])
    key = "slurm-init-seconds-before-status-checks"
    init = _whole(given.get(key, INIT_SECONDS), f"{file}: {key}")
    if age < POLLS_REMEMBERED * init:
        return [
            f"{file}: {key}: {init}: this cluster forgets jobs after {age} s (MinJobAge) and has "
            f"no accounting; write {age // POLLS_REMEMBERED} or less"
        ]
    return []


def _named_partitions(
    file: Path, given: dict[str, Any]
) -> tuple[dict[str, str], Path, dict[str, dict[str, Any]]]:
    """Return partitions with where each is named, and the file of limits with its content."""
    names = _named(file, given, "slurm_partition")
    limits_file = file
    limits: Any = {}
    if config := given.get("slurm-partition-config"):
        beside = file.parent / str(config)
        limits_file = beside if beside.exists() else Path(str(config))
        limits = _mapping(limits_file).get("partitions")
        if not isinstance(limits, dict):
            raise UserError(
                f"{limits_file}: partitions: {limits!r}; name each partition with its limits"
            )
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
    """Return messages about requests that no partition grants, which would wait forever."""
    wrong = []
    caps: tuple[tuple[Kind, int, str, str], ...] = (
        ("runtime", MAX_RUNTIME_MINUTES, "minutes", "runtime_minutes"),
        ("mem_mb", MAX_MEGABYTES, "MB", "megabytes"),
    )
    with_gpus = {n: p for n, p in usable.items() if limits.get(n, {"max_gpu": 1}).get("max_gpu")}
    if not limits:
        with_gpus = {n: p for n, p in usable.items() if p.has_gpus}
    for kind, able in (("without a GPU", usable), ("with a GPU", with_gpus)):
        for resource, otherwise, unit, grant in caps if able else ():
            cap, given_cap = _cap(file, given, resource, otherwise)
            granted = max(getattr(found, grant) for found in able.values())
            if cap > granted:
                wrong.append(
                    f"{file}: default-resources.max_{resource}: {given_cap}: jobs {kind} get at "
                    f"most {granted:.0f} {unit} here ({', '.join(able)}); "
                    f"write {granted:.0f} or less"
                )
    return wrong
