"""The files to export for one SAE: those in its folder below `results/latents`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from nullsae import paths, tables
from nullsae.config.plain import read_yaml
from nullsae.core.errors import UserError
from nullsae.latents.sample import FiringReader
from nullsae.latents.split import Split
from nullsae.latents.store import empty_folder
from nullsae.tables.cells import CELL_KEYS


@dataclass(frozen=True)
class LatentFolder:
    """One SAE's tables, and its keys from the folder's path."""

    folder: Path
    keys: dict[str, str]
    latents: pa.Table
    firings: FiringReader

    @classmethod
    def open(cls, folder: Path) -> LatentFolder:
        """Read the folder `results/latents/subject=.../seed=...`.

        Raises a `UserError` if it is not such a folder, or a file is missing or damaged.
        """
        keys = paths.partition_keys(folder.absolute() / "latents.parquet")
        wanted = [key for key, _ in CELL_KEYS]
        if list(keys)[-len(wanted) :] != wanted:
            raise UserError(
                f"--latents: {folder} is not a folder such as "
                f"{paths.LATENT_FOLDER.format(**dict.fromkeys(wanted, '...'))}"
            )
        latents = tables.read_table(folder / "latents.parquet", tables.cell_schema("latents"))
        firings = FiringReader.open(folder / "firings.safetensors")
        return cls(folder, {key: keys[key] for key in wanted}, latents, firings)


def model_place(cell: LatentFolder, split: Split) -> str:
    """Return the folder of a cell's tokenizer and, if it has one, model, for transformers.

    The name of a subject means nothing to other programs, or something else as a hub id.
    Activations without a model, and variants without weights of their own, have only the tokenizer
    of the corpus.

    Returns:
        An absolute path; empty if there is neither.
    """
    root = cell.folder.absolute().parents[len(cell.keys) + 1]
    model = (root / paths.RECIPE.format(**cell.keys)).parent
    tokenizer = split.manifest.absolute().parent.with_name("tokenizer")
    for folder in (model, tokenizer):
        if (folder / "tokenizer.json").is_file():
            return str(folder)
    return ""


def corpus_files(cells: Sequence[LatentFolder]) -> tuple[Path, Path]:
    """Find the `eval` manifest and the tokenizer of the corpus of all cells.

    They are looked up in the study's `results/run_config.yaml`. Raises a `UserError` if the cells
    are in no study or in several, or their corpora differ.
    """
    found = set()
    for cell in cells:
        folder = cell.folder.absolute()
        root = folder.parents[len(cell.keys) + 1]
        file = root / paths.RUN_CONFIG
        try:
            config = read_yaml(file)
            found.add((root, config["subjects"][cell.keys["subject"]]["corpus"]))
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: does not name the corpus of {cell.folder} ({error!r}); give --tokens "
                f"and, for neuronpedia, --tokenizer"
            ) from None
    if len(found) > 1:
        raise UserError("--latents: different studies or corpora; export each separately")
    ((root, corpus),) = found
    manifest = paths.CORPUS_MANIFEST.format(corpus=corpus, split="eval")
    return root / manifest, root / paths.TOKENIZER_FILE.format(corpus=corpus)


@contextmanager
def whole_folder(output: Path, cells: Sequence[LatentFolder], split: Split) -> Iterator[Path]:
    """Provide a folder to write the cells to, which becomes `output` on success.

    Raises a `UserError` if the cells have another number of tokens than the split, `output` exists,
    or the disk is full.
    """
    for cell in cells:
        covered = tables.read_table(
            cell.folder / "coverage.parquet", tables.cell_schema("coverage")
        )
        n_tokens = covered["n_tokens"][0].as_py()
        if n_tokens != split.n_tokens:
            raise UserError(
                f"{cell.folder}: latents of {n_tokens} tokens, but {split.manifest} has "
                f"{split.n_tokens}"
            )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output: {output} already exists; name a new folder")
    with empty_folder(output.with_name(f".{output.name}.partial")) as folder:
        try:
            yield folder
            os.replace(folder, output)
        except OSError as error:
            raise UserError(f"{output}: cannot be written: {error.strerror or error}") from None
