"""The page's latent browser, in a real browser, compared with the tables it was made from."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_page import Chromium, Elements
from report_study import EVIL, ODD_TEXT, default_config
from tokenizers import Tokenizer

from nullsae import paths, tables
from nullsae.config.study import Config
from nullsae.report.beating import beating
from nullsae.report.browser import browser
from nullsae.report.build import build_report
from nullsae.report.study import load_study

MOST_BYTES = 5_000_000
MOST_SCREENS = 6
LEFT = "d.querySelector(\"[data-side='0']\")"
SHOWN = "[...{side}.querySelectorAll('tbody button')].map(b => Number(b.textContent))"
"""The latents of a side, top to bottom."""
ALL = "d.querySelector('[name=windows]').click();"
"""Also shows the latents without windows."""


@pytest.fixture(scope="module")
def config() -> Config:
    return default_config(report={"figure_formats": ["svg"], "title": f"A {EVIL} study"})


def rows_of(root: Path, name: str, **keys: Any) -> list[dict[str, Any]]:
    table = tables.read_table(root / paths.TABLE.format(table=name), tables.SCHEMAS[name])
    return [row for row in table.to_pylist() if keys.items() <= row.items()]


def passing(root: Path, variant: str = "trained") -> list[dict[str, Any]]:
    """Return the rows of `latents` of the cell that the page opens with."""
    keys = {"variant": variant, "site": "resid_post.1", "passes_filter": True}
    return rows_of(root, "latents", **keys)


def order(values: dict[int, float | None], *, down: bool) -> list[int]:
    """Sort latents by their values, those without one last, ties by index."""
    has = [latent for latent, value in values.items() if value is not None]
    found = sorted(has, key=lambda latent: ((-1 if down else 1) * values[latent], latent))  # type: ignore[operator]
    return found + sorted(set(values) - set(has))


def test_a_click_on_a_column_sorts_both_sides_and_a_second_one_reverses_the_order(
    built: Path, page: str, chromium: Chromium
) -> None:
    keys = {"explainer": "lexical", "scorer": "fuzzing", "site": "resid_post.1"}
    expected: dict[str, list[dict[int, float | None]]] = {"firing_share": [], "fuzzing": []}
    for variant in ("trained", "step0"):
        own = passing(built, variant)
        scores = {
            r["latent"]: r["auroc"] for r in rows_of(built, "scores", variant=variant, **keys)
        }
        expected["firing_share"].append({row["latent"]: row["firing_share"] for row in own})
        expected["fuzzing"].append({row["latent"]: scores.get(row["latent"]) for row in own})
    sides = [SHOWN.format(side=f"d.querySelectorAll('.side')[{i}]") for i in (0, 1)]
    clicks = "; ".join(
        f"{LEFT}.querySelector('[data-key={key}]').click();"
        f"found.push([{sides[0]}, {sides[1]}, {LEFT}.querySelector('[data-key={key}]')"
        ".closest('th').getAttribute('aria-sort')])"
        for key in ("firing_share", "fuzzing", "fuzzing")
    )
    found = chromium.ask(page, 1280, f"{ALL} const found = []; {clicks}; return found")
    wanted = (("firing_share", True), ("fuzzing", True), ("fuzzing", False))
    for (left, right, sort), (key, down) in zip(found, wanted, strict=True):
        assert sort == ("descending" if down else "ascending")
        # Numbers have four digits on the page, so ties may differ there.
        for shown, values in zip((left, right), expected[key], strict=True):
            rounded = {k: None if v is None else float(f"{v:.4g}") for k, v in values.items()}
            assert shown == order(rounded, down=down)
    assert len(found[0][0]) == 14  # of 40: ten sampled, four others that pass


def test_the_page_opens_with_the_best_of_the_sampled_latents(
    built: Path, page: str, chromium: Chromium
) -> None:
    own = {row["latent"]: row["next_token_auroc"] for row in passing(built) if row["sampled"]}
    found = chromium.ask(page, 1280, f"return {SHOWN.format(side=LEFT)}")
    assert found == order(own, down=True)
    assert found[-1] == 8  # the one without a value


def test_filters_leave_only_what_was_requested(built: Path, page: str, chromium: Chromium) -> None:
    ranked = rows_of(
        built, "latents_ranked", site="resid_post.1", metric="next_token_auroc", null="step0"
    )
    expected = {row["latent"] for row in ranked if row["q"] <= 0.2}
    found = chromium.ask(
        page,
        1280,
        f"{ALL} const type = (name, value) => {{ const one = d.querySelector(name);"
        "one.value = value; one.dispatchEvent(new w.Event('input')); };"
        f"type('[name=q]', '0.2'); const few = {SHOWN.format(side=LEFT)};"
        f"type('[name=q]', ''); const all = {SHOWN.format(side=LEFT)};"
        f"type('[type=search]', 'ALERT('); const words = {SHOWN.format(side=LEFT)};"
        f"type('[type=search]', 'no such text'); const none = {SHOWN.format(side=LEFT)};"
        f"return [few, all, words, none, {LEFT}.querySelector('.note[role=status]').textContent,"
        f"{LEFT}.lastChild.textContent]",
    )
    few, every, words, none, status, said = found
    assert set(few) == expected
    assert 0 < len(few) < len(every) == 14
    assert sorted(words) == [row["latent"] for row in passing(built) if row["sampled"]]
    assert none == []
    assert status == "0 of 14 latents"
    assert said.startswith("No latents: ")


def test_q_is_against_the_variant_on_the_other_side(
    built: Path, page: str, chromium: Chromium
) -> None:
    """Or against all nulls next to a variant that is not a null; latents of nulls have no q."""
    found = chromium.ask(
        page,
        1280,
        "const found = []; const sides = () => d.querySelectorAll('.side');"
        "for (const name of ['step0', 'noise_embeddings', 'retrained']) {"
        "const select = sides()[1].querySelector('select'); select.value = name;"
        "select.dispatchEvent(new w.Event('change'));"
        "const row = sides()[0].querySelector('tbody tr');"
        "found.push([name, Number(row.querySelector('button').textContent),"
        "row.lastChild.textContent, sides()[1].querySelectorAll('thead th').length]); }"
        "return found",
    )
    for name, latent, q, n_columns in found:
        null = "all" if name == "retrained" else name
        (row,) = rows_of(
            built,
            "latents_ranked",
            **{
                "site": "resid_post.1",
                "metric": "next_token_auroc",
                "null": null,
                "latent": latent,
            },
        )
        assert q == f"{row['q']:.3f}"
        assert n_columns == 6  # latent, three of its own, two scores


def test_a_chosen_latent_shows_its_windows_its_explanation_and_its_tokens(
    built: Path, page: str, chromium: Chromium
) -> None:
    latent = passing(built)[3]
    assert latent["sampled"]
    found = chromium.ask(
        page,
        1280,
        f"{LEFT}.querySelector('[data-latent=\"{latent['latent']}\"]').click();"
        f"const card = {LEFT}.querySelector('.latent');"
        "return { title: card.querySelector('h4').textContent,"
        "focused: d.activeElement.dataset.latent,"
        "explanation: card.querySelector('.explanation').textContent,"
        "effects: [...card.querySelectorAll('.effects code')].map(c => [c.textContent, c.title]),"
        "windows: [...card.querySelectorAll('.windows li')].map(li => [li.textContent,"
        "[...li.querySelectorAll('mark')].map(m => [m.textContent, Number(m.title),"
        "Number(m.style.getPropertyValue('--a'))])]) }",
    )
    assert found["title"] == f"Latent {latent['latent']}"
    assert found["focused"] == str(latent["latent"])
    assert EVIL in found["explanation"]
    assert found["effects"][0][1] == "+4.5 sd"
    assert found["effects"][-1][1] == "\u22123.2 sd"
    keys = {"subject": "small", "variant": "trained", "draw": 0}
    keys |= {"site": "resid_post.1", "sae": "topk", "seed": 0}
    windows = tables.read_table(
        built / paths.WINDOWS.format(**keys), tables.cell_schema("windows")
    ).to_pylist()
    own = [w for w in windows if w["latent"] == latent["latent"] and w["active"]]
    own.sort(key=lambda w: (-max(w["activations"]), w["window"]))
    assert len(found["windows"]) == 4
    tokenizer = Tokenizer.from_file(str(built / paths.TOKENIZER_FILE.format(corpus="sotu")))
    for (text, marks), window in zip(found["windows"], own, strict=False):
        decoded = tokenizer.decode(window["token_ids"], skip_special_tokens=False)
        plain = re.sub(r"[\s¶⇥␣]+", "", text).replace(r"\x07", "\x07")
        assert plain == re.sub(r"\s+", "", decoded)
        assert max(value for _, value, _ in marks) == pytest.approx(
            max(window["activations"]), rel=5e-3
        )
        for _, value, share in marks:
            assert share == pytest.approx(value / latent["max_activation"], abs=0.006)
    # The strongest window is the odd text, where a script and a control character remain text.
    assert found["windows"][0][0].replace("␣", " ") == ODD_TEXT.replace("\x07", r"\x07")


def test_rows_are_reached_and_chosen_by_the_keyboard(page: str, chromium: Chromium) -> None:
    found = chromium.ask(
        page,
        1280,
        f"const rows = {SHOWN.format(side=LEFT)}; {LEFT}.querySelector('tbody button').focus();"
        "for (const key of ['ArrowDown', 'ArrowDown', 'ArrowUp'])"
        "d.activeElement.dispatchEvent(new w.KeyboardEvent('keydown', {key, bubbles: true}));"
        "const all = (what) => [...d.querySelectorAll(`#browser :is(${what})`)];"
        "return [rows, Number(d.activeElement.textContent),"
        f"{LEFT}.querySelector('h4').textContent,"
        "all('button, select, input').every(e => e.tabIndex === 0),"
        "all('select, input').every(e => e.closest('label'))]",
    )
    rows, focused, title, reached, labelled = found
    assert focused == rows[1]
    assert title == f"Latent {rows[1]}"
    assert reached
    assert labelled


def test_scripts_in_texts_stay_text_and_no_other_script_runs(page: str, chromium: Chromium) -> None:
    added = "<script>window.ran = true</script>"
    hostile = page.replace("</main>", f"{added}</main>")
    found = chromium.ask(
        hostile,
        1280,
        "return [d.scripts.length, w.ran === undefined, d.querySelectorAll('tbody button').length,"
        "[...d.querySelectorAll('#browser *')].every(e => [...e.attributes].every("
        "a => !a.name.startsWith('on'))), d.querySelector('#browser').textContent]",
    )
    n_scripts, did_not_run, n_buttons, is_inert, text = found
    assert n_scripts == 3
    assert did_not_run
    assert n_buttons == 20
    assert is_inert
    assert EVIL in text
    (data,) = re.findall(r'id="browser-data">(.*?)</script>', page)
    assert "<" not in data
    assert EVIL in json.dumps(json.loads(data))


def test_the_answer_needs_no_script(page: str) -> None:
    answer, first_script = page.index('id="answer"'), page.index("<script")
    assert answer < page.index('<figure id="small.answer">') < first_script
    elements = Elements(page)
    (browser_div,) = (a for tag, a in elements.tags if tag == "div" and a.get("id") == "browser")
    assert "hidden" in browser_div
    assert "needs JavaScript" in html.unescape(page[page.index("<noscript>") :])


def test_the_page_of_the_default_study_is_at_most_six_screens_high(
    page: str, chromium: Chromium
) -> None:
    assert 2 < chromium.height_in_screens(page) <= MOST_SCREENS


def test_two_hundred_latents_a_cell_fit_in_five_megabytes(page: str) -> None:
    """With windows of all latents; in this study only ten per cell have windows."""
    (data,) = re.findall(r'id="browser-data">(.*?)</script>', page)
    cells = [cell for place in json.loads(data)["places"] for cell in place["cells"].values()]
    shown = [latent for cell in cells for latent in cell["latents"] if "windows" in latent]
    assert len(shown) == 10 * len(cells) == 10 * 12
    of_shown = sum(len(json.dumps(one, separators=(",", ":")).encode()) for one in shown)
    assert len(page.encode()) + 19 * of_shown < MOST_BYTES


def test_sampled_latents_come_first_and_others_fill_the_room(built: Path) -> None:
    for n, n_sampled in ((4, 4), (12, 10), (200, 10)):
        report = {"figure_formats": ["svg"], "n_example_latents": n}
        found = browser(load_study(default_config(report=report), built))
        assert found is not None
        for place in found["places"]:
            for cell in place["cells"].values():
                latents = [one["numbers"][0] for one in cell["latents"]]
                assert len(set(latents)) == len(latents) == min(n, 14)
                assert sum("windows" in one for one in cell["latents"]) == n_sampled
    assert (
        browser(load_study(default_config(report=report | {"n_example_latents": 0}), built)) is None
    )


def test_the_page_says_how_many_latents_beat_placebo_and_sorts_them_by_q_from_a_click(
    built: Path, page: str, chromium: Chromium
) -> None:
    ranked = rows_of(built, "latents_ranked", metric="next_token_auroc", null="all")
    n = sum(row["q"] <= 0.05 for row in ranked)
    assert 0 < n < len(ranked)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    assert (
        f"At a false-discovery rate of 5%, {n} of {len(ranked)} latents of trained beat null "
        f"latents of similar firing rates on Next-token AUROC by direct effect."
    ) in text
    assert "results/tables/latents_ranked.parquet" in text
    (counts,) = re.findall(r"By metric and site</summary>(.*?)</details>", page, re.DOTALL)
    here = [row for row in ranked if row["site"] == "resid_post.1"]
    n_here = sum(row["q"] <= 0.05 for row in here)
    assert counts.count("<tbody>") == 1
    assert f"{n_here} of {len(here)}<" in counts
    assert "Token entropy" not in counts  # untested against all
    shown, q = chromium.ask(
        page,
        1280,
        f"{ALL} {LEFT}.querySelector('[data-key=q]').click(); return [{SHOWN.format(side=LEFT)},"
        f"[...{LEFT}.querySelectorAll('tbody tr')].map(tr => tr.lastChild.textContent)]",
    )
    of_step0 = rows_of(
        built, "latents_ranked", site="resid_post.1", metric="next_token_auroc", null="step0"
    )
    values: dict[int, float | None] = dict.fromkeys(shown)
    values |= {row["latent"]: row["q"] for row in of_step0}
    assert shown == order(values, down=False)
    assert q[0] == f"{min(row['q'] for row in of_step0):.3f}"


def test_latents_that_beat_placebo_are_counted_on_a_page_without_a_browser(
    built: Path, tmp_path: Path, undrawn: None
) -> None:
    own = built / "results"
    (tmp_path / "results").mkdir()
    for folder in ("latents", "corpus", "tables"):
        (tmp_path / "results" / folder).symlink_to(own / folder)
    without = {"figure_formats": ["svg"], "n_example_latents": 0}
    build_report(default_config(explainers={}, report=without), tmp_path)
    page = (tmp_path / paths.REPORT).read_text(encoding="utf-8")
    assert "<script" not in page
    assert '<h2 id="latents">Latents</h2>' in page
    assert "latents_ranked.parquet" in page
    assert "Click q below" not in page


def test_latents_that_cannot_be_compared_with_anything_are_reported(
    built: Path, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "results/tables").mkdir(parents=True)
    for file in (built / "results/tables").iterdir():
        (tmp_path / "results/tables" / file.name).symlink_to(file)
    none = {"n_tested": 0, "n_beating": 0, "share_beating_placebo": None}
    rows = [row | none for row in rows_of(built, "beating_placebo")]
    path = tmp_path / paths.TABLE.format(table="beating_placebo")
    path.unlink()
    tables.write_table(path, rows, tables.SCHEMAS["beating_placebo"])
    found = beating(load_study(config, tmp_path))
    assert found is not None
    assert (found.sentence[:28], found.rows) == ("No latent could be tested: a", [])


def test_a_study_without_ranked_latents_has_no_q(
    built: Path, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    for folder in ("latents", "corpus"):
        (tmp_path / "results" / folder).symlink_to(built / "results" / folder)
    (tmp_path / "results/tables").mkdir()
    for file in (built / "results/tables").iterdir():
        if file.stem not in ("latents_ranked", "beating_placebo"):
            (tmp_path / "results/tables" / file.name).symlink_to(file)
    found = browser(load_study(config, tmp_path))
    assert found is not None
    assert found["metrics"] == []
    assert beating(load_study(config, tmp_path)) is None
    assert all(not cell["q"] for place in found["places"] for cell in place["cells"].values())
