from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nullsae import paths, tables
from nullsae.cli.print_verdicts import print_verdicts
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.statistics.answer import Answer
from nullsae.statistics.verdicts import CONTROL_RULE, RULE, VERDICT_WORDS
from nullsae.tables.study import PROVENANCE

KEYS = {"subject": "small", "sae": "topk", "metric": "auroc"}
SCOPES = {"retrained": "this retraining", "step0": "these SAEs"}
JUDGED: dict[str, Any] = {"explainer": "lexical", "scorer": "detection"}


def of_model(row: dict[str, Any]) -> dict[str, Any]:
    arms = {"real_l0": 31.9, "l0": 32.04, "real_training_tokens": 2e5, "training_tokens": 1e5}
    return {"stage": "model", "real": "trained", "null": row["variant"], **arms}


def write(root: Path, table: str, rows: list[dict[str, Any]]) -> None:
    path = root / paths.TABLE.format(table=table)
    schema = tables.SCHEMAS[table]
    empty = dict.fromkeys(schema.names)
    if table == "verdicts":
        rows = [of_model(row) | row for row in rows]
    tables.write_table(path, [empty | row for row in rows], schema)


def test_verdicts_are_followed_by_what_they_say_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"verdict": "reversed", "difference": 0.0712, "reason": "because"}
    found |= {"scope": "this randomization", "is_replicated": False}
    found["warning"] = "the subject [b]knows[/b] little"
    found["accepted"] = "train_sae accepted from 00000000000000aa"
    write(
        tmp_path,
        "verdicts",
        [
            {**KEYS, **JUDGED, "site": "embed", "variant": "step0", **found},
            {
                **{**KEYS, **JUDGED, "site": "embed", "variant": "cascade"},
                **{**found, "answered_share": 0.62},
            },
            {
                **{**KEYS, "metric": "cosine"},
                **{
                    "site": "embed",
                    "variant": "cascade",
                    "verdict": "none",
                    "reason": "L0 differs",
                },
                **{"scope": "this randomization", "is_replicated": False},
            },
        ],
    )
    counts = {"n_contrasts": 9, "n_separates": 0, "n_reversed": 7, "n_equivalent": 0, "n_none": 1}
    shares = {"separates_share": 0.0, "median_superiority": 0.314, "n_inconclusive": 2}
    medians = {"median_standardized_difference": -2.26}
    shares |= {"n_controls": 0, "n_controls_told_apart": 0, "n_controls_equivalent": 0}
    write(
        tmp_path,
        "discriminating_power",
        [
            {**KEYS, **JUDGED, **counts, **shares, **medians},
            {**{**KEYS, "metric": "cosine"}, **counts, **shares, "median_superiority": None},
        ],
    )
    row = dict.fromkeys(PROVENANCE.names, "") | {"kind": "sae", "subject": "small", "site": "embed"}
    row |= {"variant": "step0", "differs_from_trained": "torch 2.5.1 (trained: 2.6.0)"}
    row |= dict.fromkeys(("draw", "seed", "threads", "tokens_seen"))
    row |= {"job": 0} | dict.fromkeys(("split", "sae", "explainer", "scorer"))
    tables.write_table(tmp_path / paths.PROVENANCE, [row], PROVENANCE)
    sentences = ("None of 2 metrics tells [b]them[/b] apart.", "It is small.")
    write_json(tmp_path / paths.ANSWER, Answer(sentences, ()).as_json())
    write(tmp_path, "beating_placebo", [])
    print_verdicts(tmp_path)
    in_short = capsys.readouterr().out.splitlines()
    assert in_short[:2] == [*sentences]
    assert "Warning: a judge answered about only 62% of a comparison's windows." in in_short
    assert "Warning: subject small: the subject [b]knows[/b] little." in in_short
    assert len(in_short) < 25
    assert in_short[-1].startswith("No report: ")
    (tmp_path / paths.REPORT).parent.mkdir(parents=True)
    (tmp_path / paths.REPORT).touch()
    print_verdicts(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {tmp_path / paths.REPORT}"
    print_verdicts(tmp_path, all_verdicts=True)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    judged = "auroc (lexical, detection)"
    assert ["small", "embed", "topk", judged, "reversed +0.07", "reversed +0.07"] in cells
    # What does not fit into the column continues below.
    assert ["", "", "", "", "", "of 62% *"] in cells
    assert "* Based on this share of the windows" in " ".join(lines)
    assert ["small", "embed", "topk", "cosine", "", "none"] in cells
    assert "None: L0 differs." in lines
    # Each column, and the first line, say what the verdicts are about.
    assert lines[0].startswith("One draw and one seed: each verdict is about this randomization")
    heads = [line.strip("┃").split("┃") for line in lines if line.startswith("┃")]
    for place, variant in ((-2, "step0"), (-1, "cascade")):
        head = " ".join(row[place].strip() for row in heads[:2])
        assert head == f"{variant}, this randomization"
    assert ["small", "topk", judged, "", "7", "", "2", "1", "0.31", "-2.3"] in cells
    assert ["small", "embed", "topk", "31.9, 200,000", *["32, 100,000"] * 2] in cells
    assert ["small", "topk", "cosine", "", "7", "", "2", "1", "", ""] in cells
    assert "Warning: subject small: the subject [b]knows[/b] little." in lines
    older = "Made in part by older code, which was accepted: train_sae."
    assert older in lines
    told = "step0 and trained were not made alike: torch 2.5.1 (trained: 2.6.0), in sae embed."
    assert f"Warning: subject small: {told}" in lines
    assert RULE in " ".join(" ".join(lines).split())
    first = next(i for i, line in enumerate(lines) if line.startswith("Verdicts"))
    assert first < next(i for i, line in enumerate(lines) if line.startswith("What each metric"))


def test_a_study_without_tables_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; .* is no study; `nullsae init "):
        print_verdicts(tmp_path)
    (tmp_path / "study.yaml").touch()
    with pytest.raises(UserError, match="does not exist; `nullsae run "):
        print_verdicts(tmp_path)


def test_an_answer_of_another_version_is_one_line_that_says_how_to_remake_it(
    tmp_path: Path,
) -> None:
    write(tmp_path, "verdicts", [])
    write_json(tmp_path / paths.ANSWER, {"text": "42"})
    with pytest.raises(UserError, match=r"answer.json: not of this version.*snakemake"):
        print_verdicts(tmp_path)


def test_a_positive_control_is_described_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = {"retrained": ("separates", "equivalent"), "step0": ("separates", "equivalent")}
    metrics = ("auroc", "cosine")
    rows = [
        {"subject": "small", "sae": "topk", "site": "embed", "metric": metric, "variant": variant}
        | {"verdict": verdict, "reason": "because", "scope": SCOPES[variant]}
        | {"is_replicated": False}
        for variant, words in verdicts.items()
        for metric, verdict in zip(metrics, words, strict=True)
    ]
    write(tmp_path, "verdicts", rows)
    counts = {f"n_{word}": 0 for word in VERDICT_WORDS}
    power = [
        {**KEYS, "metric": metric, "n_contrasts": 4, **counts}
        | {"n_controls": 2, "n_controls_told_apart": told, "n_controls_equivalent": 1 - told}
        for metric, told in zip(metrics, (1, 0), strict=True)
    ]
    write(tmp_path, "discriminating_power", power)
    write(tmp_path, "beating_placebo", [])
    write_json(tmp_path / paths.ANSWER, Answer((), ()).as_json())
    print_verdicts(tmp_path, all_verdicts=True)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert ["small", "embed", "topk", "auroc", "told apart", "separates"] in cells
    assert ["small", "embed", "topk", "cosine", "equivalent", "equivalent"] in cells
    ends = [row[-1] for row in cells if row[:2] == ["small", "topk"]]
    assert ends == ["1 of 2 (0)", "2 of 2 (1)"]
    text = " ".join(" ".join(lines).split())
    assert CONTROL_RULE in text
    heads = [line.strip("┃").split("┃")[-2].strip() for line in lines if line.startswith("┃")]
    of_columns = " ".join(heads[: heads.index("")] if "" in heads else heads)
    assert "retrained (positive control), this retraining" in of_columns
    assert text.startswith("One draw and one seed: each verdict is about this retraining")


def test_each_stage_is_a_table_whose_columns_are_its_nulls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {**KEYS, "site": "embed", "variant": "trained", "difference": -0.105, "reason": "because"}
    own |= {"scope": "these SAEs", "is_replicated": False}
    nulls = {"pca": "separates", "identity": "equivalent"}
    rows: list[dict[str, Any]] = [
        {**own, "stage": "dictionary", "real": "topk", "null": null, "verdict": word}
        for null, word in nulls.items()
    ]
    rows.append(
        {**own, "stage": "effect", "real": "own_direction", "null": "foreign_direction"}
        | {"metric": "next_token_auroc", "verdict": "separates"}
    )
    write(tmp_path, "verdicts", rows)
    for table in ("discriminating_power", "beating_placebo"):
        write(tmp_path, table, [])
    write_json(tmp_path / paths.ANSWER, Answer((), ()).as_json())
    print_verdicts(tmp_path, all_verdicts=True)
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split(":")[0] for line in lines if line.startswith("Verdicts")]
    assert titles == ["Verdicts, dictionary", "Verdicts, effect"]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert ["small", "embed", "topk", "auroc", "separates -0.10", "equivalent -0.10"] in cells
    assert ["small", "embed", "topk", "next_token_auroc", "separates -0.10"] in cells
    heads = " ".join(line for line in lines if line.startswith("┃"))
    for name in ("pca, these SAEs", "identity, these", "foreign"):
        assert name in heads
    # Nothing was randomized here.
    assert "One draw" not in "\n".join(lines)


def test_shares_of_latents_that_beat_placebo_count_all_seeds_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {
        ("trained", "step0"): [(30, 40), (10, 10)],
        ("trained", "all"): [(0, 0), (0, 0)],
        ("retrained", "step0"): [(1, 3)],
    }
    rows = [
        {**KEYS, "metric": "next_token_auroc", "site": "embed", "variant": variant, "null": null}
        | {"draw": 0, "seed": seed, "n_latents": 90, "n_tested": tested, "n_beating": beating}
        for (variant, null), found in counts.items()
        for seed, (beating, tested) in enumerate(found)
    ]
    for table in ("verdicts", "discriminating_power"):
        write(tmp_path, table, [])
    write(tmp_path, "beating_placebo", rows)
    write_json(tmp_path / paths.ANSWER, Answer((), ()).as_json())
    print_verdicts(tmp_path, all_verdicts=True)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    where = ["small", "embed", "topk", "next_token_auroc"]
    assert [*where, "trained", "80%", ""] in cells
    assert [*where, "retrained", "33%", ""] in cells
    assert "latents_ranked" not in "".join(lines)
    write(tmp_path, "latents_ranked", [])
    print_verdicts(tmp_path)
    said = capsys.readouterr().out
    assert "next_token_auroc" not in said
    table = tmp_path / paths.TABLE.format(table="latents_ranked")
    assert f"Each latent with its q against placebo: {table}" in said.splitlines()
