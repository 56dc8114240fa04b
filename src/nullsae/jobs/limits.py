"""Resources set by a profile or command line, in every form that Snakemake accepts."""

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
    """Parse megabytes or minutes from a number or a text with a unit, which may be quoted.

    Raises:
        UserError: it is neither; names `where` and what would be right.
    """
    from snakemake.exceptions import WorkflowError
    from snakemake.resources import Resource

    try:
        # Snakemake's own parser.
        text = str(given).strip()
        found = Resource.parse_human_friendly(kind.removesuffix("_mb"), text)
        if isinstance(found, int) and not isinstance(given, bool) and found > 0:
            return found
    except WorkflowError:
        pass
    raise UserError(f"{where}: {given!r}; write {FORMS[kind]}")


def default_limit(defaults: Resources | None, kind: Kind, otherwise: int) -> int:
    """Return `max_mem_mb` or `max_runtime` of `--default-resources`, or else `otherwise`.

    Expressions are evaluated as for a job's first attempt, without input.

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
    """Parse sizes with a unit in `--set-resources`, which Snakemake accepts only for `mem`.

    Raises:
        UserError: a text is not a size.
    """
    from snakemake.resources import Resource

    for rule, given in settings.overwrite_resources.items():
        for name in ("mem_mb", "disk_mb"):  # Snakemake's names for `mem` and `disk`, too
            text = _literal(given[name].raw) if name in given else None
            if text is not None:
                megabytes = limit("mem_mb", text, f"--set-resources {rule}:{name}")
                given[name] = Resource(name, megabytes)


def _literal(raw: Any) -> str | None:
    """Return an expression's text if it is a string, quoted or, with a unit, unquoted."""
    if not isinstance(raw, str):
        return None
    try:
        found = ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        # An amount with a unit is not a Python expression; any other text may be one.
        return raw if re.fullmatch(r"[\d.]+ ?[A-Za-z]+", raw) else None
    return found if isinstance(found, str) else None


def set_as_for(settings: ResourceSettings, rule: str, job: str) -> None:
    """Apply `--set-resources` and `--set-threads` of a rule to a rule of another name, too.

    Called before that rule is defined; settings under its own name take precedence.
    """
    for known in (settings._parsed_overwrite_resources, settings._parsed_overwrite_threads):
        if rule in known:
            known.setdefault(job, known[rule])
