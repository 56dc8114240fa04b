from __future__ import annotations

import html
import re
import shutil
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_page import Chromium, Elements
from report_study import EVIL, OLDER, WARNED, default_config, style_of, write_study

from nullsae import paths, tables
from nullsae.config.metrics import METRICS, is_of_model
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.report import style
from nullsae.report.build import build_report
from nullsae.report.drawings.answer import HIGH, LOW, MAX_METRICS, WIDTH, drawn
from nullsae.report.drawings.token_lookup import _floors
from nullsae.report.figures import draw_figure, make_chart
from nullsae.report.kinds import FIGURES
from nullsae.report.names import figure_kinds, figure_names
from nullsae.report.render import inline_svg
from nullsae.report.study import load_study
from nullsae.statistics.findings import TIERS, Finding, Tier
from nullsae.tables.study import PROVENANCE, SUMMARIES

MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<svg"}
REPORT = {"title": f"A {EVIL} study", "figure_formats": ["svg"]}
# The L0 and tokens that the answer gives with a variant's values.
ARM = r"L0 ([\d.]+)(?: to ([\d.]+))?, ([\d,]+)(?: to ([\d,]+))? tokens"


@pytest.fixture(scope="module")
def config() -> Config:
    return default_config(report=REPORT)


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    return Elements(page)


def test_exactly_the_promised_figures_exist(built: Path, config: Config) -> None:
    assert_figures(built, config)


def assert_figures(root: Path, config: Config) -> None:
    """Check that exactly the promised figures exist in the formats of the config."""
    names, formats = figure_names(config), config.report.figure_formats
    for suffix in formats:
        for name in names:
            file = root / paths.FIGURE.format(figure=name, format=suffix)
            assert file.read_bytes().startswith(MAGIC[suffix]), file
    assert len(list((root / "results/figures").iterdir())) == len(formats) * len(names)


def test_charts_of_each_form_are_valid(built: Path, config: Config) -> None:
    """Drawing does not check them against Vega-Lite's schema."""
    study = load_study(config, built)
    for kind in {"cosine", *FIGURES} & {*figure_kinds(config)}:
        make_chart(study, "small", kind)[1].to_dict()


def test_script_in_title_text_or_explanation_comes_out_inert(elements: Elements) -> None:
    assert [tag for tag, _ in elements.tags].count("script") == 2
    assert "".join(elements.text).count(EVIL) >= 2  # title, h1
    assert not [a for _, attrs in elements.tags for a in attrs if a.startswith("on")]


def test_a_warning_about_a_subject_is_above_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None, page: str
) -> None:
    assert "Read with care" not in page
    assert "Versions and devices of the jobs were not recorded." in page
    config = default_config(
        variants=["trained", "step0"],
        explainers={},
        report={**REPORT, "figure_formats": ["svg"], "n_example_latents": 0},
    )
    monkeypatch.setitem(WARNED, "small", f"it knows {EVIL}")
    monkeypatch.setitem(OLDER, "code", "train_sae accepted from 00aa; report accepted from 00bb")
    write_study(tmp_path, config)
    write_provenance(tmp_path, {"trained": "2.6.0", "step0": f"2.5.1 {EVIL}"})
    build_report(config, tmp_path)
    warned = (tmp_path / paths.REPORT).read_text(encoding="utf-8")
    assert warned.count("Read with care") == 2
    assert warned.rindex("Read with care") < warned.index("Held-out loss")
    text = "".join(Elements(warned).text)
    assert f"it knows {EVIL}" in text
    assert f"step0 and trained were not made alike: torch 2.5.1 {EVIL}, in sae" in text
    assert f"Cells were made by nullsae 0.1.0, torch 2.6.0 and 2.5.1 {EVIL}, Python 3.12" in text
    assert "secret-host" not in warned
    # Both values are in the table at the end, each with what it made.
    rows = re.findall(r"<tr><th scope=.row.>sae</th>(.*?)</tr>", warned)
    assert [re.sub(r"<[^>]+>", "|", row).strip("|").split("||") for row in rows] == [
        ["torch", "2.6.0", "1", "trained"],
        [
            "torch",
            f"2.5.1 {html.escape(EVIL, quote=False).replace(chr(39), '&#39;')}",
            "1",
            "step0",
        ],
    ]
    assert "older code" not in page
    assert "report accepted from 00bb, train_sae accepted from 00aa." in warned


def write_provenance(root: Path, torch: dict[str, str]) -> None:
    """Write the provenance of an SAE of each of these variants, with their versions of torch."""
    same = {"verb": "train_sae", "nullsae": "0.1.0", "python": "3.12", "device": "EPYC"}
    rows = []
    for variant, version in torch.items():
        told = None if variant == "trained" else f"torch {version}"
        row = dict.fromkeys(PROVENANCE.names) | same | {"kind": "sae", "subject": "small", "job": 0}
        row |= {"variant": variant, "torch": version, "differs_from_trained": told}
        rows.append(row | {"device_kind": "cpu", "host": "secret-host"})
    tables.write_table(root / paths.PROVENANCE, rows, PROVENANCE)


def test_page_loads_nothing_from_outside(page: str, elements: Elements) -> None:
    for tag, attributes in elements.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "image", "use"}
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", page)


def test_tags_are_balanced_ids_unique_and_links_lead_somewhere(elements: Elements) -> None:
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for tag, a in elements.tags if tag == "a"}
    clips = {a["clip-path"] for _, a in elements.tags if a.get("clip-path")}
    assert {f"#{name}" for name in ids} >= targets
    assert {f"url(#{name})" for name in ids} >= clips


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes_in_each_format(built: Path, tmp_path: Path) -> None:
    config = default_config(report=REPORT | {"figure_formats": list(MAGIC)})
    made: list[dict[str, bytes]] = []
    for _ in range(2):
        shutil.copytree(built / "results", tmp_path / "results")
        shutil.rmtree(tmp_path / "results/figures")
        (tmp_path / paths.REPORT).unlink()
        build_report(config, tmp_path)
        assert_figures(tmp_path, config)
        files = [*(tmp_path / "results/figures").iterdir(), tmp_path / paths.REPORT]
        made.append({file.name: file.read_bytes() for file in files})
        shutil.rmtree(tmp_path / "results")
    assert made[0] == made[1]


def test_dots_are_where_the_summaries_say(built: Path, config: Config) -> None:
    svg = (built / paths.FIGURE.format(figure="small.cosine", format="svg")).read_text()
    table = pq.ParquetFile(built / paths.TABLE.format(table="summaries")).read().to_pylist()
    rows = [row for row in table if row["metric"] == "cosine"]
    panels = re.findall(r'<g class="mark-symbol role-mark[^"]*"[^>]*>(.*?)</g>', svg, re.DOTALL)
    assert len(panels) == 2
    for site, panel in zip(config.subjects["small"].sites, panels, strict=True):
        marks = re.findall(r'<path[^>]*translate\(([\d.]+),([\d.]+)\)[^>]*fill="(#\w+)"', panel)
        assert len({colour for _, _, colour in marks}) == len(config.variants)
        values = {row["variant"]: row["value"] for row in rows if row["site"] == site}
        by_height = [float(x) for x, y, _ in sorted(marks, key=lambda mark: float(mark[1]))]
        expected = [values[variant] for variant in config.variants]  # top to bottom
        slope, intercept = np.polyfit(expected, by_height, 1)
        assert slope > 0
        np.testing.assert_allclose(slope * np.array(expected) + intercept, by_height, atol=0.01)


def test_marks_of_the_answer_are_between_floor_and_trained(built: Path, config: Config) -> None:
    """They are where the contrasts say, filled if every verdict tells the variant from trained."""
    svg = (built / paths.FIGURE.format(figure="small.answer", format="svg")).read_text()
    panels = re.findall(r'<g class="mark-symbol role-mark[^"]*"[^>]*>(.*?)</g>', svg, re.DOTALL)
    mark = r'<path[^>]*translate\(([^,]+),[^>]*fill-opacity="([01])"[^>]*stroke="(#\w+)"'
    found = [one for panel in panels for one in re.findall(mark, panel)]
    names = ("metric", "explainer", "scorer", "variant")
    shares: dict[tuple[str, ...], list[float]] = {}
    words: dict[tuple[str, ...], set[str]] = {}
    for table in ("contrasts", "verdicts"):
        path = built / paths.TABLE.format(table=table)
        for row in tables.read_table(path, tables.SCHEMAS[table]).to_pylist():
            key = tuple(row[name] for name in names)
            if row["explainer"] == "swapped":  # a placebo is no answer
                continue
            if table == "verdicts":
                words.setdefault(key, set()).add(row["verdict"])
            else:
                floor = METRICS[row["metric"]].floor
                share = (row["value"] - floor) / (row["real_value"] - floor)
                shares.setdefault(key, []).append(share)
    for variant in config.variants[1:]:
        own = {key: np.median(values) for key, values in shares.items() if key[-1] == variant}
        marks = [(float(x), fill) for x, fill, stroke in found if stroke == style.colour(variant)]
        assert len(marks) == len(own) > 20
        expected = np.sort(np.clip([*own.values()], LOW, HIGH))
        places = np.sort([x for x, _ in marks])
        np.testing.assert_allclose(places, (expected - LOW) / (HIGH - LOW) * WIDTH, atol=0.02)
        told = sum(words[key] <= {"separates", "reversed"} for key in own)
        assert sum(fill == "1" for _, fill in marks) == told


def test_l0_and_tokens_of_each_arm_accompany_its_values_in_the_answer(
    config: Config, built: Path, page: str
) -> None:
    """They are in the head of a column, and in those of its cells that differ."""
    answer = load_study(config, built).answer
    of_tiers = re.findall(r'<details class="panel tier">.*?</table>', page, re.DOTALL)
    n_shown = 0
    for tier, table in zip(filter(answer.tier, TIERS), of_tiers, strict=True):
        head, *rows = table.split('<tr><th scope="row">')
        in_head = head.split('<th scope="col"')[2:]
        for finding, row in zip(answer.tier(tier), rows, strict=True):
            cells = row.split("<td")[1:]
            for arm, column, cell in zip((finding, *finding.against), in_head, cells, strict=True):
                own = re.search(ARM, cell) or re.search(ARM, column)
                assert own is not None
                low, high, few, many = own.groups()
                assert (low, high or low) == (f"{arm.low_l0:.3g}", f"{arm.high_l0:.3g}")
                tokens = (arm.low_training_tokens, arm.high_training_tokens)
                assert (few, many or few) == tuple(f"{n:,.0f}" for n in tokens)
                n_shown += 1
    assert n_shown > 100


@settings(deadline=None)
@given(st.lists(st.sampled_from(list(TIERS)), max_size=120))
def test_each_tier_of_the_answer_has_a_fair_share_of_the_figure(tiers: list[Tier]) -> None:
    nothing = dict.fromkeys(field.name for field in fields(Finding)) | {"against": ()}
    findings = [Finding(**nothing | {"metric": str(i), "tier": t}) for i, t in enumerate(tiers)]
    shown = drawn(findings)
    assert len(shown) == min(len(findings), MAX_METRICS)
    n_shown = Counter(one.tier for one in shown)
    for tier, n in Counter(tiers).items():
        assert n_shown[tier] >= min(n, MAX_METRICS // len(TIERS))
        # The best ones, which come first.
        own = [one for one in findings if one.tier == tier]
        assert [one for one in shown if one.tier == tier] == own[: n_shown[tier]]


def test_each_verdict_is_on_the_page_with_its_interval(built: Path, page: str) -> None:
    table = pq.ParquetFile(built / paths.TABLE.format(table="verdicts")).read().to_pylist()
    text = html.unescape(page)
    for row in table:
        numbers = [row["difference"], row["difference_low"], row["difference_high"]]
        if abs(max(numbers, key=abs)) < 9:
            middle, low, high = (f"{value:+.3f}".replace("-", "\u2212") for value in numbers)
            assert f"{middle} [{low}, {high}]" in text
    matrix = text[text.index('class="wide matrix"') : text.index("All contrasts")]
    per_site = re.findall(r'class="chip (\w+)">[^<]*</span> <small>resid', matrix)
    assert sorted(per_site) == sorted(map(style_of, filter(is_of_model, table)))
    # Only a positive control is told apart in this word, never a null.
    words = Counter(row["verdict"] for row in table if row["variant"] == "retrained")
    n_told = words["separates"] + words["reversed"]
    assert matrix.count("≠ told apart</span> <small>resid") == n_told > 0
    # In the answer, too.
    answer = text[text.index('id="answer"') : text.index('class="wide matrix"')]
    assert answer.count('title="told apart">≠ ') > 0
    assert "? inconclusive, ▼ reversed, ∅ no verdict, ≠ told apart) comes with" in answer
    assert "retrained, is the same transformer trained again from another seed" in text
    assert "on those of 4 nulls: the same transformer" in text


def test_verdicts_of_other_stages_are_in_their_own_folded_tables(built: Path, page: str) -> None:
    table = pq.ParquetFile(built / paths.TABLE.format(table="verdicts")).read().to_pylist()
    others = [row for row in table if not is_of_model(row)]
    assert {row["stage"] for row in others} == {"explanation", "effect"}
    part = page[page.index('id="small-stages"') :]
    for stage in ("explanation", "effect"):
        own = [row for row in others if row["stage"] == stage]
        start = part.index(f'<details class="panel"><summary>{stage.capitalize()}: ')
        shown = part[start : part.index("</details>", start)]
        heads = re.findall(r'<th scope="col">(.*?)</th>', shown.replace("<wbr>", ""))
        assert heads == ["Metric", "Site", *dict.fromkeys(row["null"] for row in own)]
        cells = re.findall(r'<td class="v (\w+)" title="([^"]*)"', shown)
        assert Counter(style for style, _ in cells) == Counter(row["verdict"] for row in own)


def test_a_page_without_replication_says_so_first_and_shows_no_p_value(page: str) -> None:
    text = html.unescape(page)
    header = text[: text.index("</header>")]
    assert "One draw and one seed: each verdict is about this randomization" in header
    # In every cell with verdicts, and next to every verdict of the long table.
    matrix, rest = text[text.index('class="wide matrix"') :].split("All contrasts", 1)
    cells = matrix.count("<td>\n<span class=")
    scopes = Counter(re.findall(r'<span class="scope">(.*?)</span>', matrix))
    assert scopes == {"this randomization": 4 * cells // 5, "this retraining": cells // 5}
    assert cells > 40
    contrasts = rest[: rest.index("</table>")]
    rows = contrasts.count("\n<tr><td>")
    scopes = Counter(re.findall(r"<td>. [a-z ]+, (this .*?)<td>", contrasts))
    assert scopes == {"this randomization": 4 * rows // 5, "this retraining": rows // 5}
    assert rows > 100
    words = "".join(Elements(page).text)
    assert "p (" not in words
    assert "in standard errors" not in words


def test_a_replicated_page_shows_p_values_and_what_verdicts_apply_to(
    tmp_path: Path, undrawn: None
) -> None:
    config = default_config(
        draws=2,
        variants=["trained", "rerandomized"],
        explainers={},
        report={"figure_formats": ["svg"], "title": "two draws", "n_example_latents": 0},
    )
    write_study(tmp_path, config)
    build_report(config, tmp_path)
    text = html.unescape((tmp_path / paths.REPORT).read_text(encoding="utf-8"))
    assert "One draw" not in text
    assert "this randomization" not in text
    assert '<span class="scope">randomizations of this kind</span>' in text
    for title in ("p (beyond the margin)", "p (within the margin)", "p (permutation)"):
        assert title in text


@pytest.mark.slow
def test_arms_that_are_not_comparable_have_no_verdict_and_the_page_says_why(
    built: Path, config: Config, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    why = "L0 is 16 in trained and 30 in the variant"
    for table, column, value in (
        ("verdicts", "verdict", "none"),
        ("contrasts", "not_comparable", why),
    ):
        path = tmp_path / paths.TABLE.format(table=table)
        rows = tables.read_table(path, tables.SCHEMAS[table]).to_pylist()
        rows = [r | {column: value} if r["variant"] == "step0" else r for r in rows]
        tables.write_table(path, rows, tables.SCHEMAS[table])
    build_report(config, tmp_path)
    text = html.unescape((tmp_path / paths.REPORT).read_text(encoding="utf-8"))
    assert f"the arms are not comparable: {why}" in text
    n_rows = sum(row["variant"] == "step0" for row in rows)
    matrix = text[text.index('class="wide matrix"') : text.index("All contrasts")]
    per_site = re.findall(r'class="chip none">. no verdict</span> <small>resid', matrix)
    assert len(per_site) == n_rows > 20


def test_l0_and_tokens_of_both_arms_accompany_each_number(built: Path, page: str) -> None:
    contrasts = tables.read_table(
        built / paths.TABLE.format(table="contrasts"), tables.SCHEMAS["contrasts"]
    ).to_pylist()
    of_models = [row for row in contrasts if is_of_model(row)]
    assert page.count("<td>16 / 15.2<td>250,000 / 200,000<td>") == len(of_models) > 0
    text = html.unescape(page)
    beside = "L0 16 and 15.2, tokens 250,000 and 200,000"
    matrix = text[text.index('class="wide matrix"') : text.index("All contrasts")]
    shown = matrix.count(f'<span class="detail">{beside}</span>')
    documents = [row for row in of_models if METRICS[row["metric"]].section == "reconstruction"]
    assert shown == len(documents) > 0
    stages = text[text.index('id="small-stages"') :]
    assert stages.count(f'; {beside}"') == len(contrasts) - len(of_models) > 0


def test_failed_windows_are_shown_next_to_each_score_and_many_are_pointed_out(
    built: Path, page: str
) -> None:
    rows = tables.read_table(
        built / paths.TABLE.format(table="contrasts"), tables.SCHEMAS["contrasts"]
    ).to_pylist()
    judged = [row for row in rows if row["scorer"] is not None]
    assert judged
    assert page.count("<td>0 / 17<td>") == sum(row["n_failed"] == 17 for row in judged) > 0
    thin = sum(row["answered_share"] == 0.83 for row in judged)
    assert page.count("rests on 83 % of its windows") == thin
    assert "rests on 100 %" not in page


def test_clip_paths_of_two_figures_do_not_collide() -> None:
    svg = (
        '<svg viewBox="0 0 10 5"><clipPath id="clip0"></clipPath><g clip-path="url(#clip0)"/></svg>'
    )
    one, other = (inline_svg(svg, name, "x") for name in ("a.auroc", "b.auroc"))
    assert 'id="a-auroc-clip0"' in one
    assert 'url(#a-auroc-clip0)"' in one
    assert "a-auroc-clip0" not in other


def test_a_study_in_which_no_latent_passed_still_has_all_files(tmp_path: Path) -> None:
    config = default_config(
        variants=["trained", "step0"], report={"figure_formats": list(MAGIC), "title": "empty"}
    )
    write_study(tmp_path, config)
    for name in ("latents", "explanations", "scores", "history"):
        path = tmp_path / paths.TABLE.format(table=name)
        tables.write_table(path, [], tables.SCHEMAS[name])
    path = tmp_path / paths.TABLE.format(table="summaries")
    rows = tables.read_table(path, SUMMARIES).to_pylist()
    for row in rows:
        row.update(value=None, low=None, high=None)
    tables.write_table(path, rows, SUMMARIES)
    build_report(config, tmp_path)
    assert_figures(tmp_path, config)
    svg = (tmp_path / paths.FIGURE.format(figure="small.auroc", format="svg")).read_text()
    assert "No values" in svg
    page = (tmp_path / paths.REPORT).read_text()
    assert '"latents":[]' in page
    assert '"numbers"' not in page


def test_many_sites_are_drawn_against_depth(tmp_path: Path) -> None:
    base = default_config().model_dump(mode="json")["subjects"]["small"]
    sites = [f"resid_post.{layer}" for layer in range(8)]
    subject = base | {"sites": sites, "source": base["source"] | {"n_layers": 8}}
    config = default_config(
        subjects={"deep": subject},
        variants=["trained", "step0"],
        explainers={},
        report={"figure_formats": ["svg"], "n_example_latents": 0},
    )
    write_study(tmp_path, config)
    study = load_study(config, tmp_path)
    make_chart(study, "deep", "cosine")[1].to_dict()  # is valid
    assert "Block (resid_post)" in draw_figure(study, "deep", "cosine").svg


def test_a_missing_table_is_named_with_the_command_that_makes_it(
    built: Path, config: Config, tmp_path: Path
) -> None:
    shutil.copytree(built / "results/tables", tmp_path / "results/tables")
    (tmp_path / paths.TABLE.format(table="verdicts")).unlink()
    with pytest.raises(UserError, match=r"verdicts\.parquet: the file is missing; rebuild it"):
        build_report(config, tmp_path)
    assert not (tmp_path / paths.REPORT).exists()


@pytest.mark.parametrize("width", [390, 1280])
def test_page_does_not_overflow_sideways(page: str, chromium: Chromium, width: int) -> None:
    assert chromium.scroll_width(page, width) <= width


def test_a_floor_is_drawn_for_each_variant_that_has_one(tmp_path: Path) -> None:
    evaluation = {"gaussian_floors": True}
    config = default_config(
        evaluation=evaluation, variants=["trained", "gaussian"], report={"figure_formats": ["svg"]}
    )
    write_study(tmp_path, config)
    study = load_study(config, tmp_path)
    rows = _floors(study, "small")
    assert {row["variant"] for row in rows} == {"trained"}  # the other is its floor
    config = default_config(evaluation=evaluation, report={"figure_formats": ["svg"]})
    other = tmp_path / "other"
    write_study(other, config)
    study = load_study(config, other)
    rows = _floors(study, "small")
    assert len(rows) == len(config.variants) * 2
    table = pq.ParquetFile(other / paths.TABLE.format(table="reconstruction")).read().to_pylist()
    for row in rows:
        own = [
            r["explained_variance"]
            for r in table
            if (r["variant"], r["site"]) == (f"gaussian@{row['variant']}", row["panel"])
        ]
        assert [row["value"]] == own
    assert "Gaussian floor" in draw_figure(study, "small", "token_lookup").svg
