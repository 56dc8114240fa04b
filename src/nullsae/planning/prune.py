"""List, and delete on request, files below `results/` that the config no longer uses."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nullsae import paths
from nullsae.config.plain import read_yaml
from nullsae.config.read import read_merged_config, study_files
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.locking import alone_at
from nullsae.planning.locks import locked, refuse_locks
from nullsae.planning.named import named_by
from nullsae.planning.results_tree import ResultsTree, State

RESULTS = "results"
UNDELETED = "nothing was deleted"
# The most lines for one tree; longer lists count folders by their last key.
MOST_LINES = 20


@dataclass
class Found:
    """The files below `results/` by state; sizes in bytes by path."""

    files: dict[State, dict[str, int]] = field(
        default_factory=lambda: {state: {} for state in State}
    )
    links: list[str] = field(default_factory=list)
    """Symbolic links, which are never followed."""

    def total(self, state: State) -> int:
        """Return the bytes of all files of a state."""
        return sum(self.files[state].values())


def find(config: Config, root: Path) -> Found:
    """Classify all files below `results/` of a study's folder.

    Raises:
        UserError: there is no such folder, or Snakemake finds a mistake.
    """
    if not (root / RESULTS).is_dir():
        where = root.absolute()
        raise UserError(f"{where / RESULTS}: no such folder; nothing was run in {where.name}")
    tree, found = ResultsTree(config, named_by(config, root)), Found()
    for path, size in _walk(root, RESULTS, found.links):
        found.files[tree.state(path)][path] = size
    return found


def _walk(root: Path, folder: str, links: list[str]) -> Iterator[tuple[str, int]]:
    """Yield path and size of each file below a folder, sorted; links are added to `links`.

    Skips what a run renames or deletes meanwhile.
    """
    with suppress(FileNotFoundError), os.scandir(root / folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            path = f"{folder}/{entry.name}"
            if entry.is_symlink():
                links.append(path)
            elif entry.is_dir(follow_symlinks=False):
                yield from _walk(root, path, links)
            else:
                with suppress(FileNotFoundError):
                    yield path, entry.stat(follow_symlinks=False).st_size


def prune(
    root: Path, configfiles: list[Path], *, yes: bool = False, llm_cache: bool = False
) -> None:
    """Print what the config does not name below `results/`; delete it with `yes`.

    Args:
        root: the folder of the study, with `config.yaml`.
        configfiles: overlays, as for Snakemake.
        yes: delete it.
        llm_cache: include what was paid for: the cache of replies, and pending batches.

    Raises:
        UserError: a mistake in the config; Snakemake or one of its jobs is running here; nothing
            here belongs to the config; or a file cannot be deleted.
    """
    if yes:
        refuse_locks(root, UNDELETED)
    config = read_merged_config(study_files(root, configfiles))
    found = find(config, root)
    leaves = found.files[State.LEFT] | (found.files[State.PAID] if llm_cache else {})
    for line in _listing(found, leaves, config, llm_cache):
        print(line)
    if dropped := _dropped(config, root):
        print(f"The last run here also had {', '.join(dropped)}: is a --configfile missing?")
    if not leaves:
        return
    if not yes:
        print("Nothing was deleted; --yes deletes it.")
        return
    cells = [path for path in found.files[State.NAMED] if "=" in path]
    if not cells:
        raise UserError(
            f"{root / RESULTS}: nothing here belongs to this config, so nothing was deleted; give "
            f"the --configfile that the study was run with, or delete the folder yourself"
        )
    locks = [root / path for path in leaves if path.endswith(".lock")]
    with locked(root, leaves, UNDELETED), alone_at(locks, wait_seconds=0):
        n_bytes = delete(root, leaves)
    print(f"Deleted {len(leaves):,} files, {size_text(n_bytes)}.")


def _dropped(config: Config, root: Path) -> list[str]:
    """Return what the last run's config named and the current one does not, with its section."""
    file = root / paths.RUN_CONFIG
    before, now = read_yaml(file) if file.is_file() else None, config.model_dump(mode="json")
    return [
        f"{section} {name}"
        for section in ("corpora", "subjects", "variants", "saes", "explainers", "scorers")
        if isinstance(before, dict)
        for name in before.get(section) or ()
        if name not in now[section]
    ]


def delete(root: Path, files: Mapping[str, int]) -> int:
    """Delete files below `results/`, and folders that become empty; return the bytes deleted.

    A file is not deleted if its path now leads through a link. JSON files, which mark a cell as
    complete, go first, so that a partly deleted cell does not count as complete.

    Raises:
        UserError: some could not be deleted; names the first. The others are gone.
    """
    top = (root / RESULTS).resolve()
    failed: list[str] = []
    n_bytes = 0
    for path in sorted(files, key=lambda each: (not each.endswith(".json"), each)):
        file = top.joinpath(*PurePosixPath(path).parts[1:])
        try:
            if file.parent.resolve() != file.parent:
                raise OSError(0, "its path leads through a link")
            file.unlink()
            n_bytes += files[path]
        except FileNotFoundError:
            pass
        except OSError as error:
            failed.append(f"{path}: {error.strerror}")
    for folder in sorted({PurePosixPath(path).parent for path in files}, reverse=True):
        _remove_empty(top.joinpath(*folder.parts[1:]), top)
    if failed:
        raise UserError(f"{len(failed)} files could not be deleted, such as {failed[0]}")
    return n_bytes


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder, and its parents, if they are empty."""
    while folder != top and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _listing(
    found: Found, leaves: Mapping[str, int], config: Config, llm_cache: bool
) -> Iterator[str]:
    """Yield the lines of the listing."""
    named, left = found.total(State.NAMED), sum(leaves.values())
    yield (
        f"{RESULTS}/: {size_text(named)} belong to this config, {size_text(left)} "
        f"({len(leaves):,} files) are left over"
    )
    kept = [path for state in State for path in found.files[state] if path not in leaves]
    per_tree: dict[str, dict[str, int]] = defaultdict(dict)
    for group, size in _groups(leaves, [*kept, *found.links]).items():
        per_tree[group.split("/")[1]][group] = size
    for tree, groups in per_tree.items():
        yield f"  {size_text(sum(groups.values())):>9}  {RESULTS}/{tree}"
        for name, size in _shortened(groups).items():
            yield f"  {size_text(size):>9}    {name}"
    if found.files[State.PAID] and not llm_cache:
        paid = ", ".join(_groups(found.files[State.PAID], kept_but(found, State.PAID)))
        yield (
            f"kept, because it was paid for ({size_text(found.total(State.PAID))}; --llm-cache "
            f"deletes it): {paid}"
        )
    foreign = _groups(found.files[State.FOREIGN], [*kept_but(found, State.FOREIGN), *found.links])
    if foreign:
        yield "not written by nullsae, and left alone:"
        for name, size in _shortened(foreign).items():
            yield f"  {size_text(size):>9}    {name}"
    for link in found.links[:MOST_LINES]:
        yield f"a link, not followed: {link}"
    if len(found.links) > MOST_LINES:
        yield f"and {len(found.links) - MOST_LINES} more links"


def kept_but(found: Found, state: State) -> list[str]:
    """Return the paths of all files of other states."""
    return [path for other in State if other is not state for path in found.files[other]]


def _groups(files: Mapping[str, int], others: Iterable[str]) -> dict[str, int]:
    """Return bytes by the topmost folders that contain only these files, else by file."""
    around = {str(folder) for path in others for folder in PurePosixPath(path).parents}
    around |= {".", RESULTS}
    found: Counter[str] = Counter()
    for path, size in files.items():
        above = [str(folder) for folder in PurePosixPath(path).parents if str(folder) not in around]
        found[f"{above[-1]}/" if above else path] += size
    return dict(found)


def _shortened(groups: Mapping[str, int]) -> dict[str, int]:
    """Return groups by name, or, if there are many, by the number with the same ending."""
    if len(groups) <= MOST_LINES:
        return {name.removeprefix(f"{RESULTS}/"): size for name, size in groups.items()}
    alike: dict[str, list[str]] = defaultdict(list)
    for name in groups:
        alike[PurePosixPath(name).name].append(name)
    named = {
        f"{len(names)} x {last}" if len(names) > 1 else names[0].removeprefix(f"{RESULTS}/"): sum(
            groups[name] for name in names
        )
        for last, names in alike.items()
    }
    largest = dict(Counter(named).most_common(MOST_LINES))
    if rest := len(named) - len(largest):
        largest[f"and {rest} more"] = sum(named.values()) - sum(largest.values())
    return largest


def size_text(n_bytes: int) -> str:
    """Return a size in units of 1000 bytes, such as `1.2 MB`."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
