"""The head of a job's log, and the provenance of its files."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

from nullsae import __version__
from nullsae.cli.job import job, size_of
from nullsae.cli.main import main
from nullsae.config.compute import Compute
from nullsae.config.section import Section
from nullsae.core import provenance
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from small_chain import Chain


class Params(Section):
    compute: Compute = Compute(threads=2, device="cpu")


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_log_begins_with_versions_device_and_sizes(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reads = (
        chain.recipe,
        chain.eval_activations,
        chain.eval_tokens,
        None,
        tmp_path / "absent.json",
    )
    with job("evaluate_sae", "tokens", Params(), reads=reads, makes=[tmp_path]):
        pass
    first, second = lines(caplog)
    assert first.startswith(f"nullsae {__version__}")
    assert f"Python {sys.version.split()[0]}, torch {torch.__version__}" in first
    assert f"cpu: {provenance.device_name('cpu')}, 2 threads; host " in first
    assert second.startswith("evaluate_sae: ")
    assert "parameters; activations eval: 960 tokens of 16 dimensions, 3 sites" in second
    found = provenance.read(tmp_path / provenance.FILE)
    assert found is not None
    assert [(j.verb, j.device_kind, j.dtype, j.threads) for j in found.jobs] == [
        ("evaluate_sae", "cpu", "float32", 2)
    ]


@pytest.mark.parametrize("name", ["a.json", "cfg.json", "recipe.json", "windows.parquet", "x.txt"])
@pytest.mark.parametrize("text", ["", "[1]", '{"n_latents": "many"}'])
def test_a_damaged_input_has_no_size_and_is_the_stages_to_refuse(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    assert size_of(tmp_path / name) == ""


def test_a_job_that_fails_leaves_no_provenance(tmp_path: Path) -> None:
    with pytest.raises(UserError), job("evaluate_sae", "tokens", makes=[tmp_path / "made"]):
        raise UserError("config: seed: no")
    assert not (tmp_path / "made").exists()


def test_outputs_of_one_folder_have_one_provenance(tmp_path: Path) -> None:
    files = [tmp_path / "a.b=c" / name for name in ("scores.parquet", "predictions.parquet")]
    with job("score_latents", "questions", makes=files):
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.write_text("")
    assert [f.name for f in sorted(tmp_path.rglob("provenance*"))] == ["provenance.json"]
    assert (tmp_path / "a.b=c/provenance.json").is_file()


@pytest.mark.parametrize("of_folder", [True, False])
def test_only_cells_that_a_job_wrote_get_a_provenance(tmp_path: Path, of_folder: bool) -> None:
    tables = {name: tmp_path / f"sae={name}/seed=0/scores.parquet" for name in ("a", "b", "c")}
    for name in ("a", "b"):
        tables[name].parent.mkdir(parents=True)
        tables[name].write_text("before")
    pattern = f"{tmp_path}/sae={{sae}}/seed={{seed}}"
    with job("score", "tables", makes=[pattern if of_folder else f"{pattern}/scores.parquet"]):
        for name in ("b", "c"):  # as tables are written: under a temporary name first
            write_text(tables[name], "after")
    found = sorted(file.parent.parent.name for file in tmp_path.rglob("provenance.json"))
    assert found == ["sae=b", "sae=c"]


def test_a_corpus_made_by_hand_has_a_head_and_a_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": f"document {n}: " + "the cat sat on a mat. " * 20} for n in range(40)]
    text = tmp_path / "docs.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = {
        "corpus": {
            "source": {"kind": "files", "paths": [str(text)]},
            "tokenizer": {"kind": "train", "vocab_size": 300},
            **{"context_tokens": 16, "eval_share": 0.3},
            **{"sae_train_tokens": 256, "eval_tokens": 512},
        }
    }
    arguments = ["--name", "docs", "--params", json.dumps(params), "--root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["nullsae", "prepare_corpus", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert lines(caplog)[0].startswith(f"nullsae {__version__}")
    made = tmp_path / "results/corpus/corpus=docs"
    manifest = json.loads((made / "split=eval/manifest.json").read_text())
    assert size_of(made / "split=eval/manifest.json") == (
        f"docs eval: 512 tokens in 32 contexts, {manifest['n_documents']} documents"
    )
    found = provenance.read(made / provenance.FILE)
    assert found is not None
    assert [made.verb for made in found.jobs] == ["prepare_corpus"]
