"""Explanations that were written elsewhere."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from nullsae.autointerp.explain import ExplainJob, explained_in_words
from nullsae.autointerp.imported.find import layout_at
from nullsae.autointerp.imported.layout import About, Said
from nullsae.config.explainers import Explainer
from nullsae.config.imported import Imported, Keys

log = logging.getLogger(__name__)


class ImportExplainer(Imported, Explainer):
    """Explanations from files: of delphi, of Neuronpedia, CSV or Parquet."""

    name: ClassVar[str] = "import"
    position: ClassVar[int] = 4
    shown_first: ClassVar[bool] = True
    made_elsewhere: ClassVar[bool] = True

    kind: Literal["import"]

    @property
    def text(self) -> str:
        return f"Explanations written elsewhere, read from {self.path}."

    def own_files(self, keys: Keys) -> tuple[str, ...]:
        path = self.found(keys)
        if path is None:
            return ()
        inside = path / "explanations"
        return (str(inside if inside.is_dir() else path),)

    def explain(self, job: ExplainJob) -> pa.Table:
        """Read the file's explanations of all its latents; sampled ones without get a reason."""
        sampled = job.beside("latents", "latent", "sampled")
        latents = sampled.filter(sampled["sampled"])["latent"].to_pylist()
        if job.ranks is not None:
            latents = np.unique(job.windows("latent")["latent"].to_numpy()).tolist()
        keys = {key: str(value) for key, value in job.params.keys.model_dump().items()}
        path = self.found(keys)
        said: dict[int, Said] = {}
        missing = f"{self.path} is not about this SAE"
        if path is not None:
            about = About(sampled.num_rows, self.source_of(keys), self.model)
            said = dict(layout_at(path).explanations(path, about))
            missing = f"not in {path}"
            if n_missing := sum(latent not in said for latent in latents):
                log.warning(
                    "%s: %d of %d sampled latents are not in it", path, n_missing, len(latents)
                )
        wanted = sorted({*latents, *said}) if job.ranks is None else latents
        table = explained_in_words(
            {latent: said[latent].text if latent in said else None for latent in wanted},
            {
                latent: f"{path} has no text for it" if latent in said else missing
                for latent in wanted
            },
        )
        writers = pa.array([said[n].model if n in said else None for n in wanted], pa.string())
        place = table.schema.get_field_index("model")
        return table.set_column(place, table.schema.field(place), writers)
