"""From a merged YAML file to a checked config; each mistake becomes one line that names its key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nullsae.config.keys import has_key
from nullsae.config.model_size import Shape, subject_shape
from nullsae.config.null_dictionaries import with_null_dictionaries
from nullsae.config.plain import check_amount
from nullsae.config.section import OTHER_SECTION, SECTION, without_nulls
from nullsae.config.sites import PROJECTED, expand_sites, needs_depth, site_kind
from nullsae.config.study import ENTRIES, Config
from nullsae.config.subjects import PretrainedSource
from nullsae.config.variants import VARIANTS, is_positive_control
from nullsae.core.errors import UserError

S = TypeVar("S", bound=BaseModel)

# Keys whose values are never shown: people put API keys there by mistake.
MAY_HOLD_KEYS = ("api_key_env", "headers_env", "base_url", "extra_body")
MOST_SHOWN = 300


def parse_config(data: Any) -> Config:
    """Check a merged config.

    Raises:
        UserError: one line per mistake, with the key, the value and what would be right.
    """
    if isinstance(data, dict):
        data = data | {key: without_nulls(data[key]) for key in ENTRIES if key in data}
    return parse_section(Config, data, where="config")


def parse_section(model: type[S], data: Any, *, where: str) -> S:
    """Validate plain data against a model; mistakes become a `UserError` that names the key."""
    check_amount(data, where)
    if wrong := _not_plain(data):
        raise UserError(f"{where}: {wrong}")
    # In JSON mode lists may fill tuples, but text never passes for a number. `str` is for dates:
    # YAML reads a bare 2024-01-31, which can be a revision, as one.
    text = json.dumps(data, default=str)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        found = error.errors()
        # A list whose items are wrong is not also empty.
        lines = [
            _explain(one, data, model)
            for one in found
            if one["type"] != "too_short"
            or not any(
                other["loc"][: len(one["loc"])] == one["loc"] != other["loc"] for other in found
            )
        ]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def _not_plain(data: Any, key: str = "") -> str | None:
    """Say which key or value is of a type that a config does not have, or half a character."""
    at = f"{key}: " if key else ""
    if isinstance(data, dict):
        for name, value in data.items():
            if not isinstance(name, str | int | float | None):
                return f"{at}the key {name} is a {type(name).__name__}, not text; put it in quotes"
            part = "***" if has_key(str(name)) else name
            if wrong := _not_plain(name, key) or _not_plain(value, f"{key}.{part}".lstrip(".")):
                return wrong
    elif isinstance(data, list | tuple):
        return next(filter(None, (_not_plain(v, f"{key}.{i}") for i, v in enumerate(data))), None)
    elif isinstance(data, str) and re.search("[\ud800-\udfff]", data):
        return f"{at}not text: it has a byte that is not UTF-8, or half of a surrogate pair"
    elif isinstance(data, set | frozenset | bytes):
        kinds = "a list" if isinstance(data, set | frozenset) else "text"
        return f"{at}a value of type {type(data).__name__}; write {kinds}"
    return None


def _explain(detail: Any, data: Any, model: type[BaseModel]) -> str:
    """Return one line for one mistake found by pydantic."""
    key, current = [], data
    for part in detail["loc"]:
        keys = current if isinstance(current, dict) else {}
        if part in (SECTION, OTHER_SECTION, keys.get("kind")) and part not in keys:
            continue  # the tag of a union, not a key of the file
        key.append(str(part))
        if isinstance(current, dict):
            current = current.get(part)
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            current = current[part]
    hidden = next((part for part in key if part in MAY_HOLD_KEYS), None)
    name, kind = ".".join("***" if has_key(part) else part for part in key), detail["type"]
    value, said = detail["input"], _shown(detail["input"], hidden)
    prefix = f"{name}: " if name else ""
    if kind == "extra_forbidden":
        return f"{prefix}unknown key{suggested(key[-1], _known_keys(model, detail['loc'][:-1]))}"
    if kind == "missing":
        return f"{prefix}missing"
    if kind == "union_tag_not_found":
        return f"{prefix}kind: missing"
    if kind == "too_short" and detail["ctx"]["actual_length"] == 0:
        return f"{prefix}is empty; give at least {detail['ctx']['min_length']}"
    if kind in ("union_tag_invalid", "literal_error"):
        context = detail["ctx"]
        if kind == "union_tag_invalid":
            prefix, value = f"{prefix}kind: ", context["tag"]
        options = re.findall(r"'([^']+)'", context.get("expected_tags") or context["expected"])
        hint = suggested(str(value), options)
        return f"{prefix}{_shown(value, hidden)} is not one of {', '.join(options)}{hint}"
    if isinstance(value, str) and kind in {"float_type", "int_type", "float_parsing"}:
        hint = ""
        if exponent := re.fullmatch(r"([+-]?\d+)(e[+-]?\d+)", value, re.IGNORECASE):
            hint = f"; YAML reads {value} as text, write {exponent[1]}.0{exponent[2]}"
        return f"{prefix}{said} is text, not a number{hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{prefix}{message}"
    return f"{prefix}{said}: {message[0].lower()}{message[1:]}"


def _shown(value: Any, hidden: str | None) -> str:
    """Return a value as a message may show it: shortened, and no possible secret."""
    text = repr(value)
    if hidden is not None or has_key(text):
        return "this value"
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + " ..."


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section at `loc` of a model may have."""
    node: Any = model.model_json_schema()
    definitions = node.get("$defs", {})

    def resolve(node: Any) -> list[Any]:
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
        options = node.get("oneOf", node.get("anyOf"))
        return [end for option in options for end in resolve(option)] if options else [node]

    nodes = resolve(node)
    for part in loc:
        if tagged := [
            n for n in nodes if n.get("properties", {}).get("kind", {}).get("const") == part
        ]:
            nodes = tagged  # a union's tag selects an option, and is no step into it
            continue
        inner = [n.get("properties", {}).get(part) or n.get("additionalProperties") for n in nodes]
        step = [end for n in inner if isinstance(n, dict) for end in resolve(n)]
        nodes = step or nodes
    return [key for n in nodes for key in n.get("properties", {})]


def suggested(word: str, options: Collection[str]) -> str:
    """Return the end of a message about an unknown word: the closest of the options."""
    close = difflib.get_close_matches(word, options, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def config_schema() -> str:
    """Return the JSON schema of the config as text, for editors and `workflow/schemas/`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Config.model_json_schema(), indent=2) + "\n"


def resolve_subjects(config: Config) -> Config:
    """Expand patterns of sites; check what depends on the subjects' sizes.

    Raises:
        UserError: a path looks local but is not a model folder, a site is beyond the last block, or
            a k is larger than the dictionary.
    """
    subjects = {}
    for name, subject in config.subjects.items():
        key = f"config: subjects.{name}"
        # A dry run must not ask a hub for a range with both ends named, such as 0..28..4.
        unclear = any(needs_depth(site) for site in subject.sites)
        shape = subject_shape(subject.source, where=f"{key}.source", fetch=unclear)
        if unclear and shape.n_layers is None:
            raise UserError(
                f"{key}.sites: patterns need the number of blocks, which is not known here; name "
                f"each site"
            )
        try:
            sites = expand_sites(subject.sites, shape.n_layers)
        except ValueError as error:
            raise UserError(f"{key}.sites: {error}") from None
        subjects[name] = subject.model_copy(update={"sites": sites})
        _check_retrained(config, name, shape)
        for sae_name, sae in config.saes.items():
            if shape.d_model is None or all(site_kind(site) in PROJECTED for site in sites):
                continue
            most = sae.origin.most_active(shape.d_model) or sae.width(shape.d_model)
            if most is not None and sae.limited and sae.kept > most:
                raise UserError(
                    f"config: saes.{sae_name}.k: {sae.kept} is larger than the number of latents "
                    f"that can be active at once, {most}, at {shape.d_model} dimensions"
                )
    every = {site for subject in subjects.values() for site in subject.sites}
    for sae_name, sae in config.saes.items():
        if not any(sae.is_made(site, "trained") for site in every):
            key, found = "input_site", sae.input_site
            if sae.sites is not None:
                key, found = "sites", " or ".join(sae.sites)
            raise UserError(
                f"config: saes.{sae_name}.{key}: no subject has a site {found}; "
                f"name one in subjects.*.sites"
            )
        for variant in sae.variants or ():
            if variant not in config.variants:
                raise UserError(
                    f"config: saes.{sae_name}.variants: {variant!r} is not one of variants "
                    f"({', '.join(config.variants)})"
                )
    resolved = config.model_copy(update={"subjects": subjects})
    return resolved.model_copy(update={"saes": with_null_dictionaries(resolved)})


def _check_retrained(config: Config, name: str, shape: Shape) -> None:
    """Check that the local folder of a retrained subject has a model of the subject's size."""
    source, key = config.subjects[name].source, f"config: subjects.{name}.source"
    if not isinstance(source, PretrainedSource):
        return
    for variant in filter(is_positive_control, config.variants):
        for draw in config.draws_of(variant, name):
            of_draw = VARIANTS[variant].source_of(source, draw)
            path, _, path_key, _ = VARIANTS[variant].weights_of(of_draw)
            given = source.model_copy(update={"path": path})
            found = subject_shape(
                given, where=f"{key}.{path_key.removesuffix('.path')}", fetch=False
            )
            for what in ("n_layers", "d_model"):
                own, other = getattr(shape, what), getattr(found, what)
                if None not in (own, other) and own != other:
                    raise UserError(
                        f"{key}.{path_key}: {path!r} has {what} {other}, the subject {own}; give "
                        f"the same architecture, trained from another seed"
                    )


def check_sites(sites: tuple[str, ...], n_layers: int, *, where: str) -> None:
    """Check that no site is beyond the last of `n_layers` blocks; else raise a `UserError`."""
    try:
        expand_sites(sites, n_layers)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


if __name__ == "__main__":
    print(config_schema(), end="")
