from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae import tables
from nullsae.activations.store import SiteReader
from nullsae.config.latents import Latents
from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import load_tokens
from nullsae.jobs.keys import ModelKeys
from nullsae.sae.architectures.base import Losses
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.dictionaries.signed import principal_components
from nullsae.sae.dictionaries.stepwise import keep_close
from nullsae.sae.dictionaries.token_lookup import token_lookup
from nullsae.sae.files import SaeConfig, load_sae
from nullsae.sae.initialization import initialize
from nullsae.sae.token_means import fit_token_means, token_ids
from nullsae.sae.train_sae import fit_dictionary, train_sae
from nullsae.sae.trainer import Trainer, evaluate
from nullsae.sae.training_run import INIT_TOKENS
from refusing import refused
from run_stages import collected, evaluated
from small_chain import (
    CONTEXT,
    D_MODEL,
    VOCAB,
    Chain,
    all_rows,
    cell,
    train_params,
    write_corpus,
    write_sae,
    write_site,
)

SITE = "resid_post.1"
WIDTH, K = 48, 4
TRAINED = ("learned", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder")


def recipe(dictionary: Any, **keys: Any) -> Sae:
    plain: dict[str, Any] = {"batch_tokens": 128, "lr": 2e-2, "heldout_tokens": 4096}
    if dictionary in TRAINED and "pretrained" not in keys:
        plain |= {"n_latents": WIDTH}
    if dictionary != "token_lookup" and "pretrained" not in keys:
        plain |= {"k": K}
    return Sae.of(dictionary=dictionary, **{**plain, **keys})


def make(
    chain: Chain, folder: Path, sae: Sae, variant: Any = "trained", **keys: Any
) -> tuple[Autoencoder, SaeConfig]:
    """Run `train_sae` on the chain's activations and read what it wrote."""
    params = train_params(sae, keys=ModelKeys(subject="tiny", variant=variant, draw=0))
    arguments: dict[str, Any] = {
        "train_activations": chain.train_activations,
        "eval_activations": chain.eval_activations,
        "train_tokens": chain.train_tokens,
        "eval_tokens": chain.eval_tokens,
        "output": folder,
        "work": folder / "work",
        **keys,
    }
    train_sae(params, **arguments)
    return load_sae(folder / "cfg.json")


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the training curve without timings."""
    table = tables.read_table(folder / "history.parquet", tables.cell_schema("history"))
    table = table.drop_columns(list(tables.MEASURED["history"]))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def activations(chain: Chain, split: str) -> tuple[Tensor, Tensor]:
    """Return activations and token ids of a split, in stored order."""
    files = {
        "sae_train": (chain.train_activations, chain.train_tokens),
        "eval": (chain.eval_activations, chain.eval_tokens),
    }
    manifest, tokens = files[split]
    x, position = all_rows(manifest, SITE)
    return x, torch.from_numpy(load_tokens(tokens).input_ids).flatten().long()[position]


def refusal(*arguments: Any, **keys: Any) -> str:
    return refused(make, *arguments, **keys)


# --- frozen parts -----------------------------------------------------------------------------


def initial(chain: Chain) -> tuple[Autoencoder, float]:
    """Return the initial weights of `make` and the factor on the activations, by their recipe."""
    reader = SiteReader.open(chain.train_activations, SITE)
    sample = reader.stored(0)[0][:INIT_TOKENS]
    scale = math.sqrt(D_MODEL) / float(sample.norm(dim=1).mean())
    generator = torch_generator(0, "sae_init", *cell(SITE).parts())
    return initialize(sample * scale, n_latents=WIDTH, k=K, generator=generator), scale


@pytest.mark.parametrize(
    ("dictionary", "frozen"),
    [
        ("learned", set()),
        ("frozen_decoder", {"W_dec"}),
        ("soft_frozen_decoder", set()),
        ("frozen_encoder", {"encoder.weight", "encoder.bias", "b_dec"}),
    ],
)
def test_only_the_frozen_parts_stay_untrained(
    chain: Chain, tmp_path: Path, dictionary: str, frozen: set[str]
) -> None:
    sae, config = make(chain, tmp_path, recipe(dictionary, epochs=3))
    assert (config.dictionary, config.architecture, config.k) == (dictionary, "topk", K)
    assert config.n_steps == 24
    start, scale = initial(chain)
    before = start.scaled(1.0 / scale).parameters()
    assert {name for name, t in sae.parameters().items() if torch.equal(t, before[name])} == frozen
    rows = history(tmp_path)
    assert rows[-1]["heldout_explained_variance"] > 0.2


def test_codes_of_a_frozen_encoder_stay_while_the_decoder_trains(
    chain: Chain, tmp_path: Path
) -> None:
    """If b_dec were trained, which the encoder subtracts, the codes would not be fixed."""
    sae, _ = make(chain, tmp_path, recipe("frozen_encoder", epochs=3))
    start, scale = initial(chain)
    x, _ = activations(chain, "eval")
    for found, expected in zip(sae.encode(x), start.scaled(1.0 / scale).encode(x), strict=True):
        assert torch.equal(found, expected)


def test_a_frozen_part_does_not_count_in_the_clipped_norm(chain: Chain) -> None:
    x, _ = activations(chain, "sae_train")
    for dictionary in TRAINED:
        start, scale = initial(chain)
        trainer = trainer_of(recipe(dictionary, grad_clip_norm=1e-3), start)
        trainer.train_step(x[:256] * scale)
        grads = [t.grad for t in trainer.trained.values()]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
        assert norm == pytest.approx(1e-3, rel=1e-2), dictionary
        for name, parameter in trainer.sae.parameters().items():
            assert (parameter.grad is None) == (name not in trainer.trained)


def test_auxk_is_off_only_where_the_encoder_is_frozen(chain: Chain) -> None:
    x, _ = activations(chain, "sae_train")
    for dictionary in TRAINED:
        start, scale = initial(chain)
        trainer = trainer_of(recipe(dictionary, dead_after_tokens=10), start)
        trainer.unfired_tokens += 10
        auxk = trainer.train_step(x[:256] * scale).auxk
        assert (auxk == 0.0) == (dictionary == "frozen_encoder"), dictionary


def trainer_of(sae: Sae, start: Autoencoder, n_steps: int = 100) -> Trainer:
    return Trainer(sae, n_steps, start, k=sae.kept)


# --- the soft constraint ----------------------------------------------------------------------


def unit_rows(seed: int, n: int, d: int) -> Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=1)


@given(
    seed=st.integers(0, 2**16),
    d=st.integers(2, 6),
    cosine=st.floats(0.01, 0.99),
    spread=st.floats(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_row_is_moved_to_the_nearest_point_of_its_cone(
    seed: int, d: int, cosine: float, spread: float
) -> None:
    n = 12
    start = unit_rows(seed, n, d)
    rows = F.normalize(start + spread * unit_rows(seed + 1, n, d), dim=1)
    kept = keep_close(rows, start, cosine)
    torch.testing.assert_close(kept.norm(dim=1), torch.ones(n, dtype=torch.float64))
    assert bool(((kept * start).sum(dim=1) >= cosine - 1e-12).all())
    inside = (rows * start).sum(dim=1) >= cosine
    assert torch.equal(kept[inside], rows[inside])
    # No unit row within the cone is nearer.
    for other_seed in range(30):
        direction = F.normalize(kept + 0.3 * unit_rows(other_seed, n, d), dim=1)
        allowed = (direction * start).sum(dim=1) >= cosine
        nearer = (direction - rows).norm(dim=1) < (kept - rows).norm(dim=1) - 1e-9
        assert not bool((allowed & nearer).any())


@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-6, 1e-4])
def test_rounding_near_the_opposite_of_a_start_stays_within_the_cone(distance: float) -> None:
    start = unit_rows(0, 1000, 4).float()
    rows = F.normalize(distance * unit_rows(1, 1000, 4).float() - start, dim=1)
    kept = keep_close(rows, start, 0.8)
    assert bool(((kept * start).sum(dim=1) >= 0.8 - 1e-6).all())
    torch.testing.assert_close(kept.norm(dim=1), torch.ones(1000))


@pytest.mark.parametrize("min_cosine", [0.8, 0.95])
def test_every_row_is_in_its_cone_after_every_step(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_cosine: float
) -> None:
    """After every step, even if a training was killed and resumed from its checkpoint."""
    start, _ = initial(chain)
    step, cosines = Trainer.train_step, []

    def watched(self: Trainer, x: Tensor) -> Losses:
        if self.step == 11 and len(cosines) == 11:
            raise KeyboardInterrupt
        losses = step(self, x)
        torch.testing.assert_close(self.sae.w_dec.norm(dim=1), torch.ones(WIDTH))
        cosines.append(F.cosine_similarity(self.sae.w_dec, start.w_dec, dim=1))
        return losses

    monkeypatch.setattr(Trainer, "train_step", watched)
    sae = recipe(
        "soft_frozen_decoder", epochs=3, min_decoder_cosine=min_cosine, checkpoint_every_steps=5
    )
    with pytest.raises(KeyboardInterrupt):
        make(chain, tmp_path, sae)
    make(chain, tmp_path, sae)
    assert len(cosines) == 11 + 14
    for found in cosines:
        assert float(found.min()) >= min_cosine - 1e-6
    # The constraint is active here, but rows may be inside.
    assert bool((cosines[-1] < min_cosine + 1e-6).any())
    assert bool((cosines[1] > min_cosine + 1e-3).any())


@pytest.mark.parametrize("dictionary", TRAINED)
def test_a_resumed_training_of_a_null_equals_an_uninterrupted_one(
    chain: Chain, tmp_path: Path, dictionary: str
) -> None:
    sae = recipe(dictionary, epochs=2, checkpoint_every_steps=3, dead_after_tokens=300)
    make(chain, tmp_path / "whole", sae)

    def kill(step: int, _steps: int, _loss: float | None) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(chain, tmp_path / "resumed", sae, progress=kill)
    steps: list[int] = []
    make(chain, tmp_path / "resumed", sae, progress=lambda step, *_: steps.append(step))
    assert steps == list(range(7, 17))
    for file in ("sae.safetensors", "cfg.json"):
        whole, resumed = tmp_path / "whole" / file, tmp_path / "resumed" / file
        assert whole.read_bytes() == resumed.read_bytes(), file
    assert history(tmp_path / "resumed") == history(tmp_path / "whole")


# --- principal components and the neuron basis ------------------------------------------------


def cloud(n: int = 700, d: int = 12) -> Tensor:
    """Return correlated activations with a strong dimension, far from zero."""
    g = torch.Generator().manual_seed(5)
    mix = torch.randn(d, d, generator=g) * torch.linspace(3, 0.1, d)
    x = torch.randn(n, d, generator=g) @ mix.T + 10 * torch.randn(d, generator=g)
    x[:, 3] = x[:, 3] * 20 + 500
    return x


def fitted(folder: Path, x: Tensor, sae: Sae) -> Autoencoder:
    reader = SiteReader.open(write_site(folder, x, [300, len(x) - 300]), SITE)
    return fit_dictionary(sae, reader, None, where="config: saes.x")


@pytest.mark.parametrize("dictionary", ["pca", "identity"])
def test_all_directions_reconstruct_perfectly(tmp_path: Path, dictionary: str) -> None:
    x = cloud()
    sae = fitted(tmp_path, x, recipe(dictionary, k=12))
    assert sae.n_latents == 24
    values, indices = sae.encode(x)
    torch.testing.assert_close(sae.decode(values, indices), x, rtol=2e-6, atol=2e-4)
    assert evaluate(sae, x)["heldout_explained_variance"] > 1 - 1e-9
    assert bool((values >= 0).all())
    # A direction and its opposite never fire together.
    assert all(len(set(row)) == 12 for row in (indices % 12).tolist())


@pytest.mark.parametrize("n_components", [1, 5, 12])
def test_principal_components_explain_their_share(tmp_path: Path, n_components: int) -> None:
    x = cloud()
    sae = fitted(tmp_path, x, recipe("pca", k=n_components, n_components=n_components))
    assert sae.n_latents == 2 * n_components
    spectrum = np.linalg.eigvalsh(np.cov(x.double().numpy().T, bias=True))[::-1]
    share = spectrum[:n_components].sum() / spectrum.sum()
    explained = evaluate(sae, x)["heldout_explained_variance"]
    assert explained == pytest.approx(share, abs=1e-6)
    # Strongest first, and the opposites in the same order.
    along = ((x - x.mean(dim=0)).double() @ sae.w_dec[:n_components].double().T).var(
        dim=0, correction=0
    )
    np.testing.assert_allclose(along.numpy(), spectrum[:n_components], rtol=1e-4)
    assert torch.equal(sae.w_dec[n_components:], -sae.w_dec[:n_components])
    assert torch.equal(sae.w_enc, sae.w_dec)


def test_the_sign_of_a_component_is_fixed() -> None:
    x = cloud().double()
    covariance = torch.cov(x.T)
    rows = principal_components(covariance)
    torch.testing.assert_close(rows @ rows.T, torch.eye(12, dtype=torch.float64))
    assert bool((rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) > 0).all())
    # The same cloud with its coordinates reversed has the same components, reversed.
    reversed_rows = principal_components(covariance.flip(0, 1)).flip(1)
    torch.testing.assert_close(reversed_rows, rows)


def test_the_neuron_basis_spends_none_of_its_k_on_an_offset(tmp_path: Path) -> None:
    x = cloud()
    x[:, 3] = 500.0  # a rogue dimension without information
    sae = fitted(tmp_path, x, recipe("identity", k=2))
    away = x.double() - x.double().mean(dim=0)
    kept = away.abs().topk(2, dim=1).indices
    expected = torch.zeros_like(away).scatter(1, kept, away.gather(1, kept))
    output = sae.decode(*sae.encode(x)).double()
    torch.testing.assert_close(output, expected + x.double().mean(dim=0), rtol=0, atol=1e-4)
    assert 3 not in kept


# --- token lookup -----------------------------------------------------------------------------


def test_the_lookup_is_the_mean_of_each_token(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2 on the split it was fitted on is the share of the variance between tokens; on the other
    split it is `token_lookup_r2` of `reconstruction`.
    """
    for batch in ("activations.store.BATCH_TOKENS", "sae.trainer.BATCH_TOKENS"):
        monkeypatch.setattr(f"nullsae.{batch}", 100)
    sae, config = make(chain, tmp_path, recipe("token_lookup"))
    assert (config.architecture, config.n_latents, config.k) == ("token_lookup", VOCAB, None)
    assert sae.w_enc.shape == (0, D_MODEL)
    x, ids = activations(chain, "sae_train")
    exact = x.double().numpy()
    overall = exact.mean(axis=0)
    between = 0.0
    for token in np.unique(ids.numpy()):
        mine = exact[ids.numpy() == token]
        between += len(mine) * float(((mine.mean(axis=0) - overall) ** 2).sum())
    explained = evaluate(sae, x, ids)["heldout_explained_variance"]
    assert explained == pytest.approx(between / float(((exact - overall) ** 2).sum()), abs=1e-9)
    row = reconstruction(chain, tmp_path)
    assert row["explained_variance"] == pytest.approx(row["token_lookup_r2"], abs=1e-6)
    (only,) = history(tmp_path)
    assert only["heldout_explained_variance"] == pytest.approx(row["token_lookup_r2"], abs=1e-6)
    assert (only["step"], only["tokens"], only["lr"]) == (0, len(x), 0.0)


def test_a_token_never_seen_is_silent_and_gives_the_overall_mean(tmp_path: Path) -> None:
    x, ids = cloud(200), torch.arange(200) % 7
    means, counts = fit_token_means([(x, ids)], 10, 12)
    sae = token_lookup(means, counts)
    values, indices = sae.encode(x[:3], torch.tensor([7, 8, 9]))
    assert not values.any()
    expected = x.double().mean(dim=0).float().expand(3, 12)
    torch.testing.assert_close(sae.decode(values, indices), expected)
    values, _ = sae.encode(x, ids)
    assert bool((values > 0).all())
    torch.testing.assert_close(sae.w_dec[:7].norm(dim=1), torch.ones(7))


def test_token_ids_are_those_of_their_positions(tmp_path: Path) -> None:
    input_ids = np.arange(12, dtype=np.int32).reshape(3, 4) * 5
    corpus = load_tokens(write_corpus(tmp_path / "corpus", input_ids, input_ids))
    found = token_ids(corpus, torch.tensor([11, 0, 4]))
    assert found.tolist() == [55, 0, 20]
    assert found.dtype == torch.int64


# --- through the whole chain ------------------------------------------------------------------


def reconstruction(chain: Chain, folder: Path) -> dict[str, Any]:
    sae = folder / "cfg.json"
    found = evaluated(folder, sae=sae, fidelity_tokens=2 * CONTEXT, **chain.inputs)
    (row,) = found["reconstruction"]
    return row


@pytest.mark.parametrize("dictionary", [*TRAINED, "token_lookup", "pca", "identity"])
def test_a_dictionary_goes_through_the_chain(chain: Chain, tmp_path: Path, dictionary: str) -> None:
    sae, config = make(chain, tmp_path, recipe(dictionary))
    wide = {"token_lookup": VOCAB, "pca": 2 * D_MODEL, "identity": 2 * D_MODEL}
    assert config.n_latents == sae.n_latents == wide.get(dictionary, WIDTH)
    assert config.dictionary == dictionary
    row = reconstruction(chain, tmp_path)
    kept = 1 if dictionary == "token_lookup" else K
    assert 0 < row["l0"] <= kept
    # All tokens of eval are held out along training here.
    last = history(tmp_path)[-1]
    assert row["explained_variance"] == pytest.approx(last["heldout_explained_variance"], abs=1e-5)
    assert row["alive_share"] == pytest.approx(last["heldout_alive_share"])
    few = Latents(n_sampled=5, min_firings=5, min_pool_windows=1, window_tokens=4)
    found = collected(
        tmp_path,
        **{"latents": few, "sae": tmp_path / "cfg.json"},
        **{"activations": chain.eval_activations, "tokens": chain.eval_tokens},
    )
    latents = found["latents"]
    assert len(latents) == sae.n_latents
    assert sum(latent["firings"] for latent in latents) == round(row["l0"] * row["n_tokens"])
    assert found["coverage"][0]["n_sampled"] == 5
    assert len({window["latent"] for window in found["windows"]}) == 5
    cosines = [latent["encoder_decoder_cosine"] for latent in latents]
    if dictionary == "token_lookup":
        assert set(cosines) == {None}
        _, ids = activations(chain, "eval")
        _, train_ids = activations(chain, "sae_train")
        seen = set(train_ids.tolist())
        counts = torch.bincount(ids, minlength=VOCAB).tolist()
        for token, latent in enumerate(latents):
            assert latent["firings"] == (counts[token] if token in seen else 0)
            if latent["firings"]:
                assert latent["peak_token"] == token
                assert latent["token_entropy_bits"] == 0.0
    elif dictionary in ("pca", "identity"):
        assert cosines == pytest.approx([1.0] * sae.n_latents)


def test_progress_of_a_fit_is_shown(chain: Chain, tmp_path: Path) -> None:
    seen: list[tuple[int, int, float | None]] = []
    make(chain, tmp_path, recipe("pca"), progress=lambda *shown: seen.append(shown))
    assert seen[-1] == (64 * CONTEXT, 64 * CONTEXT, None)


# --- pretrained -------------------------------------------------------------------------------


def foreign(folder: Path, sae: Autoencoder) -> str:
    write_sae(sae, folder, activations_key="elsewhere", n_steps=5)
    return str(folder)


def given_sae(d_model: int = D_MODEL, *, k: int | None = None) -> Autoencoder:
    g = torch.Generator().manual_seed(3)
    rows = F.normalize(torch.randn(20, d_model, generator=g), dim=1)
    return Autoencoder(
        "jumprelu" if k is None else "topk",
        rows * 0.9,
        torch.randn(20, generator=g) * 0.1,
        rows,
        torch.randn(d_model, generator=g),
        k,
        {"threshold": torch.rand(20, generator=g)} if k is None else {},
    )


@pytest.mark.parametrize("k", [None, 3])
def test_an_sae_made_elsewhere_is_kept_and_its_nulls_match_it(
    chain: Chain, tmp_path: Path, k: int | None
) -> None:
    sae = given_sae(k=k)
    path = foreign(tmp_path / "given", sae)
    own = recipe("learned", pretrained=path, k=3)
    found, config = make(chain, tmp_path / "trained", own)
    for name, tensor in sae.parameters().items():
        assert torch.equal(found.parameters()[name], tensor)
    assert (config.architecture, config.k, config.n_latents) == (sae.architecture, k, 20)
    assert (config.dictionary, config.n_steps) == ("pretrained", 0)
    norm = float(SiteReader.open(chain.train_activations, SITE).manifest["mean_norm"])
    assert config.input_norm == norm
    (row,) = history(tmp_path / "trained")
    x, _ = activations(chain, "eval")
    assert row["heldout_explained_variance"] == pytest.approx(
        evaluate(sae, x)["heldout_explained_variance"]
    )
    assert (row["step"], row["tokens"]) == (0, 0)

    null, config = make(chain, tmp_path / "null", own, variant="rerandomized")
    assert (config.architecture, config.k, config.n_latents) == ("topk", 3, 20)
    assert (config.dictionary, config.n_steps) == ("learned", 8)
    assert not torch.equal(null.w_dec, sae.w_dec)


def test_an_sae_made_elsewhere_that_does_not_fit_is_refused(chain: Chain, tmp_path: Path) -> None:
    path = foreign(tmp_path / "narrow", given_sae(12, k=3))
    own = recipe("learned", pretrained=path)
    assert refusal(chain, tmp_path / "sae", own) == (
        f"config: saes.topk.pretrained: {path} is an SAE for 12 dimensions, but {SITE} has 16"
    )
    path = foreign(tmp_path / "topk", given_sae(k=3))
    own = recipe("learned", pretrained=path, k=5)
    text = "config: saes.topk.k: 5 is not the k of the pretrained SAE, 3; leave it out"
    assert refusal(chain, tmp_path / "sae", own) == text
    path = foreign(tmp_path / "jumprelu", given_sae())
    own = recipe("learned", pretrained=path)
    text = refusal(chain, tmp_path / "sae", own, variant="step0")
    assert text.startswith("config: saes.topk.k: missing; the pretrained SAE is of architecture")
    make(chain, tmp_path / "sae", own)  # the SAE itself needs no k
    means, counts = fit_token_means([activations(chain, "sae_train")], VOCAB, D_MODEL)
    path = foreign(tmp_path / "lookup", token_lookup(means, counts))
    own = recipe("learned", pretrained=path)
    assert "use dictionary 'token_lookup' instead" in refusal(chain, tmp_path / "sae", own)


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (recipe("pca", k=17), "k: 17 is larger than the number of directions, 16,"),
        (recipe("pca", k=4, n_components=3), "k: 4 is larger than the number of directions, 3,"),
        (recipe("identity", k=32), "k: 32 is larger than the number of directions, 16,"),
        (
            recipe("frozen_encoder", k=33, n_latents=None, expansion_factor=2),
            "k: 33 is larger than the number of latents, 32, at 16 dimensions",
        ),
        (recipe("token_lookup", k=1), "dictionary: 'token_lookup' needs the tokens of the act"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(
    chain: Chain, tmp_path: Path, sae: Sae, message: str
) -> None:
    text = refusal(chain, tmp_path / "sae", sae, eval_tokens=None)
    assert text.startswith(f"config: saes.topk.{message}")
    assert not (tmp_path / "sae").exists()
