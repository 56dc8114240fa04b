"""Dictionaries that are computed from activations, without gradient steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from nullsae.activations.store import SiteReader
from nullsae.config.saes import Sae
from nullsae.corpus.store import Tokens
from nullsae.sae.autoencoder import Autoencoder


def fit_dictionary(
    recipe: Sae,
    reader: SiteReader,
    corpus: Tokens | None,
    *,
    where: str,
    progress: Callable[[int, int, float | None], None] | None = None,
) -> Autoencoder:
    """The dictionary of a recipe that is not trained, from the activations of `sae_train`.

    Args:
        recipe: with such a dictionary.
        reader: activations of `sae_train`.
        corpus: tokens of `sae_train`, where the dictionary reads them.
        where: key of the recipe, for messages.
        progress: called with (tokens done, tokens in all, None).

    Raises:
        UserError: k does not fit.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        for x, position in reader.batches():
            yield x, position
            done += len(x)
            if progress is not None:
                progress(done, reader.n_tokens, None)

    fitted: Autoencoder = recipe.origin.fit(recipe.kept, reader, batches(), corpus, where=where)
    return fitted
