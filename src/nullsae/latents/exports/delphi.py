"""The latent cache of EleutherAI's delphi 0.1.3, which its `LatentDataset` reads.

   OUTPUT/<subject>_<variant>_<draw>_<sae>_<seed>/latents/<site>/<first>_<last>.safetensors
                                                                 config.json

with the keys `locations` [n, 3] (context, offset in it, latent - first), `activations` [n] and
`tokens` [n_contexts, context_tokens]. The files of a site contain consecutive ranges of latents.
Only the sampled latents have firings in them. Activations stay float32, which delphi's reader
accepts, while its own cache rounds them to float16. `model_name`, from which delphi loads the
tokenizer, is the folder of the variant below `results/models`, or of the corpus' tokenizer if there
is none.

With an explainer, a run has `explanations/<site>_latent<n>.txt` and, for each scorer,
`scores/<scorer>/<site>_latent<n>.txt`, as delphi writes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from nullsae.core.files import write_json
from nullsae.latents.exports.cell import LatentFolder, model_place, whole_folder
from nullsae.latents.exports.explained import Explained
from nullsae.latents.split import Split
from nullsae.latents.store import offsets_of, ranges

# Firings per file; a reader loads all of them.
FILE_FIRINGS = 2**23


def export_delphi(
    cells: Sequence[LatentFolder],
    split: Split,
    output: Path,
    explained: Sequence[Explained] = (),
) -> None:
    """Write the firings of the sampled latents of each cell into a new folder `output`.

    `explained` are the explanations of each cell; none by default.

    Cells that differ only in their site share a folder. `split` is the split on which they were
    collected. Raises a `UserError` if the latents are not of its tokens, or the output cannot be
    written.
    """
    with whole_folder(output, cells, split) as folder:
        for cell in cells:
            _write_cell(cell, split, folder / _run(cell) / "latents" / cell.keys["site"])
        for cell, said in zip(cells, explained, strict=bool(explained)):
            _write_explained(said, folder / _run(cell), cell.keys["site"])


def _run(cell: LatentFolder) -> str:
    return "_".join(cell.keys[key] for key in ("subject", "variant", "draw", "sae", "seed"))


def _write_explained(said: Explained, run: Path, site: str) -> None:
    for latent, text in said.texts.items():
        _write_json(run / "explanations" / f"{site}_latent{latent}.txt", text)
    for scorer, judged in said.judged.items():
        for latent, one in judged.items():
            _write_json(run / "scores" / scorer / f"{site}_latent{latent}.txt", one.windows)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _write_cell(cell: LatentFolder, split: Split, folder: Path) -> None:
    folder.mkdir(parents=True)
    firings = cell.firings
    n_latents = cell.latents.num_rows
    counts = np.zeros(n_latents, dtype=np.int64)
    counts[firings.latents] = np.diff(firings.offset)
    largest = max(split.n_tokens // split.context_tokens, split.context_tokens, n_latents)
    small = np.uint16 if largest <= 2**16 else np.uint32
    found = list(ranges(offsets_of(counts), FILE_FIRINGS))
    for first, end in found:
        inside = firings.latents[(firings.latents >= first) & (firings.latents < end)]
        locations, activations = [np.zeros((0, 3), dtype=small)], [np.zeros(0, np.float32)]
        for latent in inside.tolist():
            position, value = firings.of(latent)
            context, offset = np.divmod(position.astype(np.int64), split.context_tokens)
            column = np.full(len(position), latent - first)
            locations.append(np.stack([context, offset, column], axis=1).astype(small))
            activations.append(value)
        save_file(
            {
                "locations": np.concatenate(locations),
                "activations": np.concatenate(activations),
                "tokens": np.array(split.ids).reshape(-1, split.context_tokens),
            },
            folder / f"{first}_{end - 1}.safetensors",
        )
    write_json(
        folder / "config.json",
        {
            **dict.fromkeys(("dataset_repo", "dataset_name", "dataset_column"), ""),
            "dataset_split": "eval",
            "batch_size": 1,
            "cache_ctx_len": split.context_tokens,
            "n_tokens": split.n_tokens,
            "n_splits": len(found),
            "model_name": model_place(cell, split),
        },
    )
