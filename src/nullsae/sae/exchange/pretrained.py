"""SAEs made elsewhere, read from the folders of several packages or through `sae_lens`."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import NamedTuple

from nullsae.config.layouts import find_layout, layout_files, local_folder
from nullsae.config.made_on import MadeOn
from nullsae.config.model_files import is_local
from nullsae.config.pretrained import FromObject, FromSaeLens, Pretrained, pretrained_sae_path
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import check_files
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.through_saelens import read_release
from nullsae.sae.python_object import read_object


class Read(NamedTuple):
    """An SAE made elsewhere."""

    sae: Autoencoder
    made_on: MadeOn


def read_pretrained(pretrained: Pretrained, site: str | None, *, where: str) -> Autoencoder:
    """Read the SAE of `read_with_origin` without its origin."""
    return read_with_origin(pretrained, site, where=where).sae


def read_with_origin(
    pretrained: Pretrained, site: str | None, *, where: str, output_site: str = ""
) -> Read:
    """Read an SAE made elsewhere, in one of `LAYOUTS` or by `sae_lens`.

    What a file specifies beyond plain weights is folded into them if it is the same for all tokens:
    a b_dec that the encoder does not subtract, codes scaled by the norms of decoder rows, gates.
    What depends on the token becomes the SAE's `normalization`. Weights are returned as float32.

    `pretrained` is a folder or hub id, optionally with `::` and a folder within it; a release of
    SAELens; or a Python object, which is imported and run, and is a transcoder if `output_site`
    names the site it writes. `{site}` and `{layer}` are filled in if a site is given. What the SAE
    was made on is not checked here. `where` is the config key that messages name. Raises a
    `UserError` if it is not available, or with the file and the key that is missing, unknown,
    damaged or not supported.
    """
    if isinstance(pretrained, FromSaeLens):
        return Read(*read_release(pretrained if site is None else pretrained.at(site), where))
    if isinstance(pretrained, FromObject):
        return Read(read_object(pretrained, site or "", where, output_site), MadeOn())
    if site is None:
        path, _, inside = pretrained.partition("::")
    else:
        path, inside = pretrained_sae_path(pretrained, site)
    here = is_local(path) or Path(path).is_file()
    folder = local_folder(path, inside, where) if here else _fetched(path, inside, where)
    check_files(folder, where=where)
    layout, weights = find_layout(folder, where)
    return Read(layout.autoencoder(weights), layout.made_on(folder))


def _fetched(path: str, inside: str, where: str) -> Path:
    """Download a folder of a hub repository into the hub's cache."""
    import huggingface_hub

    from nullsae.corpus.hub import check_repository

    check_repository(path, kind="model", revision=None, where=where)
    prefix = f"{escape(inside)}/" if inside else ""
    # The config of a training is above the folders of its SAEs.
    wanted = [*(prefix + name for name in layout_files()), "config.json"]
    try:
        folder = Path(huggingface_hub.snapshot_download(path, allow_patterns=wanted)) / inside
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        raise UserError(
            f"{where}: {path!r} could not be fetched from the hub: {first_line(error)}"
        ) from None
    if not folder.is_dir():
        raise UserError(f"{where}: {path!r} on the hub contains no SAE in {inside!r}")
    return folder
