"""Latents of any SAE on any texts, described as by `nullsae collect_latents`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from nullsae import tables
from nullsae.activations.passes import capture_contexts
from nullsae.api.arguments import check_model, check_sae, whole
from nullsae.config.compute import Compute
from nullsae.config.corpora import Corpus
from nullsae.config.latents import Latents
from nullsae.config.parse import check_sites, parse_section
from nullsae.config.sites import SITE
from nullsae.core.errors import UserError
from nullsae.corpus.boundaries import boundaries
from nullsae.corpus.documents import Replaced, normalize
from nullsae.corpus.packing import Packer
from nullsae.corpus.store import TOKENS_FILE, Tokens, map_tokens
from nullsae.corpus.tokenizer import encoder_of
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents import collect as stage
from nullsae.latents.split import Split
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.families import text_config
from nullsae.subjects.loading import Subject
from nullsae.subjects.publish import check_tokens
from nullsae.subjects.site_gates import verify_sites

WHERE = "collect"


class Collected(NamedTuple):
    """Tables about the latents of one SAE; their `to_pandas()` makes data frames."""

    latents: pa.Table
    """The table `latents` of docs/latents.md: one row per latent."""
    windows: pa.Table
    """The table `windows`: stretches of text with the sampled latents' activations."""
    coverage: dict[str, Any]
    """The row of `coverage`: how many tokens, windows and latents there were, and how many latents
    were left out, and why."""


def collect(
    model: Any,
    sae: Autoencoder,
    texts: Iterable[str] | Tensor,
    *,
    site: str,
    tokenizer: Any = None,
    context_tokens: int = 128,
    prepend_bos: bool | str = "auto",
    batch_contexts: int = 8,
    seed: int = 0,
    **settings: Any,
) -> Collected:
    """Compute statistics of every latent over texts, and windows of a sample of latents.

    Texts are packed into contexts as in a study, and the model runs on them batch by batch.
    Activations are not stored. Firings take 16 bytes each in a temporary folder.

    Args:
        model: a causal `transformers.PreTrainedModel` in evaluation mode: the trained one, or a
            result of `randomize`.
        sae: such as a result of `load_sae`; it runs on the model's device.
        texts: documents; or token ids, integers [contexts, tokens], each context a document.
        site: where the SAE reads, such as `resid_post.3` (the output of block 3), `mlp_out.3`,
            `attn_out.3`, `resid_pre.3` or `embed`.
        tokenizer: the model's fast tokenizer; only for texts.
        context_tokens: length of the contexts, including BOS; tokens that do not fill one are
            dropped.
        prepend_bos: whether each context starts with BOS; `auto` follows the tokenizer.
        batch_contexts: contexts per forward pass.
        seed: of the sample of latents and windows.
        settings: keys of the config's `latents`: `min_firings=200`, `n_sampled=50`,
            `causal_places=0` (which saves most of the passes), `skip_start_tokens=1`, ...

    Returns:
        The tables `latents` and `windows`, and the row of `coverage`.

    Raises:
        UserError: texts, tokenizer, model, site and SAE do not fit together, or a setting is
            unknown; the message names the problem.
    """
    check_model(model, WHERE)
    check_sae(sae, WHERE)
    if model.training:
        raise UserError(f"{WHERE}: the model is in training mode; call its eval() first")
    subject = Subject(
        model=model,
        recipe={"vocab_size": text_config(model).vocab_size},
        device=model.get_input_embeddings().weight.device,
    )
    _check_site(subject, sae, site)
    batch_contexts = whole(batch_contexts, f"{WHERE}: batch_contexts", least=1)
    params = CollectLatentsParams(
        seed=whole(seed, f"{WHERE}: seed"),
        keys=CellKeys(subject="", variant="trained", draw=0, site=site, sae="", seed=0),
        latents=parse_section(Latents, settings, where=WHERE),
        compute=Compute(),
    )
    with tempfile.TemporaryDirectory(prefix="nullsae-") as temporary:
        folder = Path(temporary)
        if isinstance(texts, Tensor):
            tokens = _own_tokens(texts)
        else:
            packing = {"context_tokens": context_tokens, "prepend_bos": prepend_bos}
            tokens = _packed(texts, tokenizer, packing, folder)
        check_tokens(model, tokens, where=WHERE)
        found = stage.collect(
            params,
            sae.to(subject.device),
            _Passes(subject, torch.from_numpy(tokens.input_ids), site, batch_contexts),
            Split.of(tokens, Path(WHERE)),
            # A direction's effect on logits needs a head.
            None if model.get_output_embeddings() is None else subject,
            folder,
            str(model.dtype).removeprefix("torch."),
        )
    latents = _as_written("latents", found.latents)
    return Collected(latents, _as_written("windows", found.windows), found.coverage)


@dataclass(frozen=True)
class _Passes:
    """Activations of a site, computed on demand; all tokens count."""

    subject: Subject
    ids: Tensor
    site: str
    batch_contexts: int

    @property
    def n_tokens(self) -> int:
        return self.ids.numel()

    @property
    def n_excluded(self) -> int:
        return 0

    def excluded_positions(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        n_contexts, length = self.ids.shape
        for start in range(0, n_contexts, self.batch_contexts):
            contexts = range(start, min(start + self.batch_contexts, n_contexts))
            x = capture_contexts(
                self.subject,
                self.ids,
                split="eval",
                contexts=contexts,
                batch_contexts=self.batch_contexts,
                sites=[self.site],
                dtype=torch.float32,
            )[self.site]
            if not bool(torch.isfinite(x).all()):
                raise UserError(f"{WHERE}: some activations at {self.site} are NaN or infinite")
            yield x, torch.arange(contexts.start * length, contexts.stop * length)


def _as_written(name: str, table: pa.Table) -> pa.Table:
    """Return a table in its schema: columns in order, with their units."""
    schema = tables.cell_schema(name)
    return table.select(schema.names).cast(schema)


def _check_site(subject: Subject, sae: Autoencoder, site: str) -> None:
    """Check that the model has the site and that the SAE fits it."""
    written = sae.writes_at(site)
    sites = tuple(dict.fromkeys((site, written)))
    for name in sites:
        if not SITE.match(name):
            raise UserError(f"{WHERE}: site: {name!r} is not a site, such as resid_post.3")
    check_sites(sites, len(subject.blocks), where=f"{WHERE}: site")
    verify_sites(subject, sites, where=f"{WHERE}: site")
    if sae.d_model != subject.width(site):
        raise UserError(
            f"{WHERE}: sae: it reads {sae.d_model} dimensions, but {site} has {subject.width(site)}"
        )
    if sae.w_dec.shape[1] != subject.width(written):
        raise UserError(
            f"{WHERE}: sae: it writes {sae.w_dec.shape[1]} dimensions, but {written} has "
            f"{subject.width(written)}"
        )


def _own_tokens(ids: Tensor) -> Tokens:
    """Return given contexts as they are, each as a document."""
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
        raise UserError(
            f"{WHERE}: texts: token ids are {ids.dtype} {list(ids.shape)}, should be integers "
            f"[contexts, tokens]"
        )
    given = ids.cpu().numpy().astype(np.int32)
    documents = np.repeat(np.arange(len(given), dtype=np.int32)[:, None], given.shape[1], axis=1)
    return Tokens(given, documents, {})


def _packed(texts: Iterable[str], tokenizer: Any, packing: dict[str, Any], folder: Path) -> Tokens:
    """Pack texts into contexts by the rules of a corpus, in a mapped file in `folder`."""
    is_list = isinstance(texts, Iterable) and not isinstance(texts, str)
    documents = list(texts) if is_list else []  # it may be a generator
    if not is_list or not all(isinstance(text, str) for text in documents):
        raise UserError(f"{WHERE}: texts: should be a list of texts, or a tensor of token ids")
    if not getattr(tokenizer, "is_fast", False):
        what = "missing" if tokenizer is None else f"{type(tokenizer).__name__} is not fast"
        raise UserError(f"{WHERE}: tokenizer: {what}; texts need the model's fast tokenizer")
    # Source and tokenizer exist already; the other settings apply as in a corpus.
    given = {"source": {"kind": "builtin"}, "tokenizer": {"kind": "train"}, **packing}
    corpus = parse_section(Corpus, given, where=WHERE)
    asks = tokenizer.init_kwargs.get("add_bos_token") is True
    encoder = encoder_of(tokenizer, asks_for_bos=asks)
    bounds = boundaries(encoder, corpus, WHERE)
    packer = Packer(None, corpus.context_tokens, bounds, folder / "packed")
    for ids in encoder.encode([normalize(text, Replaced()) for text in documents]):
        packer.add(ids)
    packer.flush()
    if not packer.shape()[0]:
        raise UserError(
            f"{WHERE}: texts: {packer.n_tokens} tokens do not fill one context of "
            f"{corpus.context_tokens}; give more, or lower context_tokens"
        )
    packer.write(folder / TOKENS_FILE)
    return map_tokens(folder / TOKENS_FILE, {"vocab_size": encoder.vocab_size, **bounds.manifest()})
