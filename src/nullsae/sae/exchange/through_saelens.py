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

# Values that no file gives: the number of tokens in a batch, taken as that of a context, and, if a
# loader gives no BOS, the default of SAEs before version 6.
_MADE_UP = {
    "mwhanna_transcoder": ("context_tokens", "prepend_bos"),
    "goodfire": ("prepend_bos",),
}


def read_release(pretrained: FromSaeLens, where: str) -> tuple[Autoencoder, MadeOn]:
    """Read an SAE and what it was made on, by `sae_lens` and its list, which takes precedence.

    Raises:
        UserError: `sae_lens` is not installed or cannot load it, or its kind is not supported; the
            message begins with `where`.
    """
    entry = listed(pretrained, where)
    release, sae_id = pretrained.saelens.release, pretrained.saelens.sae_id
    key = f"{where}.saelens: {pretrained}"
    try:
        # Its output and warnings are summarized here in one line, or do not matter.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from sae_lens import SAE

            sae, loaded, _ = SAE.from_pretrained_with_cfg_and_sparsity(
                release, sae_id, device="cpu", dtype="float32"
            )
    except Exception as error:  # raised by any loader, the hub or torch
        raise UserError(f"{key}: sae_lens cannot load it: {first_line(error)}") from None
    config: dict[str, Any] = sae.cfg.to_dict()
    # As loaded, because its conversion of metadata drops keys of its own files.
    config["metadata"] = {**(loaded.get("metadata") or {}), **config["metadata"]}
    said = SaeLens.of(config, key).metadata_made_on()
    said = said.model_copy(update=dict.fromkeys(_MADE_UP.get(entry.conversion, ())))
    made_on = said.with_more_from(entry.made_on)
    config["metadata"]["model_from_pretrained_kwargs"] = made_on.weight_processing
    layout = SaeLens.of(config, key)
    return layout.from_tensors(dict(sae.state_dict()), key), made_on
