"""What no job asks more of, in every form in which Snakemake takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from nullsae.core.errors import UserError

if TYPE_CHECKING:
    from snakemake.resources import Resources

Kind = Literal["mem_mb", "runtime"]
FORMS: dict[Kind, str] = {
    "mem_mb": "megabytes, or a size such as 64GB",
    "runtime": "minutes, or a time such as 12h",
}


def limit(kind: Kind, given: Any, where: str) -> int:
    """Megabytes or minutes, from a number or a text with a unit, which may stand in quotes.

    Raises:
        UserError: it is neither; names `where`, and what would be right.
    """
    from snakemake.exceptions import WorkflowError
    from snakemake.resources import Resource

    try:
        # As Snakemake reads the resource itself.
        text = str(given).strip()
        found = Resource.parse_human_friendly(kind.removesuffix("_mb"), text)
        if isinstance(found, int) and not isinstance(given, bool) and found > 0:
            return found
    except WorkflowError:
        pass
    raise UserError(f"{where}: {given!r}; write {FORMS[kind]}")


def default_limit(defaults: Resources | None, kind: Kind, otherwise: int) -> int:
    """`max_mem_mb` or `max_runtime` of `--default-resources`, or else `otherwise`.

    Expressions are evaluated as those of a job at its first attempt, without any input.

    Raises:
        UserError: as `limit`, or the expression fails.
    """
    name = f"max_{kind}"
    if defaults is None or name not in defaults:
        return otherwise
    found, where = defaults[name], f"--default-resources {name}"
    try:
        job = {"input": [], "attempt": 1, "threads": 1, "rulename": "", "async_run": None}
        value = found.evaluate({}, **job).value
    except Exception as error:  # an expression may raise anything
        text = " ".join(str(error).split())
        raise UserError(f"{where}: {found.raw!r}: {text or type(error).__name__}") from None
    return limit(kind, value, where)
