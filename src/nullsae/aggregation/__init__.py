"""From the files of single cells to the tables of a study, its contrasts and its verdicts."""

from nullsae.aggregation.costs import read_costs
from nullsae.aggregation.study import aggregate

__all__ = ["aggregate", "read_costs"]
