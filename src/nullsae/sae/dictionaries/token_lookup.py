"""One latent per token id, whose direction is that token's mean activation."""

from __future__ import annotations

from typing import Any

from nullsae.config.dictionaries import Dictionary
from nullsae.sae.later import Autoencoder, F, Pairs, Tensor, autoencoder, token_means, torch


class TokenLookup(Dictionary):
    """One latent per token id, whose reconstruction is the mean activation of that token.

    Unseen ids get the overall mean, with a code of 0.
    """

    name, position = "token_lookup", 5
    summary = "has one direction per token"
    caption = (
        "One latent per token id, whose direction is that token's mean activation: it reads the "
        "token, not the activation."
    )
    coding, reads_tokens, has_encoder = True, True, False
    trained, default_k, product_share = False, 1, 0.0

    def check(self, k: int | None) -> None:
        if k not in (None, 1):
            raise ValueError(
                f"k {k} does not fit dictionary {self.name!r}, which has one latent per token: "
                f"give k 1 or leave it out"
            )

    def width(self, d_model: int, vocab_size: int | None) -> int | None:
        return vocab_size

    def fit(self, k: int, reader: Any, batches: Pairs, corpus: Any, where: str) -> Autoencoder:
        pairs = ((x, token_means.token_ids(corpus, position)) for x, position in batches)
        vocab_size = int(corpus.manifest["vocab_size"])
        return token_lookup(*token_means.fit_token_means(pairs, vocab_size, reader.d_model))

    @classmethod
    def look_up(cls, sae: Autoencoder, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent of each token id, with the length of its direction as value."""
        indices = ids[:, None]
        return sae.b_enc[indices], indices


def token_lookup(means: Tensor, counts: Tensor) -> Autoencoder:
    """Return the dictionary whose latent t reconstructs means[t].

    b_dec is the mean over all tokens, W_dec[t] the unit direction from it to means[t], and
    encoder.bias[t] their distance, which is the code of every token with id t. Means are float64
    [vocab_size, d_model], counts int64 [vocab_size]; latents of unseen ids do not fire.
    """
    overall = counts.double() @ means / counts.sum()
    offset = torch.where((counts > 0)[:, None], means - overall, 0.0)
    return autoencoder.Autoencoder(
        TokenLookup.name,
        w_enc=torch.zeros(0, len(overall)),
        b_enc=offset.norm(dim=1).float(),
        w_dec=F.normalize(offset, dim=1).float(),
        b_dec=overall.float(),
    )
