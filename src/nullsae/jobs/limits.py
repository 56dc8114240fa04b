"""Resources that a profile or a command line sets, in every form in which Snakemake takes them."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, Literal

from nullsae.core.errors import UserError

if TYPE_CHECKING:
    from snakemake.resources import Resources
    from snakemake.settings.types import ResourceSettings

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


def read_set_resources(settings: ResourceSettings) -> None:
    """Read sizes of `--set-resources` that have a unit, which Snakemake takes for `mem` alone.

    Raises:
        UserError: a text that is no size.
    """
    from snakemake.resources import Resource

    for rule, given in settings.overwrite_resources.items():
        for name in ("mem_mb", "disk_mb"):  # so Snakemake keeps `mem` and `disk`, too
            text = _literal(given[name].raw) if name in given else None
            if text is not None:
                megabytes = limit("mem_mb", text, f"--set-resources {rule}:{name}")
                given[name] = Resource(name, megabytes)


def _literal(raw: Any) -> str | None:
    """The text that an expression is, in quotes or, with a unit, without."""
    if not isinstance(raw, str):
        return None
    try:
        found = ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        # An amount with a unit is no expression of Python, and any other text may be one.
        return raw if re.fullmatch(r"[\d.]+ ?[A-Za-z]+", raw) else None
    return found if isinstance(found, str) else None


def set_as_for(settings: ResourceSettings, rule: str, job: str) -> None:
    """Let `--set-resources` and `--set-threads` of a rule hold for a rule of another name, too.

    Called before that rule is defined; what is said of it by its own name comes first.
    """
    for known in (settings._parsed_overwrite_resources, settings._parsed_overwrite_threads):
        if rule in known:
            known.setdefault(job, known[rule])
