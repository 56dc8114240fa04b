"""Compare SAEs made elsewhere with what a study feeds them, right after the config is parsed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nullsae.config.layouts import (
    LAYOUTS,
    cached_folder,
    find_layout,
    local_folder,
    read_config,
)
from nullsae.config.made_on import MadeOn, UsedOn, differences, used_on
from nullsae.config.model_files import is_local
from nullsae.config.model_size import subject_shape
from nullsae.config.pretrained import (
    Difference,
    FromObject,
    FromSaeLens,
    Pretrained,
    pretrained_sae_path,
)
from nullsae.config.saelens_list import listed, overridden, refuse_corrected
from nullsae.config.sites import PROJECTED, site_kind, site_layer
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.folders import check_files, expanded


def check_pretrained(config: Config) -> None:
    """Compare each SAE made elsewhere with its subjects and their corpora, without network access.

    Reads local files, the hub's cache and SAELens' list; what these do not record is compared when
    the SAE is read. The sites of `config` are resolved.

    Raises:
        UserError: a folder or release does not exist, an SAE is of an unsupported kind, or it was
            made on something else; one line names the key.
    """
    for name, sae in config.saes.items():
        if sae.pretrained is None:
            continue
        where = f"config: saes.{name}"
        for subject_name, subject in config.subjects.items():
            shape = subject_shape(
                subject.source, where=f"config: subjects.{subject_name}.source", fetch=False
            )
            used = used_on(config, subject_name)
            for site in filter(lambda site: sae.is_made(site, "trained"), subject.sites):
                made, d_model, writes = _known(sae.pretrained, site, f"{where}.pretrained")
                if writes is not None:
                    refuse_output(writes, sae.output_of(site), site, sae.pretrained, where)
                refuse_differences(made, used, site, sae.accept_differences, where)
                wide = site_kind(site) not in PROJECTED and shape.d_model is not None
                if wide and d_model not in (None, shape.d_model):
                    raise UserError(
                        f"{where}.pretrained: an SAE for {d_model} dimensions, but {site} of "
                        f"{subject_name} has {shape.d_model}"
                    )


def refuse_differences(
    made: MadeOn, used: UsedOn, site: str | None, accepted: Collection[Difference], where: str
) -> None:
    """Refuse an SAE that was made on something other than it is fed, unless that is accepted.

    Raises:
        UserError: names the first difference; `where` is the recipe's key.
    """
    for name, sentence in differences(made, used, site):
        if name not in accepted:
            raise UserError(
                f"{where}.pretrained: {sentence}; give what it was made on, or add {name} to "
                f"{where.removeprefix('config: ')}.accept_differences"
            )


def refuse_output(
    writes: str, output_site: str, site: str, pretrained: Pretrained, where: str
) -> None:
    """Refuse a transcoder that writes at another site than its recipe says.

    Raises:
        UserError: names the key; `where` is the recipe's key.
    """
    if writes != output_site:
        raise UserError(
            f"{where}.output_site: {pretrained} writes {writes}, but the recipe says "
            f"{output_site} at {site}"
        )


def _known(pretrained: Pretrained, site: str, where: str) -> tuple[MadeOn, int | None, str | None]:
    """Return what is known of an SAE, the dimensions that it reads, and the site that it writes."""
    if isinstance(pretrained, FromSaeLens):
        made, writes = _known_of_release(pretrained.at(site), site, where)
        return made, None, writes
    if isinstance(pretrained, FromObject):
        pretrained.source_file(where)
        for i, name in enumerate(pretrained.files):
            if not expanded(name).is_file():
                raise UserError(f"{where}.files[{i}]: {name!r} is not a file")
        return MadeOn(), pretrained.d_model, None
    path, inside = pretrained_sae_path(pretrained, site)
    if is_local(path):
        folder: Path | None = local_folder(path, inside, where)
    else:
        refuse_corrected(path, where)
        folder = cached_folder(path, inside)
    if folder is None:
        return MadeOn(), None, None
    check_files(folder, where=where)
    layout, _ = find_layout(folder, where)
    return layout.made_on(folder), layout.input_width, layout.writes(folder) or site


def _known_of_release(pretrained: FromSaeLens, site: str, where: str) -> tuple[MadeOn, str | None]:
    entry = listed(pretrained, where)
    before = site_layer(site) - (site_kind(site) == "resid_pre")
    if entry.layer is not None and entry.layer not in (site_layer(site), before):
        raise UserError(
            f"{where}.saelens.sae_id: {pretrained.saelens.sae_id!r} is an SAE of block "
            f"{entry.layer}, but is used at {site}; {{layer}} stands for the block of the site"
        )
    made, layout = entry.made_on, LAYOUTS["saelens"]
    writes = None if entry.writes is None else f"{entry.writes}.{site_layer(site)}"
    folder = cached_folder(entry.repo_id, entry.path, weights=False)
    if entry.conversion == "sae_lens" and folder is not None:
        file = folder / layout.config_file
        config = overridden(read_config(file), entry.overrides)
        # Scaling factors of the list are folded into the weights when they are read.
        config.pop("normalize_activations", None)
        found = layout.of(config, str(file))
        made, writes = found.made_on(folder).with_more_from(made), found.writes(folder) or site
    return made, writes
