"""The report of a study with every control: 13 variants, 8 SAEs, 3 explainers, 2 scorers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_page import Chromium, Elements
from report_study import (
    EVIL,
    EXPLAINERS,
    SAES,
    all_controls_config,
    default_config,
    style_of,
    write_study,
)

from nullsae import paths, tables
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS
from nullsae.report import sections, style
from nullsae.report.build import build_report
from nullsae.report.controls import controls
from nullsae.report.drawings.answer import positions
from nullsae.report.drawings.cross_entropy import CLEAN
from nullsae.report.figures import draw_figure, make_chart
from nullsae.report.matrix import NONE, differences, shares, short
from nullsae.report.names import figure_names
from nullsae.report.study import Study, load_study, thin
from nullsae.statistics.answer import answer

MOST_BYTES = 9_000_000
GROUND = r'<path[^>]*fill="({})"'
TEXT = re.compile(r'<text[^>]*transform="translate\(([\d.]+),([\d.]+)\)"[^>]*>([^<]*)</text>')


@pytest.fixture(scope="module")
def config() -> Config:
    saes = SAES | {"elsewhere": {"pretrained": EVIL}}
    return all_controls_config(saes=saes, report={"figure_formats": ["svg"]})


def figure(root: Path, name: str) -> str:
    return (root / paths.FIGURE.format(figure=name, format="svg")).read_text(encoding="utf-8")


def rows_of(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / paths.TABLE.format(table=name)
    return tables.read_table(path, tables.SCHEMAS[name]).to_pylist()


@pytest.mark.slow
def test_the_full_study_has_all_figures_and_a_light_sound_page(
    built: Path, config: Config, page: str
) -> None:
    assert (len(config.variants), len(config.saes)) == (13, 12)
    assert (len(config.explainers), len(config.scorers)) == (3, 2)
    found = {path.name for path in (built / "results/figures").iterdir()}
    assert found == {f"{name}.svg" for name in figure_names(config)}
    assert len(page.encode()) < MOST_BYTES
    elements = Elements(page)
    assert elements.open == []
    # The browser's data and the browser.
    assert [tag for tag, _ in elements.tags].count("script") == 2
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_the_full_page_fits_a_phone(page: str, chromium: Chromium) -> None:
    assert chromium.scroll_width(page, 390) <= 390


@pytest.mark.slow
def test_each_control_present_has_its_line(config: Config, page: str) -> None:
    assert sorted(config.variants) == sorted(VARIANTS)
    text = "".join(Elements(page).text)
    entries = [entry for _, entries in controls(config) for entry in entries]
    names = [*config.variants, *config.saes, *config.explainers, *config.scorers]
    assert [entry.name for entry in entries] == names
    for entry in entries:
        assert entry.text in text
        assert not re.search(r"[{}]", entry.text)
    assert len({entry.text for entry in entries}) == len(entries)
    assert {sae["dictionary"] for sae in SAES.values() if "dictionary" in sae} == {*DICTIONARIES}


def test_controls_say_what_the_config_says() -> None:
    config = default_config(
        variants=["trained", "cascade", "noise_embeddings"],
        randomization={
            "first_random_block": 2,
            "embedding_noise_std": 0.25,
            "norm_parameters": "keep",
        },
        saes={
            "soft": {
                "dictionary": "soft_frozen_decoder",
                "n_latents": 64,
                "min_decoder_cosine": 0.7,
            }
        },
        explainers=EXPLAINERS,
    )
    text = {entry.name: entry.text for _, entries in controls(config) for entry in entries}
    assert "The first 2 blocks" in text["cascade"]
    assert "Normalization layers are kept" in text["cascade"]
    assert "0.25" in text["noise_embeddings"]
    assert "0.7" in text["soft"]
    assert "lexical" in text["swapped"]
    assert text["bigram"] != text["lexical"]


@pytest.mark.slow
def test_a_cell_prints_its_value_on_a_colour_for_its_distance_from_trained(
    built: Path, config: Config
) -> None:
    svg = figure(built, "small.explained_variance")
    values = {
        (row["site"], row["variant"], row["sae"]): row["value"]
        for row in rows_of(built, "summaries")
        if row["metric"] == "explained_variance"
    }
    steps = differences("")
    expected_texts: list[str] = []
    expected_grounds: Counter[str] = Counter()
    for site in config.subjects["small"].sites:
        for variant in config.variants:
            for sae in config.saes:
                value = values[site, variant, sae]
                trained = values[site, "trained", sae]
                # A tenth of what trained explains.
                label = steps.label((value - trained) / (0.1 * trained))
                expected_texts.append(short(value))
                expected_grounds[style.STEPS[steps.labels.index(label)]] += 1
    printed = [match[3] for match in TEXT.finditer(svg) if re.fullmatch(r"\d\.\d\d", match[3])]
    assert Counter(printed) == Counter(expected_texts)
    # The legend shows each colour once more.
    grounds = Counter(re.findall(GROUND.format("|".join(style.STEPS)), svg))
    assert grounds == expected_grounds + Counter(style.STEPS)
    assert len(expected_grounds) > 2


@pytest.mark.slow
def test_scored_metrics_have_a_panel_for_each_drawn_site_explainer_and_scorer(
    built: Path, page: str
) -> None:
    found = [match[3] for match in TEXT.finditer(figure(built, "small.auroc"))]
    # With this many SAEs there is room for only one of two sites.
    assert "Drawn for 1 of 2 sites: mlp_out.1." in page
    for explainer in EXPLAINERS:
        for scorer in ("detection", "fuzzing"):
            assert found.count(f"mlp_out.1 · {explainer}, {scorer}") == 1
    n_values = sum(bool(re.fullmatch(r"\d\.\d\d", text)) for text in found)
    assert n_values == 13 * len(SAES) * 3 * 2


@pytest.mark.slow
def test_gaussian_has_activations_and_no_loss(built: Path, page: str) -> None:
    assert not [row for row in rows_of(built, "models") if row["variant"] == "gaussian"]
    assert page.count("no model: only activations") == 1
    svg = figure(built, "small.cross_entropy")
    texts = [match[3] for match in TEXT.finditer(svg)]
    assert texts.count(NONE) == 2 * (len(SAES) + 3)  # sites, SAEs and the three losses without one
    assert svg.count(f">{CLEAN}<") == 2
    assert "gaussian has no model" in page


def test_gaussian_beside_one_sae_and_first_of_all(tmp_path: Path, undrawn: None) -> None:
    config = default_config(
        variants=["gaussian", "trained"],
        explainers={},
        report={"figure_formats": ["svg"], "n_example_latents": 0},
    )
    write_study(tmp_path, config)
    build_report(config, tmp_path)
    page = (tmp_path / paths.REPORT).read_text(encoding="utf-8")
    assert "no model: only activations" in page
    assert "1,118,720 parameters" in page
    assert "gaussian has no model" in page


@pytest.mark.slow
def test_the_config_alone_decides_whether_there_is_a_figure_of_cross_evaluations(
    built: Path, config: Config
) -> None:
    for cross_tokens, n in ((None, 0), (1024, 1)):
        names = figure_names(default_config(evaluation={"cross_tokens": cross_tokens}))
        assert names.count("small.cross_evaluation") == n
    texts = Counter(match[3] for match in TEXT.finditer(figure(built, "small.cross_evaluation")))
    rows = [row for row in rows_of(built, "cross_evaluation") if row["sae"] == "learned"]
    assert len(rows) == 2 * 13 * 13
    expected = Counter(
        short(row[column])
        for row in rows
        for column in ("explained_variance", "explained_variance_rescaled")
    )
    assert {text: texts[text] for text in expected} == expected
    frames = re.findall(rf'<path[^>]*stroke="{style.INK}"', figure(built, "small.cross_evaluation"))
    assert len(frames) == 2 * 13


def test_cross_evaluations_of_a_study_with_one_sae(tmp_path: Path) -> None:
    config = default_config(
        variants=["trained", "step0"],
        explainers={},
        evaluation={"cross_tokens": 64},
    )
    write_study(tmp_path, config)
    assert "small.cross_evaluation" in figure_names(config)
    study = load_study(config, tmp_path)
    make_chart(study, "small", "cross_evaluation")[1].to_dict()  # is valid
    assert "evaluated on" in draw_figure(study, "small", "cross_evaluation").svg


def test_a_line_of_a_depth_profile_joins_sites_of_one_kind(tmp_path: Path) -> None:
    subject = default_config().model_dump(mode="json")["subjects"]["small"]
    kinds = {"resid_post": 4, "mlp_out": 3}
    sites = ["embed", *(f"{kind}.{i}" for kind, n in kinds.items() for i in range(n))]
    config = default_config(
        subjects={"deep": subject | {"sites": sites}},
        variants=["trained", "step0"],
        explainers={},
        report={"figure_formats": ["svg"], "n_example_latents": 0},
    )
    write_study(tmp_path, config)
    svg = draw_figure(load_study(config, tmp_path), "deep", "cosine").svg
    lines = re.findall(r'<path aria?[^>]*|<g class="mark-line[^"]*"[^>]*>(.*?)</g>', svg, re.DOTALL)
    paths_ = [p for line in lines for p in re.findall(r'd="(M[^"]+)"', line)]
    points = Counter(len(re.findall(r"[ML]", path)) for path in paths_)
    assert points[4] == points[3] == 2  # one for each variant
    assert max(points) == 4
    texts = [match[3] for match in TEXT.finditer(svg)]
    for kind in ("embed", *kinds):
        assert texts.count(kind) == 1
    assert any("embed: \u22121" in text for text in texts)
    assert "Block (resid_post)" not in svg


def test_health_of_activations_is_the_same_for_every_sae_and_shown_once() -> None:
    config = all_controls_config(draws=2, variants=["trained", "rerandomized"])
    rows = [
        {"subject": "small", "variant": v, "draw": d, "site": "mlp_out.1", "sae": sae, "n": (v, d)}
        for v, d in (("rerandomized", 1), ("trained", 0), ("rerandomized", 0))
        for sae in config.saes
    ]
    found = sections.activation_health(study_of(config, reconstruction=rows), "small")
    assert [(row["variant"], row["draw"]) for row in found] == [
        ("trained", 0),
        ("rerandomized", 0),
        ("rerandomized", 1),
    ]
    for row in found:
        assert row["sites"]["resid_post.1"] is None
        cell = row["sites"]["mlp_out.1"]
        assert cell["n"] == (row["variant"], row["draw"])
        assert cell["sae"] == "learned"


def test_the_figure_of_the_answer_leaves_null_dictionaries_out_as_its_sentences_do() -> None:
    config = all_controls_config()
    keys = {"subject": "small", "site": "mlp_out.1", "variant": "step0", "metric": "cosine"}
    keys |= {"stage": "model", "explainer": None, "scorer": None}
    arms = {"real_l0": 16.0, "l0": 16.0, "n_draws": 1, "n_seeds": 1}
    arms |= {"real_training_tokens": 1e5, "training_tokens": 1e5, "real_value": 1.0, "margin": 0.1}
    rows = [
        keys | arms | {"sae": sae, "value": 0.25 if sae in config.answering_saes else 0.75}
        for sae in config.saes
    ]
    assert config.answering_saes == ("learned", "elsewhere")
    words = ["separates"] * len(rows)
    (finding,) = answer(rows, words, saes=config.answering_saes).findings
    assert finding.against[0].verdicts == {"separates": 2}
    study = study_of(config, contrasts=rows)
    assert [row["x"] for row in positions(study, "small", finding)] == [0.25]


@pytest.mark.slow
def test_health_numbers_are_on_the_page(page: str) -> None:
    table = page[page.index("Largest variance share") : page.index('id="small-verdicts"')]
    # For trained: norm, share and rank at both sites, as made by report_study.
    for number in (">12.3<", ">21.0 %<", ">61.7<"):
        assert table.count(number) == 2


@pytest.mark.slow
def test_each_sae_has_its_own_matrix_and_the_first_is_open(built: Path, page: str) -> None:
    opened = re.findall(r'<details class="panel"( open)?><summary>Verdicts of SAE (\w+)', page)
    assert [name for _, name in opened] == list(SAES)
    assert [bool(state) for state, _ in opened] == [True] + [False] * (len(SAES) - 1)
    cells = re.findall(r'<td class="v (\w+)"', page)
    assert Counter(cells) == Counter(map(style_of, rows_of(built, "verdicts")))
    assert "≠" in page


def test_contrasts_beyond_the_room_of_the_page_are_left_out_by_sae(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = all_controls_config()
    rows = [
        {"subject": "small", "site": "mlp_out.1", "sae": sae, "explainer": None, "scorer": None}
        | {"metric": "cosine", "variant": null, "verdict": "equivalent", "reason": None}
        for sae in config.saes
        for null in ("step0", "gaussian")
    ]
    study = study_of(config, contrasts=rows, verdicts=rows)
    assert all(found for _, found in sections.contrasts(study, "small"))
    for room, n_shown in ((5, 2), (4, 2), (1, 1)):
        monkeypatch.setattr(sections, "MAX_CONTRASTS", room)
        shown = [found is not None for _, found in sections.contrasts(study, "small")]
        assert shown == [True] * n_shown + [False] * (len(SAES) - n_shown)


def study_of(config: Config, **loaded: Any) -> Study:
    return Study(config, Path("."), loaded)


@given(st.floats(-9e8, 9e8))
def test_a_short_number_fits_its_cell_and_is_near_the_number(value: float) -> None:
    text = short(value)
    assert len(text) <= 5
    scale = {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
    read = scale * float(text.rstrip("kM").replace("\u2212", "-"))
    assert abs(read - value) <= max(0.005, (0.006 if scale == 1 else 0.05) * abs(value)) + 1e-9
    assert text != "\u22120.00"


@settings(max_examples=50)
@given(st.floats(-50, 50), st.floats(-50, 50))
def test_steps_keep_the_order_of_what_they_show(one: float, other: float) -> None:
    for steps in (differences(""), shares("")):
        low, high = sorted((one, other))
        assert steps.labels.index(steps.label(low)) <= steps.labels.index(steps.label(high))
        assert len(steps.labels) == len(steps.colours) == len(steps.bounds) + 1
    assert differences("").label(1.0) == differences("").label(-0.9) == "within \u00b11"
    assert shares("").label(-3) == shares("").label(0) == "0 or less"


@given(st.integers(1, 40), st.integers(1, 40))
def test_thinning_keeps_the_ends_and_the_order(n_names: int, n: int) -> None:
    names = [f"s{i}" for i in range(n_names)]
    kept = thin(names, n)
    assert len(kept) == min(n, n_names)
    assert kept == sorted(set(kept), key=names.index)
    if n > 1:
        assert (kept[0], kept[-1]) == (names[0], names[-1])
