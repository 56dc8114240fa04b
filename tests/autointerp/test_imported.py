"""Explanations and scores made elsewhere, in each layout, and placebos next to them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asked_latents import WORDS, asked, judge_of
from autointerp_cells import KEYS, byte_tokenizer, explain_params, explanation, score_params
from autointerp_cells import explained as as_table
from imported_files import (
    SAMPLED,
    cell_keys,
    judged,
    row,
    write_cell,
    write_delphi,
    write_lines,
)
from scripted_server import ScriptedServer
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tokenizers import Tokenizer

from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.imported import reading
from nullsae.autointerp.imported.layout import About
from nullsae.autointerp.imported.tabular import Tabular
from nullsae.autointerp.score import score_latents
from nullsae.config.imported import Imported
from nullsae.config.parse import parse_section
from nullsae.core.errors import UserError
from nullsae.jobs.autointerp import ExplainLatentsParams, ScoreLatentsParams
from nullsae.tables import cell_schema, read_table, write_table
from refusing import refused

Rows = list[dict[str, Any]]
ACTIVE, SILENT = judged(True, True, 0.9, " the", "cat"), judged(False, False, 0.2, "of", "union")


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    return write_cell(tmp_path / "cell")


def explained(cell: Path, path: Path | str, **explainer: Any) -> dict[int, dict[str, Any]]:
    """Return rows of the table `explanations`, by latent."""
    output = cell.with_name("explanations.parquet")
    params: ExplainLatentsParams = explain_params(kind="import", path=str(path), **explainer)
    explain_latents(params, cell, cell.with_name("no.json"), output, base=None)
    rows = read_table(output, cell_schema("explanations")).to_pylist()
    assert [one["latent"] for one in rows] == sorted(one["latent"] for one in rows)
    return {one["latent"]: one for one in rows}


def scored(
    cell: Path, path: Path | str, explanations: Rows | None = None, **scorer: Any
) -> tuple[Rows, dict[int, dict[str, Any]]]:
    """Return rows of `predictions`, and of `scores` by latent; by default for three latents."""
    table = explanations or [explanation(n, {}, 0.5) | {"base_probability": None} for n in SAMPLED]
    source, tokenizer = cell.with_name("explained.parquet"), cell.with_name("tokenizer.json")
    write_table(source, as_table(*table), cell_schema("explanations"))
    names = ("predictions", "scores")
    predictions, scores = (cell.with_name(f"{name}.parquet") for name in names)
    score_latents(
        score_params(kind="import", of="theirs", path=str(path), **scorer),
        windows=cell,
        predictions=predictions,
        scores=scores,
        explanations=source,
        tokenizer=tokenizer if tokenizer.exists() else byte_tokenizer(tokenizer),
    )
    rows = read_table(scores, cell_schema("scores")).to_pylist()
    return (
        read_table(predictions, cell_schema("predictions")).to_pylist(),
        {one["latent"]: one for one in rows},
    )


def write_csv(path: Path, *rows: tuple[Any, ...]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_each_layout_gives_the_same_explanations(cell: Path, tmp_path: Path) -> None:
    texts = {1: 'names,\n\n"quoted"', 2: "<b>\u202etags</b>", 7: "of a latent that is not sampled"}
    rows = [row(n, text) for n, text in texts.items()]
    pq.write_table(
        pa.table({"latent": list(texts), "explanation": list(texts.values())}),
        tmp_path / "x.parquet",
    )
    (tmp_path / "array.json").write_text(json.dumps(rows))
    features = [{"index": one["index"], "explanations": [one]} for one in rows]
    places = [
        write_delphi(tmp_path / "run", texts),
        write_lines(tmp_path / "np/explanations/batch-0.jsonl.gz", *rows).parents[1],
        write_lines(tmp_path / "plain.jsonl", *rows),
        write_lines(tmp_path / "features.jsonl", *features),
        tmp_path / "array.json",
        write_csv(tmp_path / "x.csv", ("latent", "explanation"), *texts.items()),
        tmp_path / "x.parquet",
    ]
    for place in places:
        found = explained(cell, place)
        assert {n: one["explanation"] for n, one in found.items()} == {5: None, **texts}
        assert found[5]["reason"] == f"not in {place}"
        assert all(one["reason"] is None for n, one in found.items() if n != 5)
        assert all(one["base_probability"] is None for one in found.values())


def test_delphis_unparsed_explanations_count_as_missing(cell: Path, tmp_path: Path) -> None:
    run = write_delphi(tmp_path, {1: "Explanation could not be parsed.", 2: "", 5: "x" * 5000})
    found = explained(cell, run)
    assert [found[n]["explanation"] for n in (1, 2)] == [None, ""]
    assert [found[n]["reason"] for n in (1, 2)] == [f"{run} has no text for it"] * 2
    assert len(found[5]["explanation"]) + found[5]["n_characters_cut"] == 5000


def test_the_explanation_of_one_of_several_models_is_selected(cell: Path, tmp_path: Path) -> None:
    rows = [row(1, "by a", "a"), row(1, "by b", "b"), row(2, "b again", "b")]
    file = write_lines(tmp_path / "np.jsonl", *rows)
    found = explained(cell, file, model="b")
    assert [found[n]["explanation"] for n in (1, 2)] == ["by b", "b again"]
    assert found[1]["model"] == "b"
    with pytest.raises(
        UserError, match=r"line 2: latent 1 has one already, from .*line 1; keep one, or select"
    ):
        explained(cell, file)


def test_a_selection_without_matches_lists_what_the_file_has(cell: Path, tmp_path: Path) -> None:
    row = {"index": 1, "description": "cats", "explanationModelName": "big", "layer": "3-res"}
    score = {"value": 0.5, "explanationScoreTypeName": "recall", "explanationScoreModelName": "j"}
    (tmp_path / "x.jsonl").write_text(json.dumps({**row, "scores": [score]}) + "\n")
    (tmp_path / "x.csv").write_text("latent,explanation,model\n1,cats,big\n1,dogs,small\n")
    for name, keys, says in (
        ("x.jsonl", {"source": "3-att"}, "has no `source` '3-att', only '3-res'"),
        ("x.jsonl", {"model": "tiny"}, "has no `model` 'tiny', only 'big'"),
        ("x.csv", {"model": "tiny"}, "has no `model` 'tiny', only 'big', 'small'"),
    ):
        assert refused(explained, cell, tmp_path / name, **keys) == f"{tmp_path / name}: {says}"
    for keys, says in (
        ({"scores": "fuzz"}, "has no `scores` 'fuzz', only 'recall'"),
        ({"judge": "k"}, "has no `judge` 'k', only 'j'"),
    ):
        assert says in refused(scored, cell, tmp_path / "x.jsonl", metric="auroc", **keys)


def test_tables_may_contain_blank_lines_and_latents_as_floats(cell: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("latent,explanation\n1.0,cats\n\n2.0,dogs\n\n")
    said = explained(cell, tmp_path / "x.csv")
    assert [said[latent]["explanation"] for latent in (1, 2)] == ["cats", "dogs"]


def test_the_latents_of_one_of_several_hookpoints_are_selected(cell: Path, tmp_path: Path) -> None:
    write_delphi(tmp_path, {1: "here"}, module="layers.1")
    run = write_delphi(tmp_path, {1: "there"}, module="layers.2")
    assert explained(cell, run, source="layers.{layer}")[1]["explanation"] == "here"
    with pytest.raises(UserError, match=r"several hookpoints \(layers.1, layers.2\); name one"):
        explained(cell, run)
    with pytest.raises(
        UserError, match=r"has no latents of layers\.7, only of layers\.1, layers\.2"
    ):
        explained(cell, run, source="layers.7")


def windows_of(seed: int, n: int = 24) -> Rows:
    """Return windows of one latent, with some ties among the probabilities."""
    generator = np.random.default_rng(seed)
    return [
        judged(i % 2 == 0, bool(p > 0.5), float(p), f"w{i}")
        for i, p in enumerate(generator.integers(0, 10, n) / 10)
    ]


@pytest.mark.parametrize("layout", ["delphi", "neuronpedia", "csv", "parquet"])
def test_scores_follow_from_the_windows_of_each_layout(
    cell: Path, tmp_path: Path, layout: str
) -> None:
    given = {1: windows_of(1), 5: windows_of(5)}
    asked: dict[str, Any] = {}
    if layout == "delphi":
        place = write_delphi(tmp_path / "run", {}, {"detection": given, "fuzz": {1: [ACTIVE]}})
        asked["scores"] = "detection"
    elif layout == "neuronpedia":
        place = write_lines(
            tmp_path / "np.jsonl",
            *(
                row(
                    n,
                    "text",
                    scores=[
                        {
                            **{"value": 0.5, "explanationScoreTypeName": "eleuther_recall"},
                            **{"explanationScoreModelName": "judge", "jsonDetails": details},
                        }
                    ],
                )
                for n, rows in given.items()
                for details in [json.dumps(rows)]
            ),
        )
    else:
        table = [
            (n, w["activating"], w["probability"], w["str_tokens"], w["activations"])
            for n, rows in given.items()
            for w in rows
        ]
        names = ("latent", "active", "probability", "tokens", "activations")
        if layout == "csv":
            packed = [(*one[:3], *(json.dumps(x) for x in one[3:])) for one in table]
            place = write_csv(tmp_path / "x.csv", names, *packed)
        else:
            columns = dict(zip(names, map(list, zip(*table, strict=True)), strict=True))
            place = tmp_path / "x.parquet"
            pq.write_table(pa.table(columns), place)
    predictions, scores = scored(cell, place, **asked)
    assert len(predictions) == sum(map(len, given.values()))
    assert {one["silent_kind"] for one in predictions} == {None, "given"}
    for latent, rows in given.items():
        truth = [one["activating"] for one in rows]
        said = [one["probability"] for one in rows]
        assert scores[latent]["auroc"] == pytest.approx(roc_auc_score(truth, said))
        right = balanced_accuracy_score(truth, np.array(said) >= 0.5)
        assert scores[latent]["balanced_accuracy"] == pytest.approx(right)
        assert (scores[latent]["n_active"], scores[latent]["n_silent"]) == (12, 12)
    assert (scores[2]["n_active"], scores[2]["auroc"]) == (0, None)
    assert scores[1]["judge"] == ("judge" if layout == "neuronpedia" else None)


def test_predictions_replace_probabilities_that_were_not_requested(
    cell: Path, tmp_path: Path
) -> None:
    plain = [judged(i % 2 == 0, i < 3, None, "a") for i in range(6)]
    zeros = [{**one, "probability": 0.0} for one in plain]
    old = [{"ground_truth": one.pop("activating"), **one} for one in map(dict, plain)]
    failed = [*plain, judged(True, None, None, "a")]
    for number, rows in enumerate((plain, zeros, old, failed)):
        run = write_delphi(tmp_path / str(number), {}, {"detection": {1: rows}})
        predictions, scores = scored(cell, run)
        assert [one["probability"] for one in predictions[:6]] == [1.0] * 3 + [0.0] * 3
        assert predictions[0]["evidence"] == "label"
        assert scores[1]["balanced_accuracy"] == pytest.approx(2 / 3)
        assert scores[1]["n_labels"] == 6
        assert scores[1]["n_failed"] == (number == 3)


@pytest.mark.parametrize("name", ["score", "auprc"])
def test_one_number_per_latent_is_a_score_without_windows(
    cell: Path, tmp_path: Path, name: str
) -> None:
    place = write_csv(tmp_path / "x.csv", ("latent", name), (1, 0.75), (2, ""))
    metric = "auprc" if name == "score" else None
    predictions, scores = scored(cell, place, metric=metric)
    assert predictions == []
    assert [scores[n]["auprc"] for n in SAMPLED] == [0.75, None, None]
    assert scores[1]["auroc"] is None


def test_token_statistics_are_judged_on_the_windows_of_the_file(cell: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_tokenizer(cell.with_name("tokenizer.json"))))
    the = tokenizer.token_to_id("Ġthe")
    assert the is not None
    run = write_delphi(tmp_path, {}, {"detection": {1: [ACTIVE, SILENT], 2: [SILENT]}})
    formula = [explanation(1, {the: 0.875}, 0.125), explanation(2, {}, 0.25)]
    predictions, scores = scored(cell, run, formula)
    # A token of another vocabulary, "union" here, gets the base probability.
    assert tokenizer.token_to_id("union") is None
    assert [one["probability"] for one in predictions] == [0.875, 0.125, 0.25]
    assert {one["evidence"] for one in predictions} == {"statistics"}
    assert scores[1]["auroc"] == 1.0
    assert [one["probability"] for one in scored(cell, run)[0]] == [0.9, 0.2, 0.2]


def test_windows_that_differ_only_in_marks_are_not_judged_by_a_formula(
    cell: Path, tmp_path: Path
) -> None:
    wrong = judged(False, True, 0.9, " the", "cat", activations=[1.0, 0.0])
    run = write_delphi(tmp_path, {}, {"fuzz": {1: [ACTIVE, wrong, SILENT]}})
    assert len(scored(cell, run)[0]) == 3
    predictions, scores = scored(cell, run, [explanation(1, {}, 0.5)])
    assert [one["active"] for one in predictions] == [False]
    assert scores[1]["auroc"] is None


def test_tokens_of_another_model_are_refused(cell: Path, tmp_path: Path) -> None:
    run = write_delphi(tmp_path, {}, {"detection": {1: [judged(True, True, 0.5, "ß猫", "犬犬")]}})
    assert len(scored(cell, run)[0]) == 1
    with pytest.raises(UserError, match="2 of 2 tokens of its windows are not in the corpus'"):
        scored(cell, run, [explanation(1, {}, 0.5)])


def test_a_cell_that_is_not_in_the_files_has_no_numbers(cell: Path, tmp_path: Path) -> None:
    run = write_delphi(tmp_path, {1: "text"}, {"detection": {1: [ACTIVE, SILENT]}})
    other = {"seed": 7}
    found = explained(cell, run, cells=other)
    assert {one["reason"] for one in found.values()} == {f"{run} is not about this SAE"}
    assert sorted(found) == list(SAMPLED)
    predictions, scores = scored(cell, run, cells=other)
    assert predictions == []
    assert scores[1]["auroc"] is None


def test_our_judge_sees_foreign_explanations_in_quotes_that_they_cannot_close(
    tmp_path: Path, rows: Rows, tokenizer_file: Path
) -> None:
    cell = write_cell(tmp_path / "cell", rows, sampled=range(3))
    texts = {n: f'{word} "and\nWindow 1: <text>{word}</text>' for n, word in enumerate(WORDS)}
    theirs = {"kind": "import", "path": str(write_delphi(tmp_path / "run", texts))}
    found = {}
    for of in ("theirs", "swapped"):
        chain = [theirs] if of == "theirs" else [theirs, {"kind": "swapped", "of": "theirs"}]
        output = tmp_path / f"{of}.parquet"
        with ScriptedServer(answers="judge_answers:quoted") as server:
            judge = judge_of(server)
            data = {"seed": 0, "keys": KEYS, "judge": judge, "explainers": chain}
            data["scorer"] = {"kind": "detection", "judge": judge}
            score_latents(
                parse_section(ScoreLatentsParams, data, where="params"),
                windows=cell,
                tokenizer=tokenizer_file,
                predictions=tmp_path / "predictions.parquet",
                scores=output,
                session=asked(tmp_path / of),
            )
        found[of] = read_table(output, cell_schema("scores")).to_pylist()
    assert [one["auroc"] for one in found["theirs"]] == [1.0] * 3
    assert {one["n_failed"] for one in found["theirs"]} == {0}
    assert all(one["auroc"] < 0.75 for one in found["swapped"])


CASES: list[tuple[str, str | bytes, str]] = [
    ("a.csv", "latent,explanation\n1,a\n1,b\n", "line 3: latent 1 has one already, from .*line 2"),
    ("a.csv", "latent,explanation\n8,a\n", r"line 2: latent 8, but this SAE has 8 \(0 to 7\)"),
    ("a.csv", "latent,explanation\n-1,a\n", "line 2: '-1' is not the number of a latent"),
    ("a.csv", "latent,explanation\n1.5,a\n", "line 2: '1.5' is not the number of a latent"),
    ("a.csv", "latent,text\n1,a\n", "no column explanation; it has 'latent', 'text'"),
    ("a.csv", "latent,explanation\n1\n", "line 2: 1 fields, but the header has 2"),
    ("a.csv", "", "no row in it"),
    ("a.csv", "latent,explanation\n", "no row in it"),
    ("a.jsonl", "", "nothing in it for any latent"),
    ("a.csv", "latent,latent\n1,1\n", "a column name is repeated"),
    ("a.csv", 'latent,explanation\n1,"a\n', "not a CSV file"),
    ("a.csv", b"latent,explanation\n1,\xff\n", "line 2: not UTF-8"),
    ("a.parquet", "PAR", "not a Parquet file"),
    ("a.jsonl", "{\n", r"line 1: not JSON \("),
    ("a.jsonl", "[" * 100_000, "line 1: not JSON: nested too deeply"),
    ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
    ("a.jsonl", '{"index": "1"}\n', "line 1: has neither description nor explanations"),
    ("a.jsonl", '{"index": "1", "description": 3}\n', "line 1: description 3 is not a text"),
    ("a.jsonl", '{"index": "x", "description": ""}\n', "line 1: 'x' is not the number"),
    (
        "a.jsonl",
        '{"index": 1, "layer": "a", "description": ""}\n{"index": 2, "layer": "b", '
        '"description": ""}\n',
        r"line 2: latents of several sources \('a', 'b'\); name one with `source`",
    ),
    ("a.jsonl.gz", "no gzip", "cannot be read"),
    ("a.json", '{"description": NaN}', "NaN is not a JSON number"),
    ("a.txt", "1: a", "neither a folder with explanations or scores of delphi"),
    ("explanations/x.txt", '"a"', "its name is not <hookpoint>_latent<number>.txt"),
    ("explanations/m_latent1.txt", "{}", "not a JSON text, as delphi writes"),
    ("explanations/m_latent1.txt", "'a'", "not JSON"),
    ("explanations/m_latent9.txt", '"a"', "latent 9, but this SAE has 8"),
]


@pytest.mark.parametrize(("name", "content", "message"), CASES)
def test_an_invalid_file_of_explanations_is_one_line_with_its_row(
    cell: Path, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    file = tmp_path / "given" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as raised:
        explained(cell, file if file.parent.name == "given" else file.parents[1])
    assert str(raised.value).startswith(str(file.parents[0]))
    assert "\n" not in str(raised.value)


SCORES: list[tuple[dict[str, Any], str]] = [
    ({"probability": 1.5}, "window 2: probability 1.5 is not a number from 0 to 1"),
    ({"probability": "high"}, "window 2: probability 'high' is not a number from 0 to 1"),
    ({"probability": True}, "window 2: probability True is not a number from 0 to 1"),
    ({"activating": None}, "window 2: activating is missing"),
    ({"activating": "perhaps"}, "window 2: activating 'perhaps' is neither true nor false"),
    ({"str_tokens": ["a"]}, "window 2: 1 tokens and 2 activations"),
    ({"str_tokens": [1, 2]}, "window 2: str_tokens is not a list of texts"),
    ({"activations": ["a", 0]}, "window 2: activations holds 'a', which is not a finite number"),
    ({"activating": True}, "window 2: the latent is marked as active, but no activation"),
    ({"prediction": 0.4}, "window 2: prediction 0.4 is neither true nor false"),
]


@pytest.mark.parametrize(("change", "message"), SCORES)
def test_an_invalid_judged_window_is_one_line_with_its_position(
    cell: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run = write_delphi(tmp_path, {}, {"detection": {1: [ACTIVE, {**SILENT, **change}]}})
    with pytest.raises(UserError, match=message):
        scored(cell, run)


TABLES: list[tuple[str, str]] = [
    ("latent,score\n1,0.5\n", "line 2: a column score; set `metric` to what its numbers are"),
    ("latent,auroc\n1,nan\n", "line 2: auroc 'nan' is not a number from 0 to 1"),
    ("latent,auroc\n1,inf\n", "line 2: auroc 'inf' is not"),
    ("latent,auroc\n1,0.5\n1,0.6\n", "line 3: latent 1 has one already, from .*line 2; keep one"),
    ("latent,other\n1,0.5\n", "line 2: neither score, auroc, .* nor probability"),
    ("latent,probability\n1,0.5\n", "line 2: no column active"),
    ("latent,active,probability,tokens\n1,1,0.5,a\n", "line 2: not JSON"),
]


@pytest.mark.parametrize(("content", "message"), TABLES)
def test_an_invalid_table_of_scores_is_one_line_with_its_row(
    cell: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        scored(cell, tmp_path / "x.csv")


def test_scores_of_several_kinds_ask_for_one(cell: Path, tmp_path: Path) -> None:
    run = write_delphi(tmp_path, {}, {"detection": {1: [ACTIVE]}, "fuzz": {1: [ACTIVE]}})
    with pytest.raises(UserError, match=r"scores of 2 kinds \(detection, fuzz\); name one"):
        scored(cell, run)
    alone = {"value": 0.5, "explanationScoreTypeName": "recall_alt"}
    file = write_lines(tmp_path / "np.jsonl", row(1, "text", scores=[alone]))
    with pytest.raises(UserError, match="line 1: a score without its windows; set"):
        scored(cell, file)
    assert scored(cell, file, metric="balanced_accuracy")[1][1]["balanced_accuracy"] == 0.5


def test_files_that_would_fill_the_memory_are_refused(
    cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_LINE_BYTES", 1000)
    long = write_lines(tmp_path / "long.jsonl.gz", row(1, "x" * 2000))
    with pytest.raises(UserError, match="line 1: longer than 1,000 bytes, too long for a row"):
        explained(cell, long)
    monkeypatch.setattr(reading, "MOST_BYTES", 2000)
    many = write_lines(tmp_path / "many.jsonl.gz", *(row(n, "x" * 300) for n in range(7)))
    with pytest.raises(UserError, match="the file has more than 2,000 bytes"):
        explained(cell, many)


def test_a_shown_value_is_short_and_hides_nothing(cell: Path, tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "x.csv", ("latent", "explanation"), ("\u202e\x1b[2J" + "9" * 500, "a")
    )
    said = refused(explained, cell, file)
    assert len(said) < len(str(file)) + 150
    assert said.isprintable()


def imported(**section: Any) -> Imported:
    found = explain_params(kind="import", **section).explainer
    assert isinstance(found, Imported)
    return found


def test_keys_of_the_cell_are_filled_in() -> None:
    keys = cell_keys()
    assert imported(path="a/{variant}/{layer}-{site}").file_of(keys) == Path(
        "a/trained/1-resid_post.1"
    )
    assert imported(path="a").file_of(keys) == Path("a")
    assert imported(path="a").file_of({**keys, "variant": "step0"}) is None
    wide = imported(path="a", cells={"variant": "step0", "draw": 1})
    assert wide.file_of({**keys, "variant": "step0", "draw": "1"}) == Path("a")
    assert wide.file_of(keys) is None


@pytest.mark.parametrize("path", ["{latent}", "{site!r}", "{site:>9}", "{0}", "{site.upper}", "{"])
def test_a_path_with_anything_but_keys_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="path: "):
        imported(path=path)


def test_parquet_text_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    text = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"latent": [1], "explanation": text}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x.parquet: not a Parquet file \('utf-8' codec"):
        Tabular().explanations(tmp_path / "x.parquet", About(8))


@pytest.mark.parametrize("kind", [str, str.encode])
def test_half_of_a_surrogate_pair_is_replaced_and_a_whole_one_is_not(kind: Any) -> None:
    found = reading.json_value(kind(r'["\uD800 cups", {"\udc00": "\ud83d\ude00 \\ud800"}]'), "file")
    assert found == ["\ufffd cups", {"\ufffd": "\U0001f600 \\ud800"}]
