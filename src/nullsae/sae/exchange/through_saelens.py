"""SAEs of SAELens' releases, read by an installed `sae_lens`: its loaders and conversions."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

from nullsae.config.made_on import MadeOn
from nullsae.config.pretrained import FromSaeLens
from nullsae.config.saelens_list import listed
from nullsae.core.errors import UserError, first_line
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.layouts.saelens import SaeLens


def read_release(pretrained: FromSaeLens, where: str) -> tuple[Autoencoder, MadeOn]:
    """Read an SAE and what it was made on, by `sae_lens` and its list, which goes first.

    Raises:
        UserError: `sae_lens` is not installed, or cannot load it, or it is of a kind that cannot
            be had; begins with `where`.
    """
    entry = listed(pretrained, where)
    release, sae_id = pretrained.saelens.release, pretrained.saelens.sae_id
    key = f"{where}.saelens: {pretrained}"
    try:
        # What it prints and warns of in passing is said here in one line, or does not concern us.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from sae_lens import SAE

            sae, loaded, _ = SAE.from_pretrained_with_cfg_and_sparsity(
                release, sae_id, device="cpu", dtype="float32"
            )
    except Exception as error:  # whatever a loader, the hub or torch raises
        raise UserError(f"{key}: sae_lens cannot load it: {first_line(error)}") from None
    config: dict[str, Any] = sae.cfg.to_dict()
    # As loaded: what it makes of metadata drops keys that its own files have.
    config["metadata"] = {**(loaded.get("metadata") or {}), **config["metadata"]}
    made_on = SaeLens.of(config, key).metadata_made_on().with_more_from(entry.made_on)
    config["metadata"]["model_from_pretrained_kwargs"] = made_on.weight_processing
    layout = SaeLens.of(config, key)
    return layout.from_tensors(dict(sae.state_dict()), key), made_on
