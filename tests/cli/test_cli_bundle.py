"""`nullsae report --bundle`: what a bug report shows to strangers."""

from __future__ import annotations

import base64
import json
import os
import re
import zipfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from nullsae import paths
from nullsae.cli import write_bundle
from nullsae.cli.main import app
from nullsae.cli.redaction import MOST_CHARACTERS, Redaction
from nullsae.core import provenance
from nullsae.core.errors import UserError
from nullsae.core.files import write_text

# None of these has a vendor's prefix: only their places show that they are secrets.
SECRETS = {
    "MY_LAB_HEADER": "correct-horse-battery",
    "HF_TOKEN": "tok+en/with=signs",
    "OPENAI_API_KEY": "plain words-only",
}
LOG = "results/logs/{}/subject=small/draw=0.log"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CORPUS, REPLY = "A sentence of the corpus.", "A reply of the judge."
CONFIG = """\
# the proxy: http://me:hunter2hunter2@proxy:3128
explainers:
  gpt:
    kind: openai
    model: gpt-4o-mini   # was sk-proj-4abcdefgh1234567890
    base_url: https://host/v1?api-version=2024-10-21&sig=zzzz
    headers_env: {x-lab: MY_LAB_HEADER}
    api_key_env: OPENAI_API_KEY
    extra_body: {password: "a, b} c", note: kept}
llm: {max_cost_usd: 1.0}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a run leaves it, with a secret in every place where one may be."""
    home = tmp_path / "home/me"
    folder = home / "studies/mine"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (folder / "study.yaml").write_text(CONFIG)
    write_text(folder / paths.RUN_CONFIG, f"seed: 0\npath: {home}/models/a\n")
    write_text(folder / LOG.format("train_sae"), "nullsae 0.1.0\n100 steps\n")
    said = f"nullsae score_latents: error: 401 {SECRETS['MY_LAB_HEADER']} at {folder}/x\n"
    write_text(folder / LOG.format("score_latents"), said)
    write_text(folder / LOG.format("killed"), "at work\n")
    log = f"""\
Error in rule killed:
    message: None
    log: {LOG.format("killed")} (check log file(s) for error details)
"""
    write_text(folder / ".snakemake/log/2026-11-29.snakemake.log", log)
    write_text(folder / "results/corpus/corpus=text/documents.jsonl", CORPUS)
    write_text(folder / "results/work/cache.sqlite", REPLY)
    with provenance.at_work("train_sae"):
        provenance.note_revision("model EleutherAI/pythia-70m", COMMIT)
        provenance.record(folder / "results/saes/a")
        provenance.record(folder / "results/saes/b")
    return folder


def bundled(study: Path, *options: str) -> dict[str, str]:
    """Return the texts in the bundle of a study, by name."""
    output = study.parent / "bug.zip"
    result = CliRunner().invoke(app, ["report", str(study), "--bundle", str(output), *options])
    assert result.exit_code == 0, result.exception
    assert result.output.startswith(f"{output}: ")
    assert len(result.output.splitlines()) == 1
    with zipfile.ZipFile(output) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_bundle_has_versions_config_logs_sizes_and_provenance(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = SimpleNamespace(metadata={"Name": "SecretStorage"}, version="3.5.0")
    there = [*metadata.distributions(), named]
    monkeypatch.setattr(metadata, "distributions", lambda: iter(there))
    found = bundled(study)
    versions = json.loads(found["versions.json"])
    assert versions["packages"]["SecretStorage"] == "3.5.0"
    assert {"torch", "transformers", "snakemake"} <= versions["packages"].keys()
    assert found["config/given/1-study.yaml"].count("\n") == CONFIG.count("\n")
    assert "note: kept" in found["config/given/1-study.yaml"]
    assert "max_cost_usd: 1.0" in found["config/given/1-study.yaml"]
    assert found["config/resolved.yaml"].startswith("# ")  # the password is refused
    logs = [name for name in found if name.startswith("logs/")]
    assert logs[0].startswith("logs/snakemake/")
    assert logs[1:] == [
        *sorted((n for n in logs if "/failed/" in n), key=logs.index),
        "logs/others/train_sae/subject=small/draw=0.log",
    ]
    assert {name.split("/")[2] for name in logs if "/failed/" in name} == {
        "score_latents",
        "killed",
    }
    assert f"{len(CORPUS):>14,}  results/corpus/corpus=text/documents.jsonl" in found["results.txt"]
    [maker] = json.loads(found["provenance.json"])
    assert maker["files"] == [f"results/saes/{name}/provenance.json" for name in "ab"]
    assert maker["revisions"] == [f"model EleutherAI/pythia-70m@{COMMIT}"]
    assert maker["jobs"] == [
        asdict(job)
        for job in provenance.read(study / maker["files"][0]).jobs  # type: ignore[union-attr]
    ]


def test_no_secret_text_or_home_is_in_a_bundle(study: Path) -> None:
    texts = [text for pair in bundled(study).items() for text in pair]
    planted = [
        *(value for name, value in SECRETS.items() if name != "HF_TOKEN"),
        *("hunter2", "4abcdefgh", "zzzz", "2024-10-21", "a, b}", CORPUS, REPLY),
        str(study.parents[1]),
    ]
    for secret in planted:
        assert [text for text in texts if secret in text] == [], secret
    joined = "\n".join(texts)
    assert "MY_LAB_HEADER" in joined
    assert "OPENAI_API_KEY" in joined
    assert "error: 401 *** at ~/studies/mine/x" in joined
    assert "http://***@proxy:3128" in joined
    assert "https://host/v1?***" in joined


def test_a_config_without_secrets_is_in_the_bundle_as_it_is_resolved(study: Path) -> None:
    (study / "study.yaml").write_text("saes: {topk: {k: 8}}\n")
    overlay = study.parent / "more.yaml"
    overlay.write_text("draws: 2\n")
    found = bundled(study, "--configfile", str(overlay))
    assert found["config/given/2-more.yaml"] == "draws: 2\n"
    assert re.search(r"^draws: 2$", found["config/resolved.yaml"], re.M)
    assert re.search(r"^ +k: 8$", found["config/resolved.yaml"], re.M)
    assert not any("***" in text for name, text in found.items() if name.startswith("config/"))


def test_the_same_study_gives_the_same_bytes_and_nothing_else_is_left(study: Path) -> None:
    output = study.parent / "bug.zip"
    bundled(study)
    first = output.read_bytes()
    bundled(study)
    assert output.read_bytes() == first
    assert sorted(file.name for file in study.parent.iterdir()) == ["bug.zip", "mine"]


def test_a_bundle_below_results_does_not_list_itself(study: Path) -> None:
    (study / "results").mkdir(exist_ok=True)
    write_bundle.write_bundle(study, [], study / "results/bug.zip")
    first = (study / "results/bug.zip").read_bytes()
    write_bundle.write_bundle(study, [], study / "results/bug.zip")
    assert (study / "results/bug.zip").read_bytes() == first


def test_a_study_that_never_ran_has_a_bundle(tmp_path: Path) -> None:
    found = bundled(tmp_path)
    assert found["results.txt"].split() == ["0", "in", "total"]
    assert "variants:" in found["config/resolved.yaml"]


def test_long_logs_are_cut_at_a_line_and_most_of_all_those_that_did_not_fail(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-proj-" + "1a" * 20
    line = f"key {key}\n"
    # The cut goes through the key, so that the rest has no key's prefix.
    n = write_bundle.LOG_BYTES // len(line) + 2
    long = line * n
    assert (len(long) - write_bundle.LOG_BYTES) % len(line) > 12
    write_text(study / LOG.format("train_sae"), long)
    text = bundled(study)["logs/others/train_sae/subject=small/draw=0.log"]
    first, *lines = text.splitlines()
    assert set(lines) == {"key ***"}
    assert len(lines) == write_bundle.LOG_BYTES // len(line)
    assert first == f"... {len(long) - len(lines) * len(line):,} bytes before"
    monkeypatch.setattr(write_bundle, "LOGS_BYTES", 200)
    logs = [name for name in bundled(study) if re.match("logs/(failed|others)", name)]
    assert len(logs) == 2
    assert all(name.startswith("logs/failed/") for name in logs)


def test_a_bundle_is_a_zip_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a \.zip file"):
        write_bundle.write_bundle(tmp_path, [], tmp_path / "bug.tar")


def redaction(home: str | None = "/home/me") -> Redaction:
    environment = {"X_TOKEN": "pass word/1234", "COLUMNS": "80808080", "SHORT_KEY": "1"}
    return Redaction([{"a": [{"api_key": "from the config"}]}], environment, home and Path(home))


@pytest.mark.parametrize(
    "encoded",
    [
        "pass word/1234",
        "word/1234",
        quote("word/1234", safe=""),
        json.dumps("word/1234").replace("/", r"\/"),
        base64.b64encode(b"Bearer word/1234").decode(),
        "word/\n1234",
    ],
)
def test_values_of_variables_are_found_in_whatever_way_they_are_written(encoded: str) -> None:
    said = redaction()(f"before\nx {encoded} y\nafter")
    assert "1234" not in said
    assert base64.b64encode(b"word/1234")[4:8].decode() not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("password: hunter2", "password: ***"),
        ("{password: hunter2, x: 1}", "{password: ***"),
        ("{'password': 'hunter2', 'x': 1}", "{'password': ***, 'x': 1}"),
        (r"{\"api_key\": \"hun, ter\", \"x\": 1}", r"{\"api_key\": ***, \"x\": 1}"),
        ("Authorization: Basic aGVsbG8=", "Authorization: ***"),
        ("curl -H bearer:abc --api-key hunter2", "curl -H bearer:***"),
        ("sent Bearer abc.def", "sent Bearer ***"),
        ("[vllm, serve, --api-key, hunter2]", "[vllm, serve, --api-key, ***"),
        ("api_key_env: hunter2hunter2", "api_key_env: ***"),
        ("api_key_env: null  ", "api_key_env: null  "),
        ("{api_key_env: OPENAI_API_KEY, k: 1}", "{api_key_env: OPENAI_API_KEY, k: 1}"),
        ("headers_env: {api-key: AZURE_OPENAI_API_KEY}",) * 2,
        ("see ftp://u:p@ss@h/x?y=z#f.", "see ftp://***@h/x?***"),
        ("http://u:pa/s?s@h:1/v1", "http://***@h:1/v1"),
        ("connect to u:p@h", "connect to ***@h"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("EleutherAI/sae::layers.3@main",) * 2,
        (f"hub/snapshots/{COMMIT}/x, model@{COMMIT}, revision: {COMMIT}",) * 2,
        (f"id {COMMIT}", "id ***"),
        ("hf_abcdefgh12345678", "***"),
        ("/home/me/x /home/me /home/metoo /mnt/home/me", "~/x ~ /home/metoo /mnt/home/me"),
        ("\x1b[2J80808080", r"\x1b[2J80808080"),
        ("x" * 3000, "x" * MOST_CHARACTERS + "… and 1,000 more characters"),
        ("peak token: the", "peak token: ***"),
        ("activations: 5 tokens, keys: small",) * 2,
    ],
)
def test_a_line_loses_what_is_secret_and_nothing_else(text: str, said: str) -> None:
    assert redaction()(text) == said


def test_without_a_home_or_with_the_root_as_one_paths_stay() -> None:
    assert redaction(None)("/home/me") == "/home/me"
    assert redaction("/")("/home/me") == "/home/me"


def test_no_variable_of_the_environment_is_written_down(study: Path) -> None:
    joined = "\n".join(bundled(study).values())
    assert "HF_TOKEN" not in joined
    assert SECRETS["HF_TOKEN"] not in joined
    assert os.environ["PATH"] not in joined
