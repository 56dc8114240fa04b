"""Classify the files below `results/`: of the config, left over from another one, or not ours.

A file is ours if this package writes its path: a pattern of `nullsae.paths`, or one of those below,
which no rule declares. All others are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from itertools import chain

from nullsae import paths
from nullsae.config.metrics import METRICS
from nullsae.config.study import Config
from nullsae.jobs.grid import captured_sites
from nullsae.jobs.work import NOT_PLANNED, WORK
from nullsae.planning.named import Named
from nullsae.report.kinds import FIGURES

# Patterns of wildcards; by default anything within one folder's name.
WILDCARDS = {
    **dict.fromkeys(("draw", "seed", "shard", "portion", "portions"), r"\d+"),
    "split": "sae_train|eval",
    "format": "png|pdf|svg",
    "key": "[0-9a-f]{16}",
}
SAE_FILES = r"sae\.safetensors|cfg\.json|history\.parquet"
TOKENIZER_FILES = (
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|tokenizer\.model|chat_template\.jinja"
)
CHECKPOINT_FILES = (
    rf"{TOKENIZER_FILES}|(config|generation_config|model\.safetensors\.index)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors"
)
SPOOL_FILES = (
    r"digests|head|head\.json|packed\.json|(sae_train|eval)[^/]*|tokenizer/[^/]+"
    r"|documents/(state\.json|(sae_train|eval)-[0-9a-f]{2}\.\w+)"
)
# A half-written file, by `core.files.atomic_path`: `.STEM.PID.partial.SUFFIX`.
PARTIAL = re.compile(r"\.(?P<stem>.+)\.\d+\.partial(?P<suffix>\.[^.]*)?")
# Lock of the process that makes a file: `.NAME.lock`.
LOCK = re.compile(r"\.(?P<locked>.+)\.lock")
# Written next to the outputs of any job.
BESIDE = re.compile(r"provenance(-\d+)?\.json")
PER_JOB = re.compile(r"results/(logs|benchmarks)/([^/]+)/(.+)\.(log|tsv|asked\.json)")
REPLIES = r"(-wal|-shm|-journal|-[0-9a-f]{8}\.lock)?"


class State(Enum):
    """What a file is to the config."""

    NAMED = auto()
    """The config names it."""
    LEFT = auto()
    """This package wrote it, but the config does not name it."""
    PAID = auto()
    """Replies of language models, or pending batches of requests: they cost money."""
    FOREIGN = auto()
    """Not written by this package."""


@dataclass(frozen=True)
class Kind:
    """One kind of files."""

    pattern: str
    """Path pattern, as in `nullsae.paths`."""
    file: str = "[^/]+"
    """A regular expression for `{file}` in the pattern."""
    part_of: str = ""
    """The pattern of the declared file that they belong to; by default they are declared."""

    @cached_property
    def folder(self) -> re.Pattern[str]:
        return re.compile(self._expression(self.pattern.rpartition("/")[0]))

    @cached_property
    def path(self) -> re.Pattern[str]:
        return re.compile(self._expression(self.pattern))

    def _expression(self, pattern: str) -> str:
        parts = re.split(r"\{(\w+)\}", pattern)
        wildcards = {**WILDCARDS, "file": self.file}
        return "".join(
            f"(?P<{part}>{wildcards.get(part, '[^/]+')})" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )


def _declared() -> Iterator[Kind]:
    """Yield the kinds of files that rules declare."""
    apart = (paths.LOG, paths.BENCHMARK, paths.ASKED, paths.FIGURE, paths.TABLE)
    for pattern in vars(paths).values():
        if not isinstance(pattern, str) or pattern in apart:
            continue
        if "{" in pattern and "." in pattern.rpartition("/")[2]:
            yield Kind(pattern)


KINDS = (
    *_declared(),
    Kind(f"{paths.CORPUS}/{{file}}", r"provenance\.json", paths.TOKENIZER_FILE),
    Kind(f"{paths.TOKENIZER}/{{file}}", TOKENIZER_FILES, paths.TOKENIZER_FILE),
    Kind(f"{paths.MODEL}/{{file}}", rf"README\.md|{CHECKPOINT_FILES}", paths.RECIPE),
    Kind(
        f"{paths.SITE}/{{file}}",
        r"manifest\.json|shard-\d+\.(safetensors|json)",
        paths.ACTIVATIONS_MANIFEST,
    ),
    Kind(f"{paths.SAE}/{{file}}", SAE_FILES, paths.SAE_CONFIG),
    Kind(f"{paths.SAE}/checkpoints/{{share}}/{{file}}", SAE_FILES, paths.SAE_CONFIG),
    Kind(f"{paths.LATENT_FOLDER}/.latents.partial/{{file}}", part_of=paths.LATENTS),
    Kind(f"{paths.JUDGE}/checkpoint/{{file}}", CHECKPOINT_FILES, paths.JUDGE_MANIFEST),
    Kind(
        f"{paths.EVALUATED}/{paths.CELL_KEYS}/{{file}}",
        r"(reconstruction|documents|geometry)\.parquet|made\.json",
        paths.RECONSTRUCTION,
    ),
    Kind(
        f"{paths.COLLECTED}/{paths.CELL_KEYS}/{{file}}",
        r"(latents|windows|coverage)\.parquet|firings\.safetensors|made\.json",
        paths.LATENTS,
    ),
)
# Files to resume from; `Named.work` has their names, made of rule and key.
RESUMED = tuple(
    Kind(f"{paths.WORK}/{pattern}", file)
    for pattern, file in (
        ("train_subject-{key}.{file}", r"safetensors|json|lock"),
        ("retrain_subject-{key}.{file}", r"safetensors|json|lock"),
        ("train_sae-{key}.{file}", r"safetensors|provenance\.json|lock"),
        ("train_sae-{key}/{file}", SAE_FILES),
        ("train_sae-{key}/checkpoints/{share}/{file}", SAE_FILES),
        ("prepare_corpus-{key}.lock", ""),
        ("prepare_corpus-{key}/{file}", SPOOL_FILES),
    )
)
# Copies of GGUF files for a job's own server.
GGUF = re.compile(rf"{paths.WORK}/[^/]+\.q\d_\d\.[0-9a-f]{{16}}\.gguf")
BATCH = re.compile(rf"{paths.BATCHES}/[0-9a-f]{{32}}\.(json|lock)")


class ResultsTree:
    """Classifies the files below one study's `results/`."""

    def __init__(self, config: Config, named: Named) -> None:
        self._config, self._named = config, named
        self._outputs = [paths.partition_keys(file) for file in named.files]
        self._projections: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        self._rules = named.rules | WORK.keys() | set(NOT_PLANNED)
        given = {value for value in vars(paths).values() if isinstance(value, str)}
        self._always = {path for path in given if "{" not in path} | {"results/README.md"}
        caches = {config.llm.cache, type(config.llm)().cache}
        self._replies = re.compile(f"({'|'.join(map(re.escape, sorted(caches)))}){REPLIES}")
        figures = "|".join(map(re.escape, chain(METRICS, FIGURES)))
        self._figure = Kind(paths.FIGURE).path
        self._drawing = re.compile(rf".+\.({figures})|toy\..+")

    def state(self, path: str) -> State:
        """Return the state of a file by its path relative to the study's folder, with `/`."""
        if path in self._named.files or path in self._always:
            return State.NAMED
        if BATCH.fullmatch(path) or self._replies.fullmatch(path):
            return State.PAID
        folder, _, name = path.rpartition("/")
        if partial := PARTIAL.fullmatch(name):
            # It counts as the file that it was going to become.
            return self.state(f"{folder}/{partial['stem']}{partial['suffix'] or ''}")
        if lock := LOCK.fullmatch(name):
            return self.state(f"{folder}/{lock['locked']}")
        owners = [*self._owners(path, name, folder)]
        if any(owners):
            return State.NAMED
        return State.LEFT if owners else State.FOREIGN

    def _owners(self, path: str, name: str, folder: str) -> Iterator[bool]:
        """Yield, for each thing that a file may be part of, whether the config names it."""
        beside = BESIDE.fullmatch(name) is not None
        for kind in KINDS:
            found = kind.folder.fullmatch(folder) if beside else kind.path.fullmatch(path)
            if found:
                yield self._is_named(kind, found.groupdict())
        for kind in RESUMED:
            found = kind.folder.fullmatch(folder) if beside else kind.path.fullmatch(path)
            if found:
                yield path.split("/")[2].partition(".")[0] in self._named.work
        if found := PER_JOB.fullmatch(path):
            if found[2] in self._rules:
                yield self._is_of_a_named_cell(found[3])
        elif (found := self._figure.fullmatch(path)) and self._drawing.fullmatch(found["figure"]):
            yield False
        elif GGUF.fullmatch(path):
            yield any(one.server is not None for one in self._config.endpoints().values())

    def _is_named(self, kind: Kind, keys: Mapping[str, str]) -> bool:
        if not kind.part_of:
            return kind.pattern.format(**keys) in self._named.files
        if kind.pattern.startswith(paths.SITE):
            if keys["subject"] not in self._config.subjects:
                return False
            if keys["site"] not in captured_sites(self._config, keys["subject"]):
                return False
        return kind.part_of.format(**keys) in self._named.files

    def _is_of_a_named_cell(self, keys: str) -> bool:
        """Return whether the config names any output with all of a job's keys.

        The config changes how work is split into jobs, but the log of an earlier job still says how
        the current files were made.
        """
        pairs = [part.partition("=") for part in keys.split("/")]
        names = tuple(name for name, equals, _ in pairs if equals)
        if names not in self._projections:
            self._projections[names] = {
                tuple(output[name] for name in names)
                for output in self._outputs
                if all(name in output for name in names)
            }
        wanted = tuple(value for _, equals, value in pairs if equals)
        return wanted in self._projections[names]
