"""The figure of metrics along training, and the rest of the page, which it must not change."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import Elements, drawing_only
from report_study import EXPLAINERS, default_config, write_study

from nullsae import paths, tables
from nullsae.config.study import Config
from nullsae.report import style
from nullsae.report.build import build_report
from nullsae.report.drawings.training import Training
from nullsae.report.kinds import FIGURES
from nullsae.report.names import figure_names
from nullsae.report.study import load_study
from nullsae.tables.study import SUMMARIES

NAME = "small.training"
SHARES = [0.1, 0.3]
VARIANTS = ["trained", "step0", "rerandomized"]
# Tables without rows about SAEs along their training.
WHOLE = ("contrasts", "verdicts", "geometry", "overlap", "latents_ranked", "beating_placebo")


def along(**sections: Any) -> Config:
    """Return the default study with two checkpoints, three variants and two explainers."""
    saes = default_config().model_dump(mode="json")["saes"]
    saes["topk"]["checkpoints"] = SHARES
    saes["plain"] = {"n_latents": 256}
    wanted = {
        "saes": saes,
        "variants": VARIANTS,
        "explainers": {name: EXPLAINERS[name] for name in ("lexical", "swapped")},
        "report": {"figure_formats": ["svg"], "n_example_latents": 1},
    }
    return default_config(**(wanted | sections))


@pytest.fixture(scope="module")
def config() -> Config:
    return along()


@pytest.fixture(scope="module", autouse=True)
def little_drawn() -> Iterator[None]:
    """Of the pages here, only this figure is drawn; others are compared by what they draw."""
    with drawing_only(Training.title):
        yield


def figure(root: Path, name: str) -> str:
    return (root / paths.FIGURE.format(figure=name, format="svg")).read_text(encoding="utf-8")


def panels(svg: str) -> list[list[tuple[float, float, str]]]:
    """Return x, y and colour of the marks of each panel, in drawing order."""
    groups = re.findall(r'<g class="mark-symbol role-mark[^"]*"[^>]*>(.*?)</g>', svg, re.DOTALL)
    mark = r'<path[^>]*translate\(([\d.]+),([\d.]+)\)[^>]*fill="(#\w+)"'
    return [[(float(x), float(y), c) for x, y, c in re.findall(mark, group)] for group in groups]


def summaries(root: Path, **keys: Any) -> list[dict[str, Any]]:
    path = root / paths.TABLE.format(table="summaries")
    rows = tables.read_table(path, SUMMARIES).to_pylist()
    return [row for row in rows if keys.items() <= row.items()]


def test_the_figure_is_promised_with_checkpoints_alone() -> None:
    assert NAME in figure_names(along())
    assert NAME not in figure_names(default_config())


def test_marks_are_where_the_summaries_say(built: Path, config: Config) -> None:
    found = panels(figure(built, NAME))
    shown = [
        ("explained_variance", None, None),
        *(("auroc", "lexical", scorer) for scorer in config.scorers),
        ("token_entropy_bits", None, None),
    ]
    sites = config.subjects["small"].sites
    wanted = [(*metric, site) for metric in shown for site in sites]
    assert len(found) == len(wanted)
    names = [f"topk@{share:g}" for share in SHARES] + ["topk"]
    for marks, (metric, explainer, scorer, site) in zip(found, wanted, strict=True):
        keys = {"metric": metric, "explainer": explainer, "scorer": scorer, "site": site}
        values = [
            summaries(built, sae=sae, variant=variant, **keys)[0]["value"]
            for variant in VARIANTS
            for sae in names
        ]
        by_variant = {
            variant: sorted((x, y) for x, y, colour in marks if colour == style.colour(variant))
            for variant in VARIANTS
        }
        heights = [y for variant in VARIANTS for _, y in by_variant[variant]]
        slope, intercept = np.polyfit(values, heights, 1)
        assert slope < 0  # up is more
        np.testing.assert_allclose(slope * np.array(values) + intercept, heights, atol=0.02)
        # 500 steps of 1024 tokens, at their positions on a linear axis.
        tokens = np.array([51_200, 153_600, 512_000])
        for points in by_variant.values():
            x = [x for x, _ in points]
            rate, start = np.polyfit(tokens, x, 1)
            assert rate > 0
            np.testing.assert_allclose(rate * tokens + start, x, atol=0.02)


def test_each_variant_has_a_line_and_an_interval_in_each_panel(built: Path) -> None:
    svg = figure(built, NAME)
    n = 4 * 2 * len(VARIANTS)
    assert len(re.findall(r'<path[^>]*stroke="#\w+" stroke-width="2"', svg)) == n
    assert len(re.findall(r'<path[^>]*opacity="0\.15"', svg)) == n
    text = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    for title in ("Explained variance", "AUROC of detection", "AUROC of fuzzing", "(bits)"):
        assert title in text
    assert "swapped" not in text


def test_the_page_says_that_latents_are_not_the_same_along_the_line(built: Path) -> None:
    page = (built / paths.REPORT).read_text(encoding="utf-8")
    assert "samples its own latents" in FIGURES["training"].reading
    assert "samples its own latents" in page
    ids = [attributes.get("id") for _, attributes in Elements(page).tags]
    assert ids.count(NAME) == 1


def test_checkpoints_change_no_other_figure_or_table_of_the_page(
    built: Path, tmp_path: Path, config: Config
) -> None:
    """SAEs along their training stay out of matrices, counts, browser and training curves."""
    saes = {
        name: {**sae, "checkpoints": []}
        for name, sae in config.model_dump(mode="json")["saes"].items()
    }
    without = along(saes=saes)
    for name in tables.SCHEMAS:
        path = built / paths.TABLE.format(table=name)
        if path.is_file():
            table = tables.read_table(path, tables.SCHEMAS[name])
            if "sae" in table.column_names:
                rows = [row for row in table.to_pylist() if "@" not in row["sae"]]
                assert name in WHOLE or len(rows) < table.num_rows or not rows
                table = rows
            tables.write_table(tmp_path / path.relative_to(built), table, tables.SCHEMAS[name])
    for folder in ("results/latents", "results/corpus", paths.ANSWER):
        (tmp_path / folder).symlink_to(built / folder)
    build_report(without, tmp_path)
    names = figure_names(without)
    assert set(figure_names(config)) - set(names) == {NAME}
    for name in names:
        assert figure(built, name) == figure(tmp_path, name), name
    pages = [(root / paths.REPORT).read_text(encoding="utf-8") for root in (built, tmp_path)]
    assert "topk@" in pages[0][pages[0].index('id="small.training"') :] or "topk@" not in pages[0]
    # Only the figure, the number of figures, and the config at the end of the page differ.
    kept = [
        re.sub(r'<figure id="small\.training">.*?</figure>\n', "", p, flags=re.S) for p in pages
    ]
    kept = [re.sub(r"[12] figures?</span>", "", page) for page in kept]
    kept = [page[: page.index("corpora:")] for page in kept]
    assert kept[0] == kept[1]


def test_many_sites_are_thinned_and_early_checkpoints_get_a_logarithmic_axis(
    tmp_path: Path,
) -> None:
    base = along().model_dump(mode="json")
    sites = [f"resid_post.{layer}" for layer in range(12)]
    small = base["subjects"]["small"]
    subject = small | {"sites": sites, "source": small["source"] | {"n_layers": 12}}
    saes = {name: sae | {"checkpoints": [0.1, 0.5]} for name, sae in base["saes"].items()}
    few = {"variants": ["trained"], "explainers": {}, "scorers": {}}
    config = along(subjects={"small": subject}, saes=saes, **few)
    write_study(tmp_path, config)
    study = load_study(config, tmp_path)
    _, caption = Training().draw(study, "small")
    assert "Drawn for 4 of 12 sites: resid_post.0, resid_post.3" in caption
    assert "chance" not in caption

    def scales() -> str:
        return str(Training().draw(study, "small")[0].to_dict())

    assert "'log'" not in scales()
    for row in study.along["history"]:
        row["tokens"] = min(row["tokens"], 20_000)
    assert "'log'" in scales()


def test_an_sae_without_latents_still_has_its_figure(
    built: Path, tmp_path: Path, config: Config
) -> None:
    shutil.copytree(built / "results/tables", tmp_path / "results/tables")
    path = tmp_path / paths.TABLE.format(table="summaries")
    rows = [row | {"value": None, "low": None, "high": None} for row in summaries(tmp_path)]
    tables.write_table(path, rows, SUMMARIES)
    chart, _ = Training().draw(load_study(config, tmp_path), "small")
    assert Training.title == "Metrics along training"
    assert "No values along training" in str(chart.to_dict())
