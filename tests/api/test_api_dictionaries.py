from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nullsae
from nullsae.core.randomness import torch_generator
from nullsae.sae.exchange.export import export_sae
from small_chain import D_MODEL

N_LATENTS, K = 48, 4


def cloud(n: int = 600) -> torch.Tensor:
    """Return activations with a mean and unequal variances, float32 [n, D_MODEL]."""
    generator = torch_generator(0, "cloud")
    scale = torch.linspace(0.2, 3, D_MODEL)
    mixed = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator))[0]
    return torch.randn(n, D_MODEL, generator=generator) * scale @ mixed + scale


def sae_of(architecture: str = "topk", k: int | None = K) -> nullsae.Autoencoder:
    generator = torch_generator(0, "sae")
    w_enc, w_dec = (torch.randn(N_LATENTS, D_MODEL, generator=generator) for _ in range(2))
    b_enc, b_dec = torch.full((N_LATENTS,), -2.0), torch.ones(D_MODEL)
    return nullsae.Autoencoder(architecture, w_enc, b_enc, w_dec, b_dec, k)


@pytest.mark.parametrize("layout", ["saelens", "sparsify"])
def test_saes_of_other_packages_are_read(layout: str, tiny_sae: Path, tmp_path: Path) -> None:
    own = nullsae.load_sae(str(tiny_sae.parent))
    export_sae(tiny_sae, layout, tmp_path / "layers.1")
    found = nullsae.load_sae(f"{tmp_path}::layers.{{layer}}", site="resid_post.1")
    for name, tensor in own.parameters().items():
        assert torch.equal(found.parameters()[name], tensor)
    assert found.k == own.k == 4
    plain = nullsae.load_sae(f"{tmp_path}::layers.1")
    assert torch.equal(plain.w_enc, own.w_enc)


def test_a_folder_without_an_sae_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(nullsae.UserError, match=r"load_sae: .* is empty; an SAE has"):
        nullsae.load_sae(str(tmp_path))


class Squared:
    """Squared codes, which no architecture here uses, decoded to `d_out` dimensions."""

    def __init__(self, d_out: int = D_MODEL) -> None:
        generator = torch_generator(0, "squared")
        self.w_enc = torch.randn(D_MODEL, N_LATENTS, generator=generator)
        self.w_dec = torch.randn(N_LATENTS, d_out, generator=generator)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w_enc - 4).relu() ** 2

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.w_dec + 1.5


@pytest.mark.parametrize("d_out", [D_MODEL, D_MODEL + 3])
def test_your_own_object_is_read(d_out: int) -> None:
    own, x = Squared(d_out), cloud()
    written = "mlp_out.1" if d_out != D_MODEL else None
    found = nullsae.load_sae(own, "mlp_in.1", d_model=D_MODEL, output_site=written)
    values, indices = found.encode(x)
    codes = torch.zeros(len(x), N_LATENTS).scatter_add(1, indices, values)
    assert torch.allclose(codes, own.encode(x), atol=1e-5)
    assert torch.allclose(found.decode(values, indices, x), own.decode(codes), rtol=1e-4, atol=1e-3)
    assert (found.d_model, found.n_latents) == (D_MODEL, N_LATENTS)
    assert found.writes_at("mlp_in.1") == (written or "mlp_in.1")
    assert found.transcodes is (written is not None)


def test_a_mistake_in_an_object_is_one_line() -> None:
    def refusal(*given: Any, **keys: Any) -> str:
        with pytest.raises(nullsae.UserError) as caught:
            nullsae.load_sae(*given, **keys)
        return str(caught.value)

    own: Any = Squared()
    assert "d_model: missing; give the dimensions that the object" in refusal(own)
    assert "Squared: encode of [64, 3] fails" in refusal(own, d_model=3)
    assert "Squared is a class; give an instance of it" in refusal(Squared, d_model=3)
    assert "d_model: '3' is not a whole number of at least 1" in refusal(own, d_model="3")
    assert "Tensor has no method encode" in refusal(torch.ones(2), d_model=3)
    assert "Squared: decode of [1, 48] gives" in refusal(Squared(3), d_model=D_MODEL)
    assert "output_site: 'mlp' is not a site" in refusal(own, d_model=D_MODEL, output_site="mlp")
    assert "d_model: only for an object" in refusal("folder", d_model=3)
    assert "d_model: missing" in refusal({"object": "json:dumps"})


def test_an_object_has_the_placebos_that_need_no_encoder_rows() -> None:
    x, sae = cloud(3000), nullsae.load_sae(Squared(), d_model=D_MODEL)
    wanted = np.bincount(sae.encode(x)[1][sae.encode(x)[0] > 0].numpy(), minlength=N_LATENTS)
    null = nullsae.null_dictionary(sae, "rate_matched_random", x)
    values, indices = null.encode(x)
    found = np.bincount(indices[values > 0].numpy(), minlength=N_LATENTS)
    assert np.abs(found - wanted).max() <= 1
    with pytest.raises(nullsae.UserError, match=r"rotated: it needs encoder rows, which a Python"):
        nullsae.null_dictionary(sae, "rotated", x)


def test_principal_components_equal_numpys() -> None:
    x = cloud()
    found = nullsae.null_dictionary(sae_of(), "pca", x, n_components=5)
    _, vectors = np.linalg.eigh(np.cov(x.double().numpy().T))
    directions = vectors[:, ::-1].T[:5]
    assert found.n_latents == 10
    cosine = np.abs((found.w_dec[:5].numpy() * directions).sum(axis=1))
    assert cosine == pytest.approx(np.ones(5), abs=1e-5)
    assert torch.equal(found.w_dec[5:], -found.w_dec[:5])
    assert found.k == K


def test_with_all_neurons_active_the_identity_reconstructs_exactly() -> None:
    x = cloud()
    found = nullsae.null_dictionary(sae_of(k=D_MODEL), "identity", x)
    assert torch.allclose(found.decode(*found.encode(x)), x, atol=1e-5)
    assert torch.allclose(found.b_dec, x.mean(0), atol=1e-5)


def test_a_token_lookup_gives_the_mean_of_each_token() -> None:
    x = cloud()
    ids = torch.arange(len(x)) % 7
    found = nullsae.null_dictionary(sae_of(), "token_lookup", x, ids)
    back = found.decode(*found.encode(x, ids))
    for token in range(7):
        mean = x[ids == token].double().numpy().mean(axis=0)
        assert back[token].numpy() == pytest.approx(mean, abs=1e-5)


def test_random_directions_are_equally_many_and_of_unit_norm() -> None:
    x, sae = cloud(), sae_of()
    one, again, other = (nullsae.null_dictionary(sae, "random", x, seed=s) for s in (0, 0, 1))
    assert (one.n_latents, one.d_model, one.k) == (N_LATENTS, D_MODEL, K)
    assert one.w_dec.norm(dim=1).numpy() == pytest.approx(np.ones(N_LATENTS), abs=1e-6)
    assert torch.equal(one.w_dec, again.w_dec)
    assert not torch.equal(one.w_dec, other.w_dec)
    # For two independent sets of directions, cosines are as small as chance makes them.
    cosines = (one.w_dec @ other.w_dec.T).numpy()
    assert cosines.std() == pytest.approx(1 / np.sqrt(D_MODEL), rel=0.1)


def test_without_a_k_a_null_keeps_the_mean_number_of_firing_latents() -> None:
    x, sae = cloud(5000), sae_of("standard", None)
    pre = (x - sae.b_dec).numpy() @ sae.w_enc.numpy().T + sae.b_enc.numpy()
    expected = round((pre > 0).sum(axis=1).mean())
    assert nullsae.null_dictionary(sae, "random", x).k == expected


def test_nulls_of_an_sae_that_hardly_fires_are_as_sparse_or_refused() -> None:
    x, sae = cloud(3000), sae_of("standard", None)
    pre = ((x - sae.b_dec) @ sae.w_enc.T).flatten().sort(descending=True).values
    for wanted in (300, 0):
        bias = -float(pre[max(0, wanted - 1) : wanted + 1].mean()) - (wanted == 0)
        silent = replace(sae, b_enc=torch.full((N_LATENTS,), bias))
        firings = int((silent.encode(x)[0] > 0).sum())
        assert firings == pytest.approx(wanted, abs=1)
        for kind in ("rotated", "rate_matched_random"):
            found = nullsae.null_dictionary(silent, kind, x)
            assert int((found.encode(x)[0] > 0).sum()) == pytest.approx(firings, rel=0.05)
        with pytest.raises(nullsae.UserError, match=r"L0 on these activations is 0\.\d+, but this"):
            nullsae.null_dictionary(silent, "pca", x)


def test_dictionaries_are_made_from_the_weights_of_the_sae() -> None:
    x, sae = cloud(3000), sae_of()
    gram = (sae.w_dec @ sae.w_dec.T).numpy()
    rates = {}
    for kind in ("rotated", "rotated_whitened", "rate_matched_random"):
        one, again, other = (nullsae.null_dictionary(sae, kind, x, seed=s) for s in (0, 0, 1))
        assert torch.equal(one.w_dec, again.w_dec)
        assert not torch.allclose(one.w_dec, other.w_dec, atol=0.1)
        assert one.n_latents == N_LATENTS
        kept = (one.w_dec @ one.w_dec.T).numpy() == pytest.approx(gram, abs=1e-3)
        assert kept is (kind == "rotated")
        values, indices = one.encode(x)
        rates[kind] = np.bincount(indices[values > 0].numpy(), minlength=N_LATENTS)
    values, indices = sae.encode(x)
    own = np.bincount(indices[values > 0].numpy(), minlength=N_LATENTS)
    assert np.abs(rates["rate_matched_random"] - own).max() <= 1
    assert np.abs(rates["rotated"] - own).max() > 10


@pytest.mark.parametrize(
    ("kind", "keys", "said"),
    [
        ("rotten", {}, "kind 'rotten' is unknown; without training there are random, token_lookup"),
        ("given", {}, "kind 'given' is unknown; without training there are random"),
        ("rotated", {"made_from": "topk"}, "null_dictionary: rotated: from: leave it out"),
        ("rotated", {"k": 3}, "null_dictionary: rotated: k: unknown key"),
        ("frozen_decoder", {}, r"kind 'frozen_decoder' is made by training \(nullsae run\)"),
        ("token_lookup", {}, r"token_lookup: token_ids: missing, should be \[600\]"),
        ("pca", {"components": 3}, "null_dictionary: pca: components"),
        ("random", {"n_components": 3}, "n_components: random has no such setting"),
    ],
)
def test_a_mistake_is_one_line(kind: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(nullsae.UserError, match=said) as caught:
        nullsae.null_dictionary(sae_of(), kind, cloud(), **keys)
    assert "\n" not in str(caught.value)


def test_activations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(nullsae.UserError, match=rf"are \[3, 5\], should be \[tokens, {D_MODEL}\]"):
        nullsae.null_dictionary(sae_of(), "pca", torch.ones(3, 5))
    with pytest.raises(nullsae.UserError, match="NaN or infinite"):
        nullsae.null_dictionary(sae_of(), "pca", cloud() / 0)
    with pytest.raises(nullsae.UserError, match=r"pca\.k: 17 is larger"):
        nullsae.null_dictionary(sae_of(k=17), "pca", cloud())
