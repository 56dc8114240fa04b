"""Entry point: a sweep of toy SAEs over sparsity coefficients, and their measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullsae.core.devices import device_of, exact_device
from nullsae.core.errors import UserError
from nullsae.core.randomness import torch_generator
from nullsae.jobs.toy import TrainToyParams
from nullsae.tables import write_table
from nullsae.tables.toy import SWEEP
from nullsae.toy.data import Samples, make_samples
from nullsae.toy.measures import MEASURES, evaluate, explained_variance, mmcs, norms, sparsity
from nullsae.toy.training import Weights, standardize, start_weights, train_together


def train_toy(
    params: TrainToyParams, output: Path, *, progress: Callable[[int, int, float], None]
) -> None:
    """Train one SAE per coefficient on one kind of data, and write a row for each.

    Raises:
        UserError: a file of word vectors is invalid, or the device does not exist.
    """
    write_table(output, sweep(params, progress=progress), SWEEP)


def sweep(
    params: TrainToyParams,
    *,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> list[dict[str, Any]]:
    """Return the rows of one job, in the order of the coefficients."""
    torch.set_num_threads(params.compute.threads)
    device = device_of(params.compute.device)
    keys, settings = params.keys, params.training
    samples = make_samples(params)
    train, heldout = _split(samples.x, params)
    n_latents = keys.expansion * train.shape[1]
    # The same start for all data of a source, so that nothing else differs.
    key = ("toy_start", keys.source, keys.expansion, keys.seed)
    start = start_weights(train.shape[1], n_latents, torch_generator(params.seed, *key))

    def order(epoch: int) -> Tensor:
        generator = torch_generator(params.seed, "toy_order", keys.source, keys.seed, epoch)
        return torch.randperm(len(train), generator=generator)

    coefficients = settings.l1_coefficients
    trained = train_together(
        train.to(device), start, coefficients, settings, order=order, progress=progress
    )
    # Measured in float64.
    trained, x = trained.to(exact_device(device)), heldout.to(exact_device(device))
    scaled = standardize(x)
    of_data = sparsity(norms(heldout), heldout.shape[1])  # in the vectors' own basis
    own = {
        **{"n_latents": n_latents, "d_input": train.shape[1]},
        **{"n_train": len(train), "n_heldout": len(heldout)},
        "explained_variance_of_mean": explained_variance(x, scaled.mean.expand_as(x)),
        "true_l0": samples.mean_active if samples.directions is not None else None,
        **{f"data_{name}": of_data[name] for name in MEASURES},
    }
    return [
        {
            "l1_coefficient": coefficient,
            **own,
            **evaluate(trained.one(index), scaled, x),
            **_recovered(samples, trained.decoder[index].cpu(), start),
        }
        for index, coefficient in enumerate(coefficients)
    ]


def _split(x: Tensor, params: TrainToyParams) -> tuple[Tensor, Tensor]:
    """Split samples at random into those to train on and those to measure on."""
    keys = params.keys
    n_heldout = max(2, round(params.training.heldout_share * len(x)))
    if n_heldout >= len(x):
        raise UserError(
            f"config: toy.training.heldout_share: {params.training.heldout_share:g} of {len(x)} "
            f"samples leaves none to train on"
        )
    generator = torch_generator(params.seed, "toy_split", keys.source, keys.seed)
    order = torch.randperm(len(x), generator=generator)
    return x[order[n_heldout:]], x[order[:n_heldout]]


def _recovered(samples: Samples, decoder: Tensor, start: Weights) -> dict[str, float | None]:
    """Return mean max cosines of decoder rows to true features or images, before and after."""
    return {
        f"{name}{when}": None if true is None else mmcs(true, rows)
        for name, true in (("mmcs", samples.directions), ("image_mmcs", samples.images))
        for when, rows in (("", decoder), ("_at_start", start.decoder[0]))
    }
