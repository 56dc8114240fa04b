from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.config.parse import check_sites, parse_section
from nullsae.config.sites import (
    KINDS,
    PATTERN,
    SITE,
    expand_sites,
    needs_depth,
    site_kind,
    site_layer,
)
from nullsae.config.subjects import Subject
from refusing import refused

FEW = settings(max_examples=60, deadline=None)


def slowly(pattern: str, n_layers: int) -> list[str]:
    """Return the sites that a pattern means, by testing each block."""
    if pattern == "embed":
        return ["embed"]
    kind, blocks = pattern.split(".", 1)
    found = []
    for layer in range(n_layers):
        names = {str(layer), str(layer - n_layers)}
        if ".." in blocks:
            first, last, *rest = blocks.split("..")
            low = next(i for i in range(n_layers) if first in (str(i), str(i - n_layers)))
            high = next(i for i in range(n_layers) if last in (str(i), str(i - n_layers)))
            step = int(rest[0]) if rest else 1
            meant = low <= layer <= high and (layer - low) % step == 0
        else:
            meant = blocks == "*" or blocks in names
        if meant:
            found.append(f"{kind}.{layer}")
    return found


@st.composite
def studies(draw: st.DrawFn) -> tuple[list[str], int]:
    """Draw patterns that all match some site, and a number of blocks."""
    n_layers = draw(st.integers(1, 30))
    block = st.integers(-n_layers, n_layers - 1)
    patterns = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(KINDS))
        form = draw(st.sampled_from(["embed", "one", "all", "range", "steps"]))
        if form == "embed":
            patterns.append("embed")
            continue
        low, high = draw(block), draw(block)
        if low % n_layers > high % n_layers:
            low, high = high, low
        step = draw(st.integers(1, n_layers + 1))
        blocks = {"one": f"{low}", "all": "*", "range": f"{low}..{high}"}
        patterns.append(f"{kind}.{blocks.get(form, f'{low}..{high}..{step}')}")
    return patterns, n_layers


@FEW
@given(studies())
def test_patterns_mean_the_sites_found_by_asking_block_by_block(
    study: tuple[list[str], int],
) -> None:
    patterns, n_layers = study
    assert all(PATTERN.match(pattern) for pattern in patterns)
    expected = list(dict.fromkeys(s for p in patterns for s in slowly(p, n_layers)))
    found = expand_sites(patterns, n_layers)
    assert list(found) == expected
    assert all(SITE.match(site) and not needs_depth(site) for site in found)
    assert expand_sites(found, n_layers) == found
    assert all(-1 <= site_layer(site) < n_layers for site in found)


@FEW
@given(st.integers(2, 200), st.sampled_from(KINDS), st.data())
def test_a_block_takes_no_others_whose_number_begins_with_its_own(
    n_layers: int, kind: str, data: st.DataObject
) -> None:
    """In hook libraries that match names by prefix, `layers.1` also matches 10 to 19."""
    layer = data.draw(st.integers(0, n_layers - 1))
    assert expand_sites([f"{kind}.{layer}"], n_layers) == (f"{kind}.{layer}",)


def test_block_1_does_not_take_10_and_11() -> None:
    assert expand_sites(["resid_post.1"], 12) == ("resid_post.1",)
    assert expand_sites(["resid_post.0..1"], 12) == ("resid_post.0", "resid_post.1")
    assert expand_sites(["resid_post.-1"], 12) == ("resid_post.11",)
    assert expand_sites(["resid_post.*"], 12)[1] == "resid_post.1"


def test_patterns_are_resolved_as_documented() -> None:
    meant = {
        "resid_post.0..8": range(9),
        "attn_out.0..-1..4": (0, 4, 8),
        "mlp_out.-3..-1": (9, 10, 11),
        "resid_pre.2..11..5": (2, 7),
        "resid_pre.-1": (11,),
    }
    for pattern, layers in meant.items():
        kind = site_kind(pattern)
        assert expand_sites([pattern], 12) == tuple(f"{kind}.{i}" for i in layers), pattern
    assert expand_sites(["embed", "resid_post.1..2", "embed", "resid_post.*"], 3) == (
        *("embed", "resid_post.1", "resid_post.2", "resid_post.0"),
    )


WRONG = [
    *("resid_post", "resid_post.", "resid_post.a", "resid_post.1.2", "resid_post.01"),
    *("resid_post.-0", "resid_post.--1", "resid_post.0..", "resid_post...3", "resid_post.0...3"),
    *("resid_post.0..3..0", "resid_post.0..3..-1", "resid_post.{0..3}", "resid_post.[0]"),
    *("resid_post.*..3", "resid_post.**", "resid_post.1 ", " resid_post.1", "resid_post.1\n"),
    *("embed.0", "embed.*", "embeds", "mlp.3", "hook_resid_post.3", "RESID_POST.3", ""),
]


@pytest.mark.parametrize("pattern", WRONG)
def test_an_invalid_pattern_is_refused(pattern: str) -> None:
    subject = {"corpus": "c", "source": {"kind": "train"}, "sites": [pattern]}
    said = refused(parse_section, Subject, subject, where="config: subjects.s")
    assert said.startswith(f"config: subjects.s: sites: {pattern!r} is not a site; write embed, or")
    assert re.search(r"resid_post\.0\.\.-1\.\.4 \(every fourth\)$", said)


def test_blocks_beyond_the_last_and_empty_ranges_are_refused() -> None:
    said = {
        "resid_post.3": "resid_post.3 is beyond the last block; the subject has 3 blocks, 0 to 2",
        "mlp_out.-4": "mlp_out.-4 is beyond the last block; the subject has 3 blocks, 0 to 2",
        "attn_out.0..3": "attn_out.0..3 is beyond the last block; the subject has 3 blocks, 0 to 2",
        "resid_pre.2..1": "resid_pre.2..1 names no block: it starts at 2 and ends at 1",
        "resid_pre.-1..0": "resid_pre.-1..0 names no block: it starts at 2 and ends at 0",
    }
    for pattern, message in said.items():
        assert refused(check_sites, (pattern,), 3, where="here") == f"here: {message}"


def test_sites_are_told_from_patterns_that_need_the_depth() -> None:
    known = ("embed", "resid_post.0", "attn_out.12", "mlp_out.0..1", "resid_pre.0..28..4")
    assert [needs_depth(s) for s in known] == [False] * 5
    unknown = ("resid_post.*", "resid_post.-1", "mlp_out.0..-1", "embed", "attn_out.-3..2")
    assert [needs_depth(s) for s in unknown] == [True, True, True, False, True]


def test_a_range_with_both_ends_named_does_not_ask_for_the_depth() -> None:
    assert expand_sites(["resid_post.0..28..4"], None) == expand_sites(["resid_post.0..28..4"], 32)
    assert expand_sites(["embed", "mlp_out.7"], None) == ("embed", "mlp_out.7")
    with pytest.raises(ValueError, match="names no block"):
        expand_sites(["resid_post.3..2"], None)
    assert (site_kind("embed"), site_layer("embed")) == ("embed", -1)
    assert (site_kind("mlp_out.10"), site_layer("mlp_out.10")) == ("mlp_out", 10)
