from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_study import EOS, EXPLAINERS, default_config, train_tokenizer

from nullsae import tables
from nullsae.config.metrics import all_metrics
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS
from nullsae.core.visible import visible
from nullsae.report import sections, style
from nullsae.report.browser import strongest
from nullsae.report.names import GROUPS, entropy_pair, figure_names
from nullsae.report.page import in_page, number, p_value, percent, signed, write_page
from nullsae.report.render import to_svg
from nullsae.report.study import Study
from nullsae.report.text import TokenText, inked

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear sRGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [
        [0.3673, 0.8606, -0.2280],
        [0.2801, 0.6725, 0.0474],
        [-0.0118, 0.0429, 0.9689],
    ],
    "tritanopia": [
        [1.2555, -0.0767, -0.1788],
        [-0.0784, 0.9308, 0.1476],
        [0.0047, 0.6914, 0.3039],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    channel = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    x = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    a, b = sorted(TO_XYZ[1] @ linear(colour) + 0.05 for colour in (one, other))
    return float(b / a)


@pytest.mark.parametrize("dark", [False, True])
def test_variants_stay_apart_for_every_kind_of_sight_and_from_the_ground(dark: bool) -> None:
    colours = [style.colour(variant) for variant in VARIANTS]
    assert len(set(colours)) == len(VARIANTS)
    if dark:
        colours = [style.dark()[colour] for colour in colours]
    ground = "#15181e" if dark else "#ffffff"
    assert min(contrast(colour, ground) for colour in colours) > 3
    ink = style.dark()[style.INK] if dark else style.INK
    muted = style.dark()[style.MUTED] if dark else style.MUTED
    assert contrast(ink, ground) > 7
    assert contrast(muted, ground) > 4.5
    for sight, matrix in SIGHT.items():
        seen = [lab(np.asarray(matrix) @ linear(colour)) for colour in colours]
        distance = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
        assert distance > 15, sight


def test_no_two_variants_share_a_shape_or_a_dash() -> None:
    assert len({style.shape(variant) for variant in VARIANTS}) == len(VARIANTS)
    assert len({tuple(style.dash(variant)) for variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_can_be_read_on_the_colour_of_every_step(dark: bool) -> None:
    ink = style.dark()[style.INK] if dark else style.INK
    for colour in (*style.STEPS, *style.SHARES):
        assert contrast(ink, style.dark()[colour] if dark else colour) > 4.5


def test_the_snakefile_does_not_pay_for_altair_to_learn_the_figure_names() -> None:
    code = (
        "import sys, nullsae.report.names;"
        "print(sorted({'altair', 'pandas', 'pyarrow', 'torch', 'vl_convert'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_metric_has_a_figure_and_every_name_is_given_once() -> None:
    # A language model's explanations, their placebo, lexical and floors: all existing metrics.
    explainers = {
        **EXPLAINERS,
        "gpt": {"kind": "openai", "model": "m"},
        "gpt_swapped": {"kind": "swapped", "of": "gpt"},
    }
    names = figure_names(default_config(explainers=explainers))
    assert len(names) == len(set(names))
    assert {f"small.{metric.name}" for metric in all_metrics()} < set(names)
    extra = {"cross_entropy", "token_lookup", "training_curves", "entropy_auroc"}
    extra |= {"geometry", "overlap", "answer"}
    assert {f"small.{kind}" for kind in extra} < set(names)
    assert len(names) == len(all_metrics()) + len(extra)
    # Metrics that no comparison of a study has get no figure.
    fewer = figure_names(default_config(evaluation={"gaussian_floors": False}))
    assert set(names) - set(fewer) == {"small.gain_over_lexical", "small.above_floors"}
    kinds = [kind for group in GROUPS for kind in group.kinds]
    assert len(kinds) == len(set(kinds))


def test_a_study_without_scores_promises_no_figures_of_scores() -> None:
    for config in (default_config(explainers={}), default_config(scorers={})):
        kinds = {name.partition(".")[2] for name in figure_names(config)}
        assert not kinds & {"auroc", "auprc", "f1", "balanced_accuracy", "entropy_auroc"}
        assert entropy_pair(config) is None


def test_detection_goes_before_fuzzing_whatever_their_order() -> None:
    scorers = {"marked": {"kind": "fuzzing"}, "plain": {"kind": "detection"}}
    assert entropy_pair(default_config(scorers=scorers)) == ("lexical", "plain")


TOKENIZER = train_tokenizer()


@pytest.fixture(scope="module")
def text() -> TokenText:
    return TokenText(TOKENIZER)


@given(st.lists(st.integers(0, 1499), max_size=12))
def test_no_sequence_of_tokens_crashes_or_loses_an_activation(ids: list[int]) -> None:
    tokens = TokenText(TOKENIZER)
    pieces = tokens.pieces(ids, [float(i % 3) for i in range(len(ids))])
    largest = max((i % 3 for i in range(len(ids))), default=0)
    assert max((piece.activation for piece in pieces), default=0) == largest
    assert not any(char in piece.text for piece in pieces for char in "\n\r\t\x00")


@pytest.mark.parametrize("activation", [0.0, 1.0])
def test_characters_split_over_tokens_come_out_whole(text: TokenText, activation: float) -> None:
    ids = TOKENIZER.encode("é東🙂").ids
    assert len(ids) > 3
    assert any("\ufffd" in text.one(token) for token in ids)
    pieces = text.pieces(ids, [activation] * len(ids))
    assert "".join(piece.text for piece in pieces) == "é東🙂"


def test_a_silent_stretch_between_active_tokens_stays_one_piece(text: TokenText) -> None:
    ids = TOKENIZER.encode("The value of the object").ids
    values = [0.0] * len(ids)
    values[2] = 1.5
    pieces = text.pieces(ids, values)
    assert [piece.activation for piece in pieces] == [0.0, 1.5, 0.0]
    assert "".join(piece.text for piece in pieces) == "The value of the object"


def test_ids_beyond_the_vocabulary_and_special_tokens_are_shown(text: TokenText) -> None:
    assert text.one(10**6) == "⟨1000000⟩"
    assert text.one(TOKENIZER.token_to_id(EOS)) == EOS


def test_white_space_is_visible() -> None:
    assert inked("a\nb\tc") == "a¶b⇥c"
    assert inked("  ") == "␣␣"
    assert inked(" the") == " the"
    assert inked("\x07") == r"\x07"
    assert inked("\u202e") == r"\u202e"


@pytest.mark.parametrize("hidden", ["\x1b[31m", "\u202e", "\x00", "\u2028", "\ud800", "\u200b"])
def test_a_page_and_its_figures_spell_out_what_a_text_hides(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "x.html.j2").write_text(
        "<p>{{ text }}</p><p title='{{ text }}'>{{ svg }}</p>{{ words }}"
    )
    chart = alt.Chart({"values": [{"a": 1}]}, title="figure").mark_point().encode(x="a:Q")
    words = "שלום\n👨\u200d👩\u200d👧\té"
    svg = to_svg(chart).replace("figure", "of " + hidden)
    write_page(
        tmp_path / "page.html",
        "x.html.j2",
        folders=[tmp_path],
        text=f"a{hidden}b",
        svg=in_page(svg, "f", hidden),
        words=words,
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    spelled = visible(hidden)
    assert hidden.encode("utf-8", "surrogatepass") not in page.encode("utf-8")
    assert page.startswith(f"<p>a{spelled}b</p><p title='a{spelled}b'>")
    assert f"of {spelled}" in page
    assert page.endswith(words)


@given(
    st.lists(st.tuples(st.integers(7, 9), st.integers(0, 6), st.booleans()), max_size=30),
    st.integers(1, 4),
)
def test_the_strongest_active_windows_come_first_each_once(
    found_in: list[tuple[int, int, bool]], n: int
) -> None:
    """Compared with a sort in plain Python; a window may be in several pools."""
    peak = {0: 3.0, 1: 9.0, 2: 9.0, 3: 1.0, 4: 20.0, 5: 2.0, 6: 2.0}
    rows = [
        {"latent": latent, "window": window, "active": active}
        | {
            "token_ids": [1, 2][: 1 + window % 2],
            "activations": [peak[window], 0.5][: 1 + window % 2],
        }
        for latent, window, active in found_in
    ]
    schema = tables.cell_schema("windows")
    names = ("latent", "window", "active", "token_ids", "activations")
    table = pa.Table.from_pylist(rows, schema=pa.schema([schema.field(n) for n in names]))
    found = strongest(table, [7, 8], n)
    assert list(found) == [7, 8]
    for latent, own in found.items():
        active = {window for one, window, is_active in found_in if one == latent and is_active}
        expected = sorted(active, key=lambda window: (-peak[window], window))[:n]
        assert [row["window"] for row in own] == expected
        assert [row["activations"][0] for row in own] == [peak[window] for window in expected]


def study_of(config: Config, **loaded: Any) -> Study:
    return Study(config, Path("."), loaded)


def test_coverage_adds_counts_over_draws_instead_of_averaging_shares() -> None:
    config = default_config(draws=2)
    cell = {"subject": "small", "site": "resid_post.1", "sae": "topk", "variant": "rerandomized"}
    names = ("n_latents", "n_alive", "n_pass", "n_sampled", *sections.REFUSED)
    counts = [(100, 90, 50, 50, 40, 7, 3), (300, 200, 30, 30, 260, 10, 0)]
    rows = [cell | dict(zip(names, count, strict=True)) for count in counts]
    (grid,) = sections.coverage(study_of(config, coverage=rows), "small")
    table = dict(grid.rows)
    found = table["resid_post.1"][config.variants.index("rerandomized")]
    assert found is not None
    assert found["pass_share"] == 80 / 400
    assert [found[name] for name in sections.REFUSED] == [300, 17, 3]
    assert table["resid_post.2"] == [None] * 6


def test_arms_have_the_mean_l0_and_the_tokens_at_the_end_of_training() -> None:
    config = default_config(draws=2, saes={"topk": {"pretrained": "some/sae"}})
    place = {"subject": "small", "site": "resid_post.1", "sae": "topk", "seed": 0}
    cells = [("trained", 0, 16.0, [0]), ("rerandomized", 0, 15.0, [1000, 2000])]
    cells.append(("rerandomized", 1, 18.0, [3000, 4000]))
    measured, history = [], []
    for variant, draw, l0, tokens in cells:
        keys = {**place, "variant": variant, "draw": draw}
        measured.append({**keys, "l0": l0})
        history += [{**keys, "tokens": n} for n in tokens]
    found = study_of(config, reconstruction=measured, history=history)
    (grid,) = sections.arms(found, "small")
    row = dict(zip(config.variants, dict(grid.rows)["resid_post.1"], strict=True))
    # What an SAE made elsewhere was trained on is unknown.
    assert row["trained"] == {"l0": 16.0, "tokens": None}
    assert row["rerandomized"] == {"l0": 16.5, "tokens": 3000}
    assert row["step0"] is None


def test_the_matrix_keeps_each_verdict_in_the_column_of_its_null() -> None:
    config = default_config()
    nulls = [v for v in config.variants if v != "trained"]
    rows = [
        {
            **{"subject": "small", "site": site, "sae": "topk", "metric": metric},
            **{"explainer": None, "scorer": None, "variant": null, "verdict": f"{metric}-{null}"},
        }
        for site in ("resid_post.2", "resid_post.1")
        for metric in ("peak_token_share", "cosine")
        for null in reversed(nulls)
    ]
    (matrix,) = sections.verdict_matrices(study_of(config, verdicts=rows), "small")
    groups = matrix.groups
    assert [group.title for group in groups] == ["Reconstruction", "Token identity and entropy"]
    for group, metric in zip(groups, ("cosine", "peak_token_share"), strict=True):
        (row,) = group.rows
        for null, cell in zip(nulls, row.cells, strict=True):
            assert [entry["site"] for entry in cell] == ["resid_post.1", "resid_post.2"]
            assert {entry["verdict"] for entry in cell} == {f"{metric}-{null}"}


def test_numbers_read_as_numbers() -> None:
    assert number(None) == "\u2013"
    assert number(-0.12345) == "\u22120.123"
    assert number(12.345) == "12.3"
    assert number(12345.6) == "12346"
    assert signed(0.5) == "+0.500"
    assert percent(0.256) == "25.6 %"
    assert p_value(0.0001) == "<0.001"
    assert p_value(0.04) == "0.040"
