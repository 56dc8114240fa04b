"""What the jobs of a study cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nullsae import paths
from nullsae.core.errors import UserError
from nullsae.core.files import read_json
from nullsae.tables.study import COSTS

# What a job asked a language model for; null for other jobs.
ASKED = COSTS.names[COSTS.names.index("model") :]


def read_costs(root: Path) -> list[dict[str, Any]]:
    """Read rows of `costs` from Snakemake's benchmark files, sorted by rule and keys.

    Raises:
        UserError: a benchmark file was not written by Snakemake.
    """
    folder = root / Path(paths.COSTS).parent
    rows: list[dict[str, Any]] = []
    for path in folder.rglob("*.tsv"):
        rule, *rest = path.relative_to(folder).with_suffix("").parts
        try:
            # Snakemake writes - and NA for jobs that ended before it could measure them.
            frame = pd.read_csv(path, sep="\t", na_values=["-", "NA"])
            columns = frame[["s", "cpu_time", "max_rss"]].astype("float64")
        except (ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            problem = f"not a benchmark file of Snakemake ({first}); remove it"
            raise UserError(f"{path}: {problem}") from None
        of_llm = path.with_suffix(".asked.json")
        asked = read_json(of_llm, rebuild="") if of_llm.is_file() else {}
        for wall, cpu, rss in columns.itertuples(index=False):
            if not np.isnan(wall):
                row = {"rule": rule, "keys": "/".join(rest), "wall_seconds": wall}
                row["cpu_seconds"] = None if np.isnan(cpu) else cpu
                row["max_rss_mib"] = None if np.isnan(rss) else rss
                rows.append(row | {name: asked.get(name) for name in ASKED})
    return sorted(rows, key=lambda row: (row["rule"], row["keys"]))
