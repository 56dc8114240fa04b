"""Makes a dictionary from another SAE, without training."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from nullsae.activations.store import SiteReader
from nullsae.core.devices import device_of, exact_device
from nullsae.core.errors import UserError
from nullsae.core.files import content_key
from nullsae.core.memory import give_back
from nullsae.core.randomness import torch_generator
from nullsae.jobs.saes import DeriveSaeParams
from nullsae.sae.derivation import derive
from nullsae.sae.files import load_sae
from nullsae.sae.train_sae import finish_without_steps
from nullsae.sae.training_run import Cell

logger = logging.getLogger(__name__)


def derive_sae(
    params: DeriveSaeParams,
    *,
    sae: Path,
    train_activations: Path,
    eval_activations: Path,
    output: Path,
) -> None:
    """Make one dictionary from an SAE: `sae.safetensors`, `history.parquet`, then `cfg.json`.

    `sae` is the `cfg.json` of the given SAE; the others are manifests of the activations that the
    dictionary is for. Means, covariances and rates use the first tokens of `sae_train`, which are
    in random order; L0 is compared on tokens of `eval`. The log has each gate.

    Raises:
        UserError: a file is missing, damaged or foreign, the SAE does not fit the site, or the
            dictionary failed a gate.
    """
    torch.set_num_threads(params.compute.threads)
    # Rotations and means are float64.
    device = exact_device(device_of(params.compute.device))
    given, described = load_sae(sae)
    expected = (params.activations_key, params.eval_activations_key)
    train, heldout = (
        SiteReader.open(split, params.keys.site, key=key)
        for split, key in zip((train_activations, eval_activations), expected, strict=True)
    )
    train.check()
    heldout.check()
    code = params.model_dump(mode="json")
    key = content_key([code, described.key, train.manifest["key"], heldout.manifest["key"]])
    cell = Cell(
        params.keys, params.recipe, output, params.seed, train, heldout, key, output, "float32"
    )
    if given.d_model != train.d_model:
        raise UserError(
            f"{cell.where}.from: the SAE has {given.d_model} dimensions, but {params.keys.site} "
            f"has {train.d_model}"
        )
    origin = params.recipe.origin
    generator = torch_generator(params.seed, "derive_sae", *params.keys.parts())
    sample, others = (
        next(reader.batches(size))[0].to(device)
        for reader, size in ((train, origin.sampled), (heldout, params.recipe.heldout_tokens))
    )
    made, gates = derive(origin, given.to(device), sample, others, generator, cell.where)
    for gate in gates:
        logger.info("gate %s: %s", gate["gate"], gate["detail"])
    n_sampled = len(sample)
    del given, sample, others
    give_back()
    output.mkdir(parents=True, exist_ok=True)
    finish_without_steps(cell, made, tokens=n_sampled)
