"""Models, tokenizers, SAEs and data sets of the hub, in the caches that jobs use."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, Protocol

from nullsae.config.corpora import HubSource, PretrainedTokenizer
from nullsae.config.layouts import layout_files
from nullsae.config.pretrained import FromSaeLens, pretrained_sae_path
from nullsae.config.saelens_list import listed
from nullsae.core.errors import UserError
from nullsae.core.folders import expanded
from nullsae.subjects.checkpoints import PICKLE, WEIGHTS, check_checkpoint

# Small files at the top of a model's repository: configs, tokenizers, chat templates.
SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken")


@dataclass(frozen=True)
class Fetched:
    """What is on disk now."""

    n_bytes: int
    folder: Path
    was_there: bool = False


class Item(Protocol):
    """One thing to fetch. Equal items are fetched once, whichever config keys name them."""

    @property
    def where(self) -> str:
        """The config key that names it."""

    def describe(self) -> str:
        """Describe it in a few words."""

    def fetch(self) -> Fetched:
        """Make sure it is on disk. Raises a `UserError`, or errors of the hub's libraries."""


@dataclass(frozen=True)
class Model:
    """A model of the hub, as jobs read it."""

    path: str
    revision: str | None
    runs_code: bool
    where: str = field(compare=False)
    revision_where: str = field(compare=False)

    def describe(self) -> str:
        """Return its hub id and revision."""
        return f"model {self.path}{at(self.revision)}"

    def fetch(self) -> Fetched:
        """Make sure that config, weights and small files are cached; do not load weights."""
        import huggingface_hub

        found = _Repository(self.path, self.revision, self.where, self.revision_where)
        sizes, this = found.sizes, found.this
        if "config.json" not in sizes:
            raise UserError(f"{this} has no config.json")

        def read(name: str) -> Any:
            file = huggingface_hub.hf_hub_download(self.path, name, revision=found.commit)
            return json.loads(Path(file).read_text(encoding="utf-8"))

        config = read("config.json")
        check_checkpoint(self.path, found.commit, where=this)
        given = config.get("transformers_weights")
        weights = [name for name in (given, *WEIGHTS) if name is not None and name in sizes][:1]
        if not weights:
            raise UserError(
                f"{this} has neither safetensors nor {PICKLE}, and weights in other formats are "
                f"not read; convert them with model.save_pretrained"
            )
        if weights[0].endswith(".index.json"):
            weights += sorted(set(read(weights[0])["weight_map"].values()))
        if missing := [name for name in weights if name not in sizes]:
            raise UserError(f"{this} lacks {missing[0]}")
        names = {*found.small, *weights}
        if self.runs_code:
            names |= found.code
            # Classes are named as `module.Class`, those of another repository `id--module.Class`.
            values = config.get("auto_map", {}).values()
            classes = [name for v in values for name in (v if isinstance(v, list) else [v])]
            for path in sorted({name.split("--")[0] for name in classes if name and "--" in name}):
                other = _Repository(path, None, self.where, self.where)
                other.download(other.code)
        return found.download(names)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer of the hub, loaded once to check that it can be used."""

    given: PretrainedTokenizer
    where: str = field(compare=False)

    def describe(self) -> str:
        """Return its hub id and revision."""
        return f"tokenizer {self.given.path}{at(self.given.revision)}"

    def fetch(self) -> Fetched:
        """Make sure that its files are in the hub's cache."""
        from nullsae.corpus.tokenizer import load_tokenizer

        keys = f"{self.where}.path", f"{self.where}.revision"
        found = _Repository(self.given.path, self.given.revision, *keys)
        fetched = found.download(found.small)
        load_tokenizer(self.given, where=self.where)
        return fetched


@dataclass(frozen=True)
class PretrainedSae:
    """An SAE of the hub, read once to check that it can be."""

    pretrained: str
    site: str
    where: str = field(compare=False)

    def describe(self) -> str:
        """Return its hub id and the folder within."""
        return "SAE " + "::".join(filter(None, pretrained_sae_path(self.pretrained, self.site)))

    def fetch(self) -> Fetched:
        """Make sure that its files are in the hub's cache."""
        from nullsae.sae.exchange.pretrained import read_pretrained

        path, inside = pretrained_sae_path(self.pretrained, self.site)
        found, prefix = _Repository(path, None, self.where, self.where), f"{inside}/" * bool(inside)
        names = {f"{prefix}{name}" for name in layout_files()} & found.sizes.keys()
        if not names:
            raise UserError(f"{self.where}: {path!r} on the hub holds no SAE in {inside!r}")
        fetched = found.download(names | ({"config.json"} & found.sizes.keys()))
        read_pretrained(self.pretrained, self.site, where=self.where)
        return fetched


@dataclass(frozen=True)
class ReleasedSae:
    """An SAE of a SAELens release, read once by `sae_lens`, which downloads it."""

    pretrained: FromSaeLens
    where: str = field(compare=False)

    def describe(self) -> str:
        """Return its release and id."""
        return f"SAE {self.pretrained} (SAELens)"

    def fetch(self) -> Fetched:
        """Make sure that its files are in the hub's cache."""
        from huggingface_hub import constants

        from nullsae.sae.exchange.pretrained import read_pretrained

        folder = f"models--{listed(self.pretrained, self.where).repo_id.replace('/', '--')}"
        blobs = Path(constants.HF_HUB_CACHE) / folder / "blobs"

        def n_bytes() -> int:
            return sum(file.stat().st_size for file in blobs.glob("*"))

        before = n_bytes()
        read_pretrained(self.pretrained, None, where=self.where)
        return Fetched(n_bytes() - before, blobs.parent, was_there=n_bytes() == before)


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub that is downloaded in full."""

    source: HubSource
    where: str = field(compare=False)

    def describe(self) -> str:
        """Return its hub id and revision."""
        return f"data set {self.source.path}{at(self.source.revision)}"

    def fetch(self) -> Fetched:
        """Cache it for the library `datasets` by reading its first document."""
        import datasets
        from datasets.naming import camelcase_to_snakecase
        from huggingface_hub import constants

        from nullsae.corpus.sources import documents

        next(documents(self.source, where=self.where), None)
        *owner, name = self.source.path.split("/")
        folder = expanded(datasets.config.HF_DATASETS_CACHE)
        folder /= "___".join([*owner, camelcase_to_snakecase(name)])
        # Offline, the library ignores the revision and takes the newest version that it finds.
        made = list(folder.glob(f"{escape(self.source.name or '') or '*'}/*/*/"))
        if len(made) > 1:
            raise UserError(
                f"{self.where}: {folder} holds {len(made)} versions of the data set "
                f"{self.source.path!r}; without network the newest is read, whichever the config "
                f"names; delete the folder, or give another one with --into"
            )
        downloaded = f"datasets--{self.source.path.replace('/', '--')}"
        folders = (Path(constants.HF_HUB_CACHE) / downloaded, folder)
        files = (file for each in folders for file in each.rglob("*") if file.is_file())
        # Snapshots are links to blobs, which would count twice.
        return Fetched(sum(f.stat().st_size for f in files if not f.is_symlink()), folder)


class _Repository:
    """A model's repository: the size of each file by name, and the commit of the revision."""

    def __init__(self, path: str, revision: str | None, where: str, revision_where: str) -> None:
        import huggingface_hub

        from nullsae.corpus.hub import check_repository

        places = {"where": where, "revision_where": revision_where}
        check_repository(path, kind="model", revision=revision, **places)
        info = huggingface_hub.HfApi().model_info(path, revision=revision, files_metadata=True)
        self.path, self.revision, self.commit = path, revision, str(info.sha)
        self.this = f"{where}: {path!r}{at(revision)}"
        self.sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        self.small = {n for n in self.sizes if "/" not in n and n.endswith(SMALL_SUFFIXES)}
        self.code = {name for name in self.sizes if name.endswith(".py")}

    def download(self, names: set[str]) -> Fetched:
        """Make sure that these files are in the hub's cache; refuse if the disk is too small."""
        import huggingface_hub as hub
        from huggingface_hub import constants

        look = partial(hub.try_to_load_from_cache, self.path, revision=self.commit)
        missing = [name for name in names if not isinstance(look(name), str)]
        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        needed, free = sum(self.sizes[name] for name in missing), shutil.disk_usage(cache).free
        if needed > free:
            raise UserError(
                f"{self.this} needs {needed / 1e9:,.1f} GB more, and {cache} has "
                f"{free / 1e9:,.1f} GB free; free some, or give another folder with --into"
            )
        patterns = [escape(name) for name in sorted(names)]
        fetch = partial(hub.snapshot_download, self.path, revision=self.revision)
        folder = Path(fetch(allow_patterns=patterns))
        n_bytes = sum((folder / name).stat().st_size for name in names)
        return Fetched(n_bytes, folder, not missing)


def at(revision: str | None) -> str:
    """Return ` at REVISION`, or nothing for the default branch."""
    return f" at {revision}" if revision else ""
