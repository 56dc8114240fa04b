"""The fields of a verb's `--params`, for its help."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from nullsae.config.section import Choice, Section
from nullsae.config.study import Config


def describe(model: type[Section], prefix: str = "") -> list[str]:
    """Return a line of help text per field of a params class, nested sections included."""
    lines, texts = [], model.descriptions()
    for name, field in model.known_keys().items():
        key = f"{prefix}{name}"
        needed = "required" if field.is_required() else f"default {field.get_default()!r}"
        chosen = [section for m in field.metadata if isinstance(m, Choice) for section in m.all()]
        inner = chosen or _sections(field.annotation)
        if inner and inner != [Config]:
            lines += [line for section in inner for line in describe(section, f"{key}.")]
            continue
        if get_origin(field.annotation) is Literal:
            needed += f", one of {', '.join(map(str, get_args(field.annotation)))}"
        text = " ".join(texts.get(name, "").split())
        lines.append(f"{key} ({needed}){': ' + text if text else ''}")
    return lines


def _sections(annotation: Any) -> list[type[Section]]:
    """Return the sections that an annotation names, through unions and optionals."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    # Kinds of a registry, in a list or a mapping.
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, Choice):
            return list(part.all())
    return [section for part in get_args(annotation) for section in _sections(part)]
