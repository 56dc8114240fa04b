"""`snakemake --logger nullsae`: Snakemake finds a logger by the name of a package."""

from nullsae.watching.logger import LogHandler

__all__ = ["LogHandler"]
