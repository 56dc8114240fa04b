"""One variant's SAE on the activations of every variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nullsae import tables
from nullsae.activations.outputs import both, outputs_of
from nullsae.activations.store import SiteReader
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.metrics import CrossEvaluateParams
from nullsae.metrics.evaluate import open_for
from nullsae.metrics.reconstruction import ReconstructionSums
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.sae.token_means import token_ids


def cross_evaluate(
    params: CrossEvaluateParams,
    *,
    sae: Path,
    activations: list[Path],
    tokens: Path,
    output: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the table `cross_evaluation` of one SAE: a row per variant, in the order of the params.

    `explained_variance`, `cosine`, `l0` and `alive_share` use the activations as they are,
    centred on the variant's own mean over the tokens used. For `explained_variance_rescaled`,
    activations are first scaled to the mean norm that the SAE was trained on. This tells a
    dictionary that does not fit from a mere difference of scale. For a transcoder, the output site
    is explained, scaled by the same factor as the input.

    Args:
        params: the rule's slice of the config.
        sae: `cfg.json` of the SAE.
        activations: manifests of the variants' `eval` activations, in the order of the params.
        tokens: manifest of the corpus' `eval` split.
        output: the table.
        progress: called with (variants done, variants in total).

    Raises:
        UserError: the numbers of manifests and variants differ, or activations are missing,
            damaged, from another config or of another width than the SAE's.
    """
    n_keys = len(params.activations_keys)
    if len(activations) != len(params.variants) or n_keys not in (0, len(activations)):
        raise UserError(
            f"--activations: {len(activations)} manifests, but --params names "
            f"{len(params.variants)} variants and {n_keys} keys; give one of each per variant"
        )
    torch.set_num_threads(params.compute.threads)
    coder, config = load_sae(sae)
    device = device_of(params.compute.device)
    coder = coder.to(device)
    corpus = load_tokens(tokens)
    keys = params.activations_keys or ("",) * len(activations)
    readers = [
        open_for(manifest, params.keys.site, key, config.d_model, sae, device)
        for manifest, key in zip(activations, keys, strict=True)
    ]
    rows = []
    for variant, reader in zip(params.variants, readers, strict=True):
        place = {"evaluated_on": variant.variant, "evaluated_on_draw": variant.draw}
        wanted = outputs_of(reader, params.keys.site, coder.writes_at(params.keys.site))
        found = _measure(coder, config.input_norm, reader, wanted, corpus, params.max_tokens)
        rows.append(place | found)
        progress(len(rows), len(readers))
    tables.write_table(output, rows, tables.cell_schema("cross_evaluation"))


def _measure(
    coder: Autoencoder,
    input_norm: float,
    reader: SiteReader,
    wanted: SiteReader,
    corpus: Tokens,
    max_tokens: int,
) -> dict[str, Any]:
    """Compute the columns of one variant."""
    n, total, norms = 0, torch.zeros(wanted.d_model, dtype=torch.float64), 0.0
    for x, y, _ in both(reader, wanted, max_tokens=max_tokens):
        n, total = n + len(x), total + y.double().sum(dim=0)
        norms += float(x.double().norm(dim=1).sum())
    factors = {"plain": 1.0, "rescaled": input_norm / (norms / n) if norms else 1.0}
    sums = {
        name: ReconstructionSums(mean=total / n * factor, n_documents=1, n_latents=coder.n_latents)
        for name, factor in factors.items()
    }
    for x, y, position in both(reader, wanted, max_tokens=max_tokens):
        ids = token_ids(corpus, position)
        for name, factor in factors.items():
            given = (x.double() * factor).float().to(coder.b_dec.device)
            scaled = (y.double() * factor).float()
            values, indices = coder.encode(given, ids)
            decoded = coder.decode(values, indices, given)
            sums[name].add(scaled, decoded, values, indices, np.zeros(len(x), dtype=np.int64))
    plain = sums["plain"].totals()
    return {
        **{name: plain[name] for name in ("n_tokens", "explained_variance", "cosine", "l0")},
        "explained_variance_rescaled": sums["rescaled"].totals()["explained_variance"],
        "alive_share": plain["alive_share"],
    }
