"""An architecture and a dictionary of another package, used like those of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PositiveFloat
from torch import Tensor

from nullsae.cli.describe import describe
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.parse import config_schema, parse_section
from nullsae.config.saes import ARCHITECTURES, Sae
from nullsae.core.errors import UserError
from nullsae.core.registry import Registry
from nullsae.jobs.saes import TrainSaeParams
from nullsae.sae.architectures.base import Losses, TrainedSae, square_sum, variance
from nullsae.sae.architectures.standard import dense_gradients
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.dictionaries.signed import Identity
from nullsae.sae.files import load_sae
from nullsae.sae.kernels import positive
from nullsae.sae.train_sae import train_sae
from small_chain import train_params, write_site

D, WIDTH = 8, 24


class SquaredSae(Sae):
    """Pays for the squares of its codes, which have a factor per latent when it is finished."""

    name, coding, own_tensors = "squared", True, ("ceiling",)

    l2_coefficient: PositiveFloat = 0.1
    """Weight of the squared codes."""

    @classmethod
    def training(cls) -> type[TrainedSae[Any]]:
        return Squared

    @classmethod
    def select(cls, sae: Autoencoder, pre: Tensor) -> tuple[Tensor, Tensor]:
        return positive(torch.minimum(pre.relu(), sae.own["ceiling"]))


class Squared(TrainedSae[SquaredSae]):
    """loss = FVU + l2_coefficient * sum of squared codes / variance."""

    def gradients(self, x: Tensor, dead: Tensor) -> tuple[dict[str, Tensor], Losses]:
        centred, weight = x - self.b_dec, self.recipe.l2_coefficient
        codes = torch.addmm(self.b_enc, centred, self.w_enc.t()).relu_()
        scale = variance(x)
        residual = torch.addmm(self.b_dec, codes, self.w_dec) - x
        out = residual * (2.0 / scale)
        by_pre = (out @ self.w_dec.t() + codes * (2.0 * weight / scale)) * (codes > 0)
        fvu, penalty = square_sum(residual) / scale, weight * square_sum(codes) / scale
        found = dense_gradients(self, centred, by_pre, codes, out)
        return found, Losses(float(fvu), 0.0, float(penalty), (codes > 0).any(dim=0))

    def autoencoder(self) -> Autoencoder:
        ceiling = torch.full_like(self.b_enc, 100.0)
        return Autoencoder.of({**self.parameters, "ceiling": ceiling}, SquaredSae.name, None)


class Shifted(Identity):
    """The neuron basis, in another order."""

    name = "shifted"
    caption = "The neuron basis, moved on by {by}."

    by: int = 1

    def directions(self, reader: Any, batches: Any) -> tuple[Tensor, Tensor]:
        rows, mean = super().directions(reader, batches)
        return rows.roll(self.by, 0), mean


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register both as if another package had entry points for them."""
    for registry, thing in ((ARCHITECTURES, SquaredSae), (DICTIONARIES, Shifted)):
        kept: Registry[Any] = registry
        monkeypatch.setitem(kept._found, thing.name, thing)


def made(folder: Path, sae: Sae) -> tuple[Autoencoder, Any]:
    """Train on random activations, and read the result from its files."""
    g = torch.Generator().manual_seed(0)
    write_site(folder / "train", torch.randn(600, D, generator=g) + 1.0, [300, 300])
    write_site(folder / "eval", torch.randn(200, D, generator=g) + 1.0, [200])
    # As a job gets them: as text.
    given = train_params(sae).model_dump(mode="json")
    params = parse_section(TrainSaeParams, given, where="--params")
    train_sae(
        params,
        train_activations=folder / "train/manifest.json",
        eval_activations=folder / "eval/manifest.json",
        output=folder / "sae",
        work=folder / "work",
    )
    return load_sae(folder / "sae/cfg.json")


def test_another_architecture_is_parsed_trained_saved_and_loaded(tmp_path: Path) -> None:
    keys = {"architecture": "squared", "l2_coefficient": 0.2, "n_latents": WIDTH}
    keys |= {"batch_tokens": 64, "heldout_tokens": 100, "evaluate_every_steps": 2}
    recipe = parse_section(Sae, keys, where="saes.one")
    assert isinstance(recipe, SquaredSae)
    assert recipe.l2_coefficient == 0.2
    sae, described = made(tmp_path, recipe)
    assert described.architecture == "squared"
    assert described.training == recipe.model_dump(mode="json")
    # Weights on disk are for activations as captured.
    ceiling = sae.own["ceiling"]
    assert ceiling.tolist() == pytest.approx([float(ceiling[0])] * WIDTH)
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1)) + 1.0
    values, indices = sae.encode(x)
    dense = torch.zeros(50, WIDTH).scatter(1, indices, values)
    expected = ((x - sae.b_dec) @ sae.w_enc.T + sae.b_enc).relu().clamp(max=float(ceiling[0]))
    torch.testing.assert_close(dense, expected)


def test_another_dictionary_is_fitted_with_its_own_keys(tmp_path: Path) -> None:
    recipe = Sae.of(dictionary="shifted", by=3, k=2, heldout_tokens=100)
    assert recipe.origin.text() == "The neuron basis, moved on by 3."
    sae, described = made(tmp_path, recipe)
    assert (described.dictionary, described.architecture) == ("shifted", "topk")
    assert torch.equal(sae.w_dec[:D], torch.eye(D).roll(3, 0))


def test_keys_of_another_package_are_known_everywhere() -> None:
    for key, kind in (
        ("l2_coefficient", "architecture squared, not"),
        ("by", "dictionary shifted"),
    ):
        with pytest.raises(UserError, match=f"saes.one: {key} is for {kind}"):
            parse_section(Sae, {"n_latents": WIDTH, key: 1}, where="saes.one")
        assert f'"{key}"' in config_schema()
        assert any(line.startswith(f"saes.{key} ") for line in describe(TrainSaeParams))
    with pytest.raises(UserError, match="standard, squared"):
        parse_section(Sae, {"n_latents": WIDTH, "architecture": "other"}, where="saes.one")
