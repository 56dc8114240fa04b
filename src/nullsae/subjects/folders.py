"""Folders of variants on disk, readable by other programs without misunderstanding.

A folder contains a Hugging Face checkpoint, its tokenizer, and `recipe.json`. A variant that is not
defined by weights gets no copy of the trained weights, which other programs would take for the
variant. Its `README.md` describes which weights it runs on and what it changes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullsae.config.randomization import Randomization, Settings
from nullsae.config.variants import VARIANTS, Variant
from nullsae.core.errors import UserError
from nullsae.core.files import (
    checksum,
    read_json,
    rebuild_command,
    room_for,
    verify,
    write_json,
    write_text,
)
from nullsae.subjects.families import text_config

log = logging.getLogger(__name__)

README = "README.md"
CHECKPOINT_SUFFIXES = {".safetensors", ".json", ".py"}
# The class that takes a tokenizer.json as it is, by a name that transformers 4 also knows.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def save_subject(
    model: Any,
    folder: Path,
    recipe: Mapping[str, Any],
    *,
    tokenizer: Path | None = None,
    weights: Path | None = None,
) -> None:
    """Write the folder of a variant, and last its `recipe.json` with a checksum per file.

    A folder without a recipe is unfinished.

    Args:
        model: the variant's Hugging Face model.
        folder: where it goes; remains of another model there are deleted.
        recipe: what it was made from.
        tokenizer: a folder with the tokenizer of the corpus that it reads; None if there is none.
        weights: `recipe.json` of the variant whose weights it runs on; None if it has its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in list(folder.iterdir()):
        if old.suffix in CHECKPOINT_SUFFIXES or ".safetensors" in old.name or old.name == README:
            old.unlink()
    own: dict[str, Any] = {}
    if weights is None:
        with room_for(folder):
            model.save_pretrained(folder)
    else:
        own["weights"] = {
            "recipe": Path(os.path.relpath(weights, folder)).as_posix(),
            "files": read_json(weights, rebuild=rebuild_command(weights))["files"],
        }
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    if text := _readme(recipe, own.get("weights")):
        write_text(folder / README, text)
    config = text_config(model)
    files = [p for p in folder.iterdir() if p.suffix in CHECKPOINT_SUFFIXES]
    own |= {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "vocab_size": config.vocab_size,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "files": {file.name: checksum(file) for file in files},
    }
    write_json(folder / "recipe.json", {**recipe, **own})


def save_tokenizer(source: Path, folder: Path) -> None:
    """Put a tokenizer into a model's folder, where `AutoTokenizer` finds it next to `config.json`.

    It is saved under the class that takes a `tokenizer.json` as it is, or else under its own. The
    classes of model types have their own rules for splitting text, and transformers insists on some
    of them. A warning tells if it gives other ids for a model of this type in any case.

    Args:
        source: a tokenizer's folder, as transformers writes it.
        folder: the model's.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    with room_for(folder):
        # Everything in two files, because older versions do not know a third one with chat
        # templates.
        tokenizer.save_pretrained(folder, save_jinja_files=False)
    file = folder / "tokenizer_config.json"
    settings, own = (_settings(where) for where in (folder, source))
    wanted = tokenizer.backend_tokenizer.to_str()
    for name in dict.fromkeys((TOKENIZER_CLASS, own.get("tokenizer_class", TOKENIZER_CLASS))):
        write_json(file, {**settings, "tokenizer_class": name})
        if _auto_tokenizer(folder) == wanted:
            return
    write_json(file, {**settings, "tokenizer_class": TOKENIZER_CLASS})
    log.warning(
        "warning: %s: for a model of this type, AutoTokenizer does not give the corpus' token ids; "
        "use transformers.%s.from_pretrained",
        *(folder, TOKENIZER_CLASS),
    )


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    return found


def _auto_tokenizer(folder: Path) -> str | None:
    """Return what `AutoTokenizer` makes of a model's folder, as JSON; None if it fails."""
    from transformers import AutoTokenizer

    try:
        found: str = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    except Exception:  # anything that a class of another model type raises
        return None
    return found


def read_recipe(recipe_file: Path) -> tuple[dict[str, Any], Path]:
    """Read a variant's recipe and the folder of the weights that it runs on, verifying each file.

    Raises:
        UserError: a file is missing or damaged, or the weights are no longer those that the variant
            was made for; names it and the command that rebuilds it.
    """
    rebuild = rebuild_command(recipe_file)
    recipe: dict[str, Any] = read_json(recipe_file, rebuild=rebuild)
    for name, expected in recipe["files"].items():
        verify(recipe_file.parent / name, expected, rebuild=rebuild)
    if (weights := recipe.get("weights")) is None:
        return recipe, recipe_file.parent
    other = Path(os.path.normpath(recipe_file.parent / weights["recipe"]))
    found, folder = read_recipe(other)
    if found["files"] != weights["files"]:
        raise UserError(
            f"{recipe_file}: made for other weights than those of {other}; rebuild it with: "
            f"{rebuild}"
        )
    return recipe, folder


def _readme(recipe: Mapping[str, Any], weights: Mapping[str, Any] | None) -> str | None:
    """Describe what another program cannot see in a folder; None if weights define the variant."""
    variant = VARIANTS[recipe["variant"]] if "variant" in recipe else Variant
    if not variant.acts_on_passes():
        return None
    given = {key: recipe.get(key) for key in Settings.model_fields}
    described = variant.describe(Randomization(**{k: v for k, v in given.items() if v is not None}))
    if weights is None:
        held = (
            "The weights here are only a part of this variant: another program that loads them\n"
            "does not run it."
        )
    else:
        held = (
            f"There are no weights here. This variant runs on those of\n"
            f"[{Path(weights['recipe']).parent.as_posix()}]({weights['recipe']}). Another program\n"
            f"that loads that folder runs the model there, not this variant."
        )
    return (
        f"# {recipe['variant']}, draw {recipe['draw']}\n\n{held}\n\n"
        f"What it does in each forward pass: {described}\n\n"
        f"Its activations, losses and gates come from such passes. In Python:\n\n"
        f"```python\n"
        f"from nullsae.core.devices import device_of\n"
        f"from nullsae.subjects.loading import load_subject\n\n"
        f'subject = load_subject(Path("recipe.json"), device_of("auto"))\n'
        f"```\n"
    )
