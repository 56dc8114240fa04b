"""An explainer and a scorer in a file of another package, found by its entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autointerp_cells import KEYS, byte_tokenizer, planted_cell, write_windows

from nullsae.tables import cell_schema, read_table

pytestmark = pytest.mark.usefixtures("warm")

REPOSITORY = Path(__file__).parents[2]
MODULE = '''"""One explainer, one scorer."""

from typing import ClassVar, Literal

import numpy as np

from nullsae.autointerp.explain import ExplainJob, explained_in_words
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.config.explainers import Explainer
from nullsae.config.scorers import Scorer
from nullsae.config.study import Config  # what a package imports first does not matter


class PeakExplainer(Explainer):
    """Names the token at which a latent is strongest."""

    name: ClassVar[str] = "peak"
    kind: Literal["peak"]
    prefix: str = "fires on"
    """What stands before the token."""

    @property
    def text(self) -> str:
        return f"Says what the latent {self.prefix}."

    def explain(self, job: ExplainJob):
        rows = job.windows("latent", "pool", "token_ids", "activations").to_pylist()
        best = {}
        for row in rows:
            if row["pool"] == "explain":
                at = int(np.argmax(row["activations"]))
                found = (row["activations"][at], job.tokenizer.id_to_token(row["token_ids"][at]))
                best[row["latent"]] = max(best.get(row["latent"], found), found)
        texts = {latent: f"{self.prefix} {token}" for latent, (_, token) in sorted(best.items())}
        return explained_in_words(texts, "no windows")


class MentionScorer(Scorer):
    """Is a token of the window named in the explanation?"""

    name: ClassVar[str] = "mention"
    kind: Literal["mention"]

    @property
    def text(self) -> str:
        return "Looks the tokens up." + self.negatives_text

    def predict(self, job: ScoreJob):
        said = dict(zip(*(job.explained[n].to_pylist() for n in ("latent", "explanation"))))
        e = job.examples
        named = [said[latent].split(" ")[-1] for latent in np.repeat(e.latent, e.n_tokens)]
        names = [job.tokenizer.id_to_token(token) for token in e.tokens.tolist()]
        hits = np.array([a == b for a, b in zip(named, names)])
        probability = np.maximum.reduceat(hits, e.starts[:-1]).astype(np.float64)
        return Judged(probability, ["lookup"] * len(probability))
'''
ENTRY_POINTS = """[nullsae.explainers]
peak = peak_kinds:PeakExplainer
[nullsae.scorers]
mention = peak_kinds:MentionScorer
"""
STUDY = """
import json, sys, yaml
from pathlib import Path
from nullsae.config.parse import config_schema, parse_config
from nullsae.core.errors import UserError
from nullsae.jobs.grid import cell_files, scorer_cells
from nullsae.jobs.autointerp import asks
from nullsae.jobs.rules import rule_params
from nullsae.planning.bills import bills
from nullsae.report.controls import controls
from nullsae.report.names import figure_names

data = yaml.safe_load(Path(sys.argv[1]).read_text())
def said(**more):
    try:
        parse_config({**data, **more})
    except UserError as error:
        return str(error)
alone = {"lookup": {"kind": "mention"}}
data |= {"explainers": {"mine": {"kind": "peak", "prefix": "is"}, "placebo":
         {"kind": "swapped", "of": "mine"}}, "scorers": alone}
config = parse_config(data)
cell = next(scorer_cells(config))
print(json.dumps({
    "wrong_kind": said(explainers={"mine": {"kind": "peek"}}),
    "wrong_key": said(scorers={"lookup": {"kind": "mention", "negative": "random"}}),
    "no_judge": said(scorers={"d": {"kind": "detection"}}),
    "definitions": sorted(json.loads(config_schema())["$defs"]),
    "pairs": config.scored_pairs(),
    "asks": [asks(config, rule, cell) for rule in ("explain_latents", "score_latents")],
    "params": [json.loads(rule_params(config, rule, cell))
               for rule in ("explain_latents", "score_latents")],
    "bills": len(bills(config, Path())[0]),
    "texts": [c.text for _, entries in controls(config) for c in entries][-3:],
    "scores": len(cell_files(config)["scores"]) > 0,
    "figures": "small.discrimination" in figure_names(config),
}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process that finds the package."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "peak_kinds.py").write_text(MODULE)
    described = folder / "peak_kinds-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: peak-kinds\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(ENTRY_POINTS)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def ran(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_study_accepts_kinds_of_another_package_like_its_own(environment: dict[str, str]) -> None:
    found = json.loads(ran(environment, "-c", STUDY, str(REPOSITORY / "config.yaml")))
    assert found["wrong_kind"] == (
        "config: explainers.mine: kind: 'peek' is not one of lexical, openai, swapped, promoted, "
        "import, peak; did you mean 'peak'?"
    )
    assert found["wrong_key"] == (
        "config: scorers.lookup.negative: unknown key; did you mean 'negatives'?"
    )
    assert "scorers.d.judge: missing; explanations of kind peak are text" in found["no_judge"]
    assert {"PeakExplainer", "MentionScorer", "LexicalExplainer"} <= {*found["definitions"]}
    assert found["pairs"] == [["mine", "lookup"], ["placebo", "lookup"]]
    assert found["asks"] == [False, False]
    explaining, scoring = found["params"]
    assert explaining["explainer"] == {"kind": "peak", "prefix": "is"}
    assert scoring["scorer"] == {"kind": "mention", "negatives": "random"}
    assert found["bills"] == 0
    assert found["texts"][0] == "Says what the latent is."
    assert found["texts"][2] == "Looks the tokens up."
    assert found["scores"]
    assert found["figures"]


def test_kinds_of_another_package_explain_and_judge(
    environment: dict[str, str], tmp_path: Path
) -> None:
    cell = planted_cell(n_latents=3, n_windows=20, window_tokens=8, vocab_size=60)
    windows = write_windows(tmp_path / "windows.parquet", cell)
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    files = {name: tmp_path / f"{name}.parquet" for name in ("explanations", "predictions")}
    scores = tmp_path / "scores.parquet"

    def verb(name: str, params: dict[str, Any], **options: Path) -> None:
        given = {"seed": 0, "keys": KEYS, **params}
        named = {"windows": windows, "tokenizer": tokenizer, **options}
        pairs = [part for key, file in named.items() for part in (f"--{key}", str(file))]
        command = ("-m", "nullsae.cli.main", name, "--params", json.dumps(given), *pairs)
        ran(environment, *command)

    verb("explain_latents", {"explainer": {"kind": "peak"}}, output=files["explanations"])
    verb("score_latents", {"scorer": {"kind": "mention"}}, scores=scores, **files)
    written = read_table(files["explanations"], cell_schema("explanations"))
    assert all(text.startswith("fires on ") for text in written["explanation"].to_pylist())
    predicted = read_table(files["predictions"], cell_schema("predictions"))
    assert predicted.num_rows == 3 * 20
    assert set(predicted["evidence"].to_pylist()) == {"lookup"}
    # Each latent fires on one token, so naming it tells its windows apart perfectly.
    assert read_table(scores, cell_schema("scores"))["auroc"].to_pylist() == [1.0] * 3
