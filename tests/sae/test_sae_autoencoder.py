from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.autoencoder import Autoencoder

TOKENS, D, WIDTH = 70, 6, 30


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sae_of(architecture: str) -> Autoencoder:
    lookup = architecture == "token_lookup"
    return Autoencoder(
        architecture,
        torch.zeros(0, D) if lookup else randn(WIDTH, D, seed=1),
        randn(WIDTH, seed=2).abs() if lookup else randn(WIDTH, seed=2) - 0.5,
        F.normalize(randn(WIDTH, D, seed=3), dim=1),
        randn(D, seed=4),
        k=5 if architecture == "topk" else None,
        own={"threshold": randn(WIDTH, seed=5).abs()} if architecture == "jumprelu" else {},
    )


def dense_codes(sae: Autoencoder, x: Tensor, ids: Tensor) -> Tensor:
    """Compute codes [tokens, n_latents] by each architecture's own formula."""
    if sae.architecture == "token_lookup":
        return F.one_hot(ids, WIDTH) * sae.b_enc
    pre = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    if sae.architecture == "topk":
        least = pre.sort(dim=1, descending=True).values[:, 4:5]
        return torch.where(pre >= least, pre.relu(), 0.0)
    if sae.architecture == "jumprelu":
        return torch.where(pre > sae.own["threshold"], pre.relu(), 0.0)
    return pre.relu()


ARCHITECTURES: tuple[str, ...] = ("topk", "jumprelu", "standard", "token_lookup")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_and_reconstructions_equal_dense_ones(architecture: str) -> None:
    sae, x = sae_of(architecture), randn(TOKENS, D, seed=6) * 2
    ids = torch.arange(TOKENS) % WIDTH
    values, indices = sae.encode(x, ids)
    expected = dense_codes(sae, x, ids)
    found = torch.zeros(TOKENS, WIDTH).scatter_add(1, indices, values)
    torch.testing.assert_close(found, expected)
    assert indices.dtype == torch.int64
    torch.testing.assert_close(sae.decode(values, indices), expected @ sae.w_dec + sae.b_dec)
    # A latent occurs at most once in a token's code, even if the code is padded.
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    fires = (expected > 0).sum(dim=1)
    if architecture in ("jumprelu", "standard"):
        assert fires.min() < fires.max() == values.shape[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_token_alone_is_reconstructed_as_in_its_batch(architecture: str) -> None:
    sae, x = sae_of(architecture), randn(TOKENS, D, seed=7) * 2
    ids = torch.arange(TOKENS) % WIDTH
    whole = sae.decode(*sae.encode(x, ids))
    for token in range(0, TOKENS, 7):
        alone = sae.encode(x[token : token + 1], ids[token : token + 1])
        torch.testing.assert_close(sae.decode(*alone)[0], whole[token])


def test_nothing_active_or_no_tokens_give_empty_codes() -> None:
    sae = replace(sae_of("standard"), b_enc=torch.full((WIDTH,), -1e6))
    for n in (0, 3):
        values, indices = sae.encode(randn(n, D, seed=8))
        assert values.shape == indices.shape == (n, 1)
        assert not values.any()
        torch.testing.assert_close(sae.decode(values, indices), sae.b_dec.expand(n, D))


def test_a_token_lookup_needs_the_ids_of_the_tokens() -> None:
    with pytest.raises(ValueError, match="needs the tokens' ids"):
        sae_of("token_lookup").encode(randn(3, D, seed=8))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_scaling_changes_only_the_scale_of_the_codes(architecture: str, factor: float) -> None:
    sae, x = sae_of(architecture), randn(TOKENS, D, seed=9)
    ids = torch.arange(TOKENS) % WIDTH
    values, indices = sae.encode(x, ids)
    scaled = sae.scaled(factor)
    scaled_values, scaled_indices = scaled.encode(x * factor, ids)
    dense = torch.zeros(TOKENS, WIDTH).scatter_add(1, indices, values)
    scaled_dense = torch.zeros(TOKENS, WIDTH).scatter_add(1, scaled_indices, scaled_values)
    torch.testing.assert_close(scaled_dense, dense * factor)
    torch.testing.assert_close(
        scaled.decode(scaled_values, scaled_indices), sae.decode(values, indices) * factor
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_on_disk_lead_to_the_same_tensors(architecture: str) -> None:
    sae = sae_of(architecture)
    named = sae.parameters()
    names = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"]
    assert list(named) == names + ["threshold"] * (architecture == "jumprelu")
    for again in (Autoencoder.of(named, architecture, sae.k), sae.to(torch.device("cpu"))):
        assert again.architecture == architecture
        assert again.k == sae.k
        for name in (*names, *sae.own):
            assert again.parameters()[name] is named[name]
        assert list(again.parameters()) == list(named)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard"])
def test_a_code_does_not_depend_on_the_tokens_beside_it(architecture: str) -> None:
    """To the bit, however many tokens are encoded together: products are rounded differently for
    another number of rows, unless the weights are packed for the same number."""
    n, width, d = 700, 3000, 32
    sae = Autoencoder(
        architecture,
        randn(width, d, seed=1),
        randn(width, seed=2),
        randn(width, d, seed=3),
        randn(d, seed=4),
        k=9 if architecture == "topk" else None,
        own={"threshold": randn(width, seed=5).abs() * 9} if architecture == "jumprelu" else {},
    )
    x = randn(n, d, seed=6)

    def dense(batch: int) -> Tensor:
        codes = torch.zeros(min(n, 70 * batch), width)
        for start in range(0, len(codes), batch):
            values, indices = sae.encode(x[start : start + batch])
            codes[start : start + batch].scatter_add_(1, indices, values)
        return codes

    whole = dense(n)
    assert whole.any()
    for batch in (1, 7, 100, 349, 350, 351):
        codes = dense(batch)
        assert torch.equal(codes, whole[: len(codes)]), batch
