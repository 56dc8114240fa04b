"""From the files of single cells to the tables of a study.

In: every cell's tables. Out: one table of each kind for the whole study, with contrasts, verdicts
and costs. Nothing here may draw, or compute anything that a cell's own job could.
"""

from nullsae.aggregation.costs import read_costs
from nullsae.aggregation.study import aggregate

__all__ = ["aggregate", "read_costs"]
