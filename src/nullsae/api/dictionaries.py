"""SAEs made elsewhere, and null dictionaries made without training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullsae.api.arguments import check_sae, whole
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.hooks import same_place, site_of_hook
from nullsae.config.parse import parse_section
from nullsae.config.pretrained import FromObject, FromSaeLens, Pretrained
from nullsae.config.sites import SITE
from nullsae.core.errors import UserError
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import Tokens
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.derivation import derive, firing_counts
from nullsae.sae.exchange.pretrained import read_with_origin
from nullsae.sae.initialization import initialize
from nullsae.sae.python_object import EncodesAndDecodes, ObjectSae, sae_of

RANDOM = "random"
"""The dictionary that training starts from."""
# Activations encoded together, and those that a random dictionary is fitted to.
BATCH_TOKENS, SAMPLE_TOKENS = 4096, 16_384


def load_sae(
    path: str | os.PathLike[str] | Mapping[str, Any] | EncodesAndDecodes,
    site: str | None = None,
    *,
    d_model: int | None = None,
    output_site: str | None = None,
) -> Autoencoder:
    """Load an SAE made elsewhere, as `saes.*.pretrained` in a config does.

    Args:
        path: a folder or hub id in the layout of nullsae, SAELens, EleutherAI's sparsify or
            dictionary_learning, with a folder in it after `::`, such as
            `EleutherAI/sae-pythia-70m-32k::layers.3`; or a mapping with `release` and `sae_id` of
            SAELens, which needs `sae_lens`; or your own object with `encode` and `decode`, or its
            import path, {"object": "package.module:name", "d_model": 768}, whose code is run.
        site: where its activations are read, such as `resid_post.3`. If given, it replaces `{site}`
            and `{layer}` in `path`, and an SAE made at another site is refused.
        d_model: only for an object, the number of dimensions it reads. It receives float32
            [tokens, d_model] and returns codes [tokens, n_latents], none below 0; `decode` must be
            linear.
        output_site: only for an object that is a transcoder, the site it writes to, such as
            `mlp_out.3`.

    Returns:
        An SAE with float32 weights on the CPU. `encode(x)` maps activations [tokens, d_model] to
        values and latents, both [tokens, m], where a value of 0 means that the latent did not fire;
        `decode(values, latents, x)` maps them back.

    Raises:
        UserError: the SAE is not found, or a key or tensor is missing, unknown, damaged or not
            supported; the message names it.
    """
    for name, place in (("site", site), ("output_site", output_site)):
        if place is not None and not (isinstance(place, str) and SITE.match(place)):
            raise UserError(f"load_sae: {name}: {place!r} is not a site, such as resid_post.3")
    given: Pretrained
    if isinstance(path, Mapping):
        if "object" in path:
            given = parse_section(FromObject, dict(path), where="load_sae")
        else:
            given = parse_section(FromSaeLens, {"saelens": dict(path)}, where="load_sae")
    elif isinstance(path, str | os.PathLike):
        given = os.fspath(path)
    else:
        if d_model is None:
            raise UserError("load_sae: d_model: missing; give the dimensions that the object reads")
        d_model = whole(d_model, "load_sae: d_model", least=1)
        if isinstance(path, type):
            raise UserError(f"load_sae: {path.__qualname__} is a class; give an instance of it")
        return sae_of(path, f"load_sae: {type(path).__qualname__}", d_model, output_site or "")
    if d_model is not None or (output_site is not None and not isinstance(given, FromObject)):
        key = "output_site" if d_model is None else "d_model"
        raise UserError(f"load_sae: {key}: only for an object; other SAEs record it themselves")
    sae, made_on = read_with_origin(given, site, where="load_sae", output_site=output_site or "")
    found = made_on.hook and site_of_hook(made_on.hook)
    if site is not None and made_on.hook and not (found and same_place(found, site)):
        raise UserError(f"load_sae: site: {site}, but the SAE was made at {made_on.hook}")
    return sae


def null_dictionary(
    sae: Autoencoder,
    kind: str,
    activations: Tensor,
    token_ids: Tensor | None = None,
    seed: int = 0,
    **settings: Any,
) -> Autoencoder:
    """Make a null dictionary for an SAE, in minutes and without training.

    It is as active as the SAE. A dictionary made from the SAE's weights must have its L0 within 5%.
    Others have its k or, if it has none, the rounded mean number of its latents that fire on these
    activations.

    Args:
        sae: the SAE that the dictionary is a placebo of.
        kind: `random` has as many latents as the SAE: random unit directions, a tied encoder and
            b_dec at the geometric median, as at the start of training (fitted to the first 16,384
            tokens); `pca` and `identity` have principal components and neurons, with both signs;
            `token_lookup` has the mean activation of each token id. Made from the SAE's weights:
            `rotated` turns its encoder and decoder by one random rotation about the mean of the
            activations; `rotated_whitened` does so in whitened activations; `rate_matched_random`
            has random directions that fire as often as the SAE's latents. Other packages may add
            kinds, named as in `saes.*.dictionary` of a config.
        activations: floats [tokens, d_model] at the SAE's site, to fit the dictionary to.
        token_ids: integers [tokens]; only for `token_lookup`.
        seed: of random numbers.
        settings: keys of this dictionary's recipe except `from`, such as `n_components` of `pca`.

    Returns:
        A dictionary in float32 on the CPU.

    Raises:
        UserError: the kind or a setting is unknown, the kind needs training, activations, token
            ids and SAE do not fit together, or the dictionary fails a gate.
    """
    check_sae(sae, "null_dictionary")
    x, seed = _rows(sae, activations), whole(seed, "null_dictionary: seed")
    if kind in DICTIONARIES and DICTIONARIES[kind].derived and DICTIONARIES[kind].is_null:
        return _derived(sae, kind, x, seed, settings)
    k = sae.k or round(l0 := _l0(sae, x, token_ids))
    if not k:
        raise UserError(
            f"null_dictionary: {kind}: the SAE's L0 on these activations is {l0:.3f}, but this "
            f"null needs at least 1 active latent; use rate_matched_random"
        )
    if kind == RANDOM:
        if settings:
            raise UserError(f"null_dictionary: {sorted(settings)[0]}: {kind} has no such setting")
        generator = torch_generator(seed, "null_dictionary", kind)
        sample = x[:SAMPLE_TOKENS]
        return initialize(sample, n_latents=sae.n_latents, k=k, generator=generator)
    computed = [n for n, made in DICTIONARIES.items() if not made.trained and made.is_null]
    if kind not in computed:
        kinds = f"{', '.join((RANDOM, *computed))}"
        trained = kind in DICTIONARIES and DICTIONARIES[kind].trained
        why = "is made by training (nullsae run)" if trained else "is unknown"
        raise UserError(f"null_dictionary: kind {kind!r} {why}; without training there are {kinds}")
    where = f"null_dictionary: {kind}"
    recipe = parse_section(DICTIONARIES[kind], settings, where=where)
    corpus = None
    if recipe.reads_tokens:
        corpus = _tokens(_ids(x, token_ids, where))
    batches = ((x[part], torch.arange(part.start, part.stop)) for part in _pieces(len(x)))
    found: Autoencoder = recipe.fit(k, _Rows(x), batches, corpus, where)
    return found


def _derived(
    sae: Autoencoder, kind: str, x: Tensor, seed: int, settings: dict[str, Any]
) -> Autoencoder:
    """Make a dictionary from the weights of an SAE."""
    where = f"null_dictionary: {kind}"
    if sae.coding.reads_tokens or sae.transcodes:
        what = "transcoder" if sae.transcodes else f"{sae.architecture} dictionary"
        raise UserError(f"{where}: made from an SAE, not from a {what}")
    origin = parse_section(DICTIONARIES[kind], settings, where=where)
    if origin.source is not None:
        raise UserError(f"{where}: from: leave it out; the SAE is the first argument")
    if origin.needs_encoder and isinstance(sae, ObjectSae):
        raise UserError(
            f"{where}: it needs encoder rows, which a Python object does not have; use "
            f"rate_matched_random"
        )
    generator = torch_generator(seed, "null_dictionary", kind)
    given = sae.to(torch.device("cpu"))
    return derive(origin, given, x[: origin.sampled], x, generator, where)[0]


@dataclass(frozen=True)
class _Rows:
    """What dictionaries need to know of a site besides its batches."""

    x: Tensor

    @property
    def d_model(self) -> int:
        return self.x.shape[1]

    def mean(self) -> Tensor:
        return self.x.double().mean(dim=0)


def _rows(sae: Autoencoder, activations: Tensor) -> Tensor:
    """Return activations as float32 on the CPU, if they fit the SAE."""
    if sae.transcodes:
        raise UserError(
            "null_dictionary: a transcoder has no such nulls, as it writes to another site"
        )
    shape = list(activations.shape)
    if len(shape) != 2 or shape[1] != sae.d_model or not shape[0]:
        raise UserError(
            f"null_dictionary: activations are {shape}, should be [tokens, {sae.d_model}]"
        )
    x = activations.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise UserError("null_dictionary: some activations are NaN or infinite")
    return x


def _ids(x: Tensor, token_ids: Tensor | None, where: str) -> Tensor:
    if token_ids is None or list(token_ids.shape) != [len(x)]:
        found = "missing" if token_ids is None else f"{list(token_ids.shape)}"
        raise UserError(f"{where}: token_ids: {found}, should be [{len(x)}], one per activation")
    return token_ids


def _tokens(ids: Tensor) -> Tokens:
    """Return token ids as a split of one context."""
    row = ids.cpu().numpy().astype(np.int32)[None]
    return Tokens(row, np.zeros_like(row), {"vocab_size": int(row.max()) + 1})


def _pieces(n: int) -> Iterator[slice]:
    for start in range(0, n, BATCH_TOKENS):
        yield slice(start, min(start + BATCH_TOKENS, n))


@torch.no_grad()
def _l0(sae: Autoencoder, x: Tensor, token_ids: Tensor | None) -> float:
    """Return the mean number of firing latents per token."""
    if sae.coding.reads_tokens:
        _ids(x, token_ids, f"null_dictionary: {sae.architecture}")
    return int(firing_counts(sae, x, token_ids).sum()) / len(x)
