"""The variants and sites of a recipe, and the two sites of a transcoder."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from nullsae.config.section import Section
from nullsae.config.sites import KINDS, site_kind, site_layer


class Transcoding(Section):
    """Keys of a recipe that say where SAEs are made."""

    variants: tuple[str, ...] | None = None
    """Variants to make SAEs of, `trained` among them; by default all of the study."""
    sites: tuple[str, ...] | None = None
    """Sites to make SAEs at; by default all of the subject."""
    input_site: str | None = None
    """For a transcoder: the kind of site that it reads, such as `mlp_in`; it is made only at these
    sites. It needs `output_site` and `pretrained`, and only the trained variant gets it, since
    transcoders are not trained here."""
    output_site: str | None = None
    """For a transcoder: the kind of site that it predicts, such as `mlp_out`, in the same block.
    It is captured too; other SAEs are made there only if `sites` names it."""

    @model_validator(mode="after")
    def transcoder_has_both_ends(self) -> Self:
        ends = {"input_site": self.input_site, "output_site": self.output_site}
        if set(ends.values()) == {None}:
            return self
        for key, kind in ends.items():
            if kind is None:
                raise ValueError(f"{key}: missing; a transcoder has an input_site and output_site")
            if kind not in KINDS:
                raise ValueError(f"{key}: {kind!r} is not one of {', '.join(KINDS)}")
        first, last = (KINDS.index(kind) for kind in ends.values() if kind is not None)
        if first >= last:
            raise ValueError(
                f"output_site: {self.output_site} does not come after {self.input_site} in a block"
            )
        return self

    @model_validator(mode="after")
    def trained_is_among_its_variants(self) -> Self:
        if self.variants is not None and "trained" not in self.variants:
            raise ValueError("variants: 'trained' is missing; every contrast is against it")
        return self

    def is_made(self, site: str, variant: str) -> bool:
        """Return whether an SAE is made at a site of a variant."""
        if self.variants is not None and variant not in self.variants:
            return False
        if self.sites is not None and site not in self.sites:
            return False
        if self.input_site is None:
            return True
        return site_kind(site) == self.input_site and variant == "trained"

    def output_of(self, site: str) -> str:
        """Return the site that it predicts, given the site that it reads."""
        return site if self.output_site is None else f"{self.output_site}.{site_layer(site)}"
