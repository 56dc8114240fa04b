"""Config key `saes.*.pretrained`: where an SAE comes from that was made elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from nullsae.config.section import SECTION, Section
from nullsae.config.sites import site_layer

Difference = Literal["model", "revision", "hook", "context_tokens", "prepend_bos", "data_set"]


class SaeLensRelease(Section):
    """An SAE of the list that comes with SAELens, or of a hub repository in its layout."""

    release: Annotated[str, Field(min_length=1)]
    """Name in SAELens' list of pretrained SAEs, or a hub id."""
    sae_id: Annotated[str, Field(min_length=1)]
    """The SAE within it; `{site}` and `{layer}` are filled in."""


class FromSaeLens(Section):
    """Read by an installed `sae_lens` (`pip install 'nullsae[saelens]'`)."""

    saelens: SaeLensRelease

    def __str__(self) -> str:
        return f"{self.saelens.release}, {self.saelens.sae_id}"

    def at(self, site: str) -> FromSaeLens:
        """With the site filled in."""
        release = self.saelens.model_copy(update={"sae_id": _filled(self.saelens.sae_id, site)})
        return FromSaeLens(saelens=release)


def _is_text(given: Any) -> str:
    return "text" if isinstance(given, str) else SECTION


Pretrained = Annotated[
    Annotated[str, Tag("text")] | Annotated[FromSaeLens, Tag(SECTION)], Discriminator(_is_text)
]


def pretrained_sae_path(pretrained: str, site: str) -> tuple[str, str]:
    """A pretrained SAE's (folder or hub id, folder within it) with the site filled in."""
    path, _, inside = _filled(pretrained, site).partition("::")
    return path, inside


def _filled(text: str, site: str) -> str:
    return text.replace("{site}", site).replace("{layer}", str(site_layer(site)))
