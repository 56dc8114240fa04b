"""Whether two arms are comparable: similar training tokens, similar L0, the same precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nullsae.aggregation.cells import Units
from nullsae.aggregation.stages import Compared
from nullsae.config.saes import Sae, recipe_name
from nullsae.config.study import Config
from nullsae.jobs.grid import Keys

Place = tuple[str | None, ...]
"""Subject, site, SAE and variant."""
PLACE = ("subject", "site", "sae", "variant")


class Comparable:
    """Training tokens and L0 of each arm: means over its draws of means over their seeds."""

    def __init__(
        self,
        config: Config,
        reconstruction: Iterable[Units],
        histories: Iterable[tuple[Keys, pa.Table]],
    ) -> None:
        """Collect them from the cells of the tables `reconstruction` and `history`."""
        self._config = config
        self._l0 = _means((unit.keys, float(unit.column("l0")[0][0])) for unit in reconstruction)
        histories = list(histories)
        seen = ((keys, float(pc.max(table["tokens"]).as_py())) for keys, table in histories)
        self._tokens = _means(seen)
        self._precisions: dict[Place, set[str]] = {}
        for keys, table in histories:
            place = tuple(keys[name] for name in PLACE)
            found = table["precision"].drop_null().to_pylist()
            self._precisions.setdefault(place, set()).update(found)

    def of_contrast(self, compared: Compared) -> dict[str, Any]:
        """Return columns of `contrasts`."""
        names = compared.names
        own, other = ((*keys[:3], keys[-1]) for keys in compared.keys)
        row = {
            "real_training_tokens": self._known_tokens(own),
            "training_tokens": self._known_tokens(other),
            **{"real_l0": self._l0[own], "l0": self._l0[other]},
        }
        problems = [compared.not_comparable, self._of_l0(row, names)]
        problems.append(self._of_precision(own, other, names))
        # A dictionary that is computed from activations is not trained, so tokens do not matter.
        if all(self._recipe(place).origin.trained for place in (own, other)):
            problems.insert(1, self._of_tokens(row, names))
        return row | {"not_comparable": "; ".join(filter(None, problems)) or None}

    def _recipe(self, place: Place) -> Sae:
        *_, sae, _ = place
        assert sae is not None
        return self._config.saes[recipe_name(sae)]

    def _known_tokens(self, place: Place) -> float | None:
        """Return an arm's training tokens; None for an SAE made elsewhere."""
        elsewhere = self._recipe(place).made_elsewhere(str(place[-1]))
        return None if elsewhere else self._tokens[place]

    def _of_tokens(self, row: Mapping[str, Any], names: tuple[str, str]) -> str | None:
        key, most = "max_training_token_ratio", self._config.statistics.max_training_token_ratio
        own, other = row["real_training_tokens"], row["training_tokens"]
        if most is None:
            return None
        if own is None or other is None:
            return (
                f"the pretrained SAE's number of training tokens is not known (set "
                f"statistics.{key}: null to compare it anyway)"
            )
        few, many = sorted((own, other))
        if many <= most * few:
            return None
        return (
            f"SAEs of {names[0]} saw {own:,.0f} training tokens, those of {names[1]} {other:,.0f}: "
            f"they differ by more than {most:g} times (statistics.{key})"
        )

    def _of_precision(self, own: Place, other: Place, names: tuple[str, str]) -> str | None:
        """Return the problem, if any; SAEs that were not trained here have no precision."""
        found = [" and ".join(sorted(self._precisions[place])) for place in (own, other)]
        if not all(found) or found[0] == found[1]:
            return None
        return (
            f"SAEs of {names[0]} were trained in {found[0]}, those of {names[1]} in {found[1]} "
            f"(compute.precision)"
        )

    def _of_l0(self, row: Mapping[str, Any], names: tuple[str, str]) -> str | None:
        key, most = "max_l0_difference", self._config.statistics.max_l0_difference
        own, other = row["real_l0"], row["l0"]
        if most is None or abs(other - own) <= most * own:
            return None
        return (
            f"L0 is {own:.3g} in {names[0]} and {other:.3g} in {names[1]}: they differ by more "
            f"than {most:.0%} (statistics.{key})"
        )


def _means(cells: Iterable[tuple[Keys, float]]) -> dict[Place, float]:
    """Return each arm's mean over draws of the means over seeds."""
    draws: dict[Place, dict[str, list[float]]] = {}
    for keys, value in cells:
        place = tuple(keys[name] for name in PLACE)
        draws.setdefault(place, {}).setdefault(keys["draw"], []).append(value)
    return {
        place: float(np.mean([np.mean(seeds) for seeds in found.values()]))
        for place, found in draws.items()
    }
