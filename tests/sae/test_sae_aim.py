"""Nulls of an SAE made elsewhere have its L0."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import test_sae_dictionaries as made
import torch
from torch import Tensor

from nullsae.config.parse import parse_config
from nullsae.config.saes import Sae
from nullsae.core.errors import UserError
from nullsae.core.files import read_json
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.sae_inputs import given_saes
from nullsae.jobs.saes import Aim, SaeCell, train_sae
from nullsae.sae import train_sae as training
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.sae.initialization import initialize
from nullsae.sae.trainer import Trainer
from small_chain import Chain, train_params
from small_config import SMALL_CONFIG

SITE = made.SITE


def counted(sae: Autoencoder, x: Tensor) -> float:
    """Return the L0 of a JumpReLU SAE by its definition."""
    pre = (x - sae.b_dec).double() @ sae.w_enc.double().T + sae.b_enc.double()
    active = pre > sae.own["threshold"].double().clamp_min(0)
    return float(active.sum(dim=1).double().mean())


def make(chain: Chain, folder: Path, sae: Sae, aim: Aim, given: Path | None, **keys: Any) -> Path:
    """Make a null of the SAE made elsewhere, aimed at its L0; return its folder."""
    params = train_params(
        sae,
        keys=ModelKeys(subject="tiny", **({"variant": "rerandomized", "draw": 0} | keys)),
        saes={"null": sae},
        cells=(SaeCell(site=SITE, sae="null", seed=0, aim=aim),),
    )
    training.train_sae(
        params,
        train_activations=chain.train_activations,
        eval_activations=chain.eval_activations,
        train_tokens=chain.train_tokens,
        eval_tokens=chain.eval_tokens,
        output=folder,
        work=folder / "work",
        given=given,
    )
    return folder


@pytest.fixture
def theirs(chain: Chain, tmp_path: Path) -> tuple[Aim, Path, float]:
    """Return how to aim at a foreign JumpReLU SAE, its cell of `trained`, and its L0."""
    sae = made.given_sae()
    path = made.foreign(tmp_path / "given", sae)
    folder = tmp_path / "theirs/seed=0"
    made.make(chain, folder, made.recipe("learned", pretrained=path))
    x, _ = made.activations(chain, "eval")
    l0 = counted(sae, x)
    assert made.history(folder)[-1]["heldout_l0"] == pytest.approx(l0, abs=1e-3)
    key = read_json(folder / "cfg.json", rebuild="")["key"]
    aim = Aim(sae="theirs", seed=0, pretrained=path, heldout_tokens=4096, key=key)
    return aim, tmp_path / "{sae}/seed={seed}/cfg.json", l0


def test_nulls_of_an_sae_without_k_keep_as_many_latents_as_it_has_active(
    chain: Chain, tmp_path: Path, theirs: tuple[Aim, Path, float]
) -> None:
    aim, given, l0 = theirs
    assert abs(l0 - made.K) > 1  # the L0 without aiming
    plain = {"batch_tokens": 128, "lr": 2e-2, "heldout_tokens": 4096}
    own = Sae.of(pretrained=aim.pretrained, **plain)
    null, config = load_sae(make(chain, tmp_path / "null", own, aim, given) / "cfg.json")
    assert (config.architecture, config.n_latents, null.k) == ("topk", 20, round(l0))
    # Another recipe on the trained model itself, where the L0 is measured rather than read.
    pca = Sae.of(dictionary="pca", match_l0_of="theirs", heldout_tokens=4096)
    folder = make(chain, tmp_path / "pca", pca, aim, None, variant="trained")
    assert load_sae(folder / "cfg.json")[0].k == round(l0)


def test_another_sae_than_the_configs_is_refused(
    chain: Chain, tmp_path: Path, theirs: tuple[Aim, Path, float]
) -> None:
    aim, given, _ = theirs
    own = Sae.of(pretrained=aim.pretrained, batch_tokens=128)
    with pytest.raises(UserError, match="not the SAE that the config names; rebuild it with: "):
        make(chain, tmp_path / "null", own, aim.model_copy(update={"key": "older"}), given)
    with pytest.raises(UserError, match=r"--given: missing; config: saes\.null is aimed"):
        make(chain, tmp_path / "null", own, aim, None)


def sparse(n: int, seed: int) -> Tensor:
    """Return sums of a few of 48 directions in 16 dimensions, of mean norm 4."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    active = (torch.rand(n, 48, generator=g) < 0.08) * torch.rand(n, 48, generator=g)
    x = active @ directions + 0.2 * torch.randn(n, 16, generator=g)
    return x * 4 / x.norm(dim=1).mean()


@pytest.mark.parametrize("architecture", ["standard", "gated"])
@pytest.mark.parametrize("l0", [3.3, 11.0])
def test_a_penalty_is_adjusted_until_as_many_latents_are_active(
    architecture: str, l0: float
) -> None:
    recipe = Sae.of(architecture=architecture, n_latents=64, batch_tokens=256).with_l0(l0)
    start = initialize(sparse(2048, 1), n_latents=64, k=8, generator=torch.Generator())
    trainer = Trainer(recipe, 300, start, k=8)
    for step in range(300):
        trainer.train_step(sparse(256, 2 + step))
    codes, _ = trainer.sae.encode(sparse(8192, 1000))
    assert float((codes > 0).sum()) / 8192 == pytest.approx(l0, rel=0.05)


def test_a_missed_l0_is_said(
    chain: Chain,
    tmp_path: Path,
    theirs: tuple[Aim, Path, float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    aim, given, l0 = theirs
    own = Sae.of(architecture="standard", pretrained=aim.pretrained, batch_tokens=128, lr=1e-6)
    with caplog.at_level(logging.WARNING):
        make(chain, tmp_path / "null", own, aim, given)
    (text,) = [record.getMessage() for record in caplog.records if "aimed" in record.getMessage()]
    assert f"not within 5% of the {l0:.3g} that it is aimed at" in text


# --- the jobs -----------------------------------------------------------------------------------


def study(path: str) -> dict[str, Any]:
    saes = {
        "theirs": {"pretrained": path, "seeds": [0, 1]},
        "pca": {"dictionary": "pca", "match_l0_of": "theirs"},
        "own": {"k": 4, "n_latents": 32},
    }
    return {**SMALL_CONFIG, "saes": saes, "variants": ["trained", "rerandomized"]}


def keys(variant: str, sae: str) -> dict[str, str]:
    config = {"subject": "small", "variant": variant, "draw": "0", "site": "resid_post.0"}
    return {**config, "sae": sae, "seed": "0"}


def test_a_job_reads_the_sae_that_it_is_aimed_at_and_no_other_does(tmp_path: Path) -> None:
    path = made.foreign(tmp_path / "given", made.given_sae())
    config = parse_config(study(path))
    file = (
        "results/saes/subject=small/variant=trained/draw=0/site=resid_post.0/sae=theirs/seed=0/"
        "cfg.json"
    )
    for sae, variant, read in (
        ("theirs", "rerandomized", [file]),
        ("pca", "rerandomized", [file]),
        ("theirs", "trained", []),
        ("pca", "trained", []),
        ("own", "rerandomized", []),
    ):
        assert given_saes(config, [keys(variant, sae)]) == read, (sae, variant)
        (cell,) = train_sae(config, keys(variant, sae)).cells
        aimed = (sae, variant) not in (("theirs", "trained"), ("own", "rerandomized"))
        assert (cell.aim is not None) == aimed
    (cell,) = train_sae(config, keys("rerandomized", "theirs")).cells
    given = train_sae(config, keys("trained", "theirs"))
    assert cell.aim is not None
    assert cell.aim.key == given.cell_key(given.cells[0], given.code(given.cells[0]))


def test_nulls_are_made_again_where_the_sae_is_another(tmp_path: Path) -> None:
    def key(variant: str, sae: str) -> str:
        params = train_sae(parse_config(study(path)), keys(variant, sae))
        (cell,) = params.cells
        return params.cell_key(cell, params.code(cell))

    path = made.foreign(tmp_path / "given", made.given_sae())
    cells = [("rerandomized", "theirs"), ("rerandomized", "pca"), ("trained", "pca")]
    before = [key(*cell) for cell in (*cells, ("trained", "own"))]
    made.foreign(tmp_path / "given", made.given_sae(k=3))
    after = [key(*cell) for cell in (*cells, ("trained", "own"))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"dictionary": "pca", "match_l0_of": "own"}, "'own' is not one of the pretrained SAEs"),
        ({"dictionary": "pca", "k": 3, "match_l0_of": "theirs"}, "give either k or match_l0_of"),
        ({"dictionary": "token_lookup", "match_l0_of": "theirs"}, "the L0 of 'token_lookup' is 1"),
        ({"pretrained": "some/sae", "match_l0_of": "theirs"}, "has an L0 of its own"),
    ],
)
def test_an_l0_that_cannot_be_matched_is_refused(recipe: dict[str, Any], text: str) -> None:
    given = study("some/sae")
    with pytest.raises(UserError, match="match_l0_of") as caught:
        parse_config(given | {"saes": given["saes"] | {"bad": recipe}})
    assert text in str(caught.value)
