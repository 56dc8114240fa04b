"""Config key `autointerp`: how explaining and judging is split into jobs."""

from __future__ import annotations

from pydantic import PositiveInt

from nullsae.config.section import Section


class Autointerp(Section):
    latents_per_job: PositiveInt | None = None
    """Latents of an SAE that one job explains or judges, if it uses a language model; null for all
    in one job. The result is the same."""
