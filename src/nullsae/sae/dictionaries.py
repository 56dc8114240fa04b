"""Dictionary nulls: which weights training leaves alone, and dictionaries that need no training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.activations.store import BATCH_TOKENS, SiteReader
from nullsae.config.saes import Sae
from nullsae.core.errors import UserError
from nullsae.core.moments import Moments
from nullsae.corpus.store import Tokens
from nullsae.sae.autoencoder import Autoencoder

# What gradient steps leave as it was drawn (Korznikov et al. 2026, arXiv 2602.14111).
# b_dec belongs to the encoder too, which subtracts it: only with b_dec fixed are the codes of
# `frozen_encoder` a fixed random function of the activations.
FROZEN: dict[str, tuple[str, ...]] = {
    "frozen_decoder": ("W_dec",),
    "frozen_encoder": ("encoder.weight", "encoder.bias", "b_dec"),
}


def keep_close(rows: Tensor, start: Tensor, min_cosine: float) -> Tensor:
    """The unit rows nearest to `rows` whose cosine to those of `start` is at least `min_cosine`.

    A row within the cone is left as it is. One outside goes to the cone's edge, in the plane of
    the row and its start: c r0 + sqrt(1 - c^2) u, with u the unit part of the row across r0.

    Args:
        rows: [n, d], of unit norm.
        start: [n, d], of unit norm.
        min_cosine: c, between 0 and 1.
    """
    cosine = (rows * start).sum(dim=1, keepdim=True)
    across = F.normalize(rows - cosine * start, dim=1)
    # Again: near the opposite of a start, what is across it is mostly rounding. Such a row may
    # land within the cone, but never outside.
    across = across - (across * start).sum(dim=1, keepdim=True) * start
    edge = F.normalize(min_cosine * start + (1.0 - min_cosine**2) ** 0.5 * across, dim=1)
    return torch.where(cosine >= min_cosine, rows, edge)


def fit_dictionary(
    recipe: Sae,
    reader: SiteReader,
    corpus: Tokens | None,
    *,
    where: str,
    report: Callable[[int, int, float | None], None] | None = None,
) -> Autoencoder:
    """A dictionary that is computed from the activations of `sae_train`, without gradient steps.

    `token_lookup`: a latent per token id, whose reconstruction is the mean activation of that
    token; ids never seen get the overall mean, with a code of 0. `pca`: the principal components,
    strongest first. `identity`: the neuron basis. The last two hold each direction with both
    signs, so that codes are not negative, keep the k largest coefficients, and have b_dec at the
    mean: a dimension with a large offset does not use up one of the k.

    Args:
        recipe: with one of these dictionaries.
        reader: activations of `sae_train`.
        corpus: tokens of `sae_train`, for `token_lookup`.
        where: key of the recipe, for messages.
        report: called with (tokens done, tokens in all, None).

    Raises:
        UserError: k is larger than the number of directions.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        for x, position in reader.batches(BATCH_TOKENS):
            yield x, position
            done += len(x)
            if report is not None:
                report(done, reader.n_tokens, None)

    if recipe.dictionary == "token_lookup":
        assert corpus is not None
        means, counts = fit_token_means(
            ((x, token_ids(corpus, position)) for x, position in batches()),
            int(corpus.manifest["vocab_size"]),
            reader.d_model,
        )
        return token_lookup(means, counts)
    n_directions = recipe.n_directions(reader.d_model)
    if recipe.kept > n_directions:
        raise UserError(
            f"{where}.k: {recipe.kept} is larger than the number of directions, {n_directions}, "
            f"of dictionary {recipe.dictionary!r} at {reader.d_model} dimensions"
        )
    if recipe.dictionary == "identity":
        return signed(torch.eye(reader.d_model, dtype=torch.float64), reader.mean(), recipe.kept)
    moments = Moments(reader.d_model)
    for x, _ in batches():
        moments.add(x)
    components = principal_components(moments.covariance())[:n_directions]
    return signed(components, moments.mean(), recipe.kept)


def token_ids(corpus: Tokens, position: Tensor) -> Tensor:
    """Token ids int64 [n] at flat positions int64 [n] of a split."""
    return torch.from_numpy(corpus.input_ids.reshape(-1)[position.numpy()]).long()


def fit_token_means(
    batches: Iterable[tuple[Tensor, Tensor]], vocab_size: int, d_model: int
) -> tuple[Tensor, Tensor]:
    """Mean activation of each token id.

    Args:
        batches: pairs of activations [n, d_model] and token ids int64 [n].
        vocab_size: number of token ids.
        d_model: width.

    Returns:
        Means float64 [vocab_size, d_model] (ids never seen get the mean over all tokens), and
        the counts int64 [vocab_size].
    """
    sums = torch.zeros(vocab_size, d_model, dtype=torch.float64)
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for x, ids in batches:
        sums.index_add_(0, ids, x.double())
        counts += torch.bincount(ids, minlength=vocab_size)
    overall = sums.sum(dim=0) / counts.sum()
    seen = (counts > 0)[:, None]
    return torch.where(seen, sums / counts.clamp_min(1)[:, None], overall), counts


def token_lookup(means: Tensor, counts: Tensor) -> Autoencoder:
    """The dictionary whose latent t reconstructs means[t].

    b_dec is the mean over all tokens, W_dec[t] the unit direction from it to means[t], and
    encoder.bias[t] the length of that way, which is the code of every token with id t.

    Args:
        means: float64 [vocab_size, d_model].
        counts: int64 [vocab_size]; the latents of ids never seen do not fire.
    """
    overall = counts.double() @ means / counts.sum()
    offset = torch.where((counts > 0)[:, None], means - overall, 0.0)
    return Autoencoder(
        "token_lookup",
        w_enc=torch.zeros(0, len(overall)),
        b_enc=offset.norm(dim=1).float(),
        w_dec=F.normalize(offset, dim=1).float(),
        b_dec=overall.float(),
    )


def principal_components(covariance: Tensor) -> Tensor:
    """Unit eigenvectors as rows, strongest first, each with its largest entry positive."""
    rows: Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1).t()
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign()


def signed(directions: Tensor, mean: Tensor, k: int) -> Autoencoder:
    """The TopK dictionary of orthonormal directions [n, d_model] and their opposites.

    Latent i is direction i, latent n + i its opposite; codes are coefficients about `mean`.
    """
    rows = torch.cat([directions, -directions]).float()
    return Autoencoder(
        "topk",
        w_enc=rows,
        b_enc=torch.zeros(len(rows)),
        w_dec=rows.clone(),
        b_dec=mean.float(),
        k=k,
    )
