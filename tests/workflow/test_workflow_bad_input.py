"""A user's mistake ends in one line that names the key or file, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workflow_study import Edit, Study, cell, copy_of, edited, new_study, replace

from nullsae import paths
from nullsae.activations.capture import cache_activations
from nullsae.config.parse import parse_config
from nullsae.core.errors import UserError
from nullsae.jobs.activations import CacheActivationsParams
from nullsae.jobs.rules import rule_params

pytestmark = pytest.mark.workflow
CPU_SECONDS = 10.0
TRAINED = {"subject": "small", "variant": "trained", "draw": "0"}
CELL = {**TRAINED, "site": "resid_post.0", "sae": "topk", "seed": "0"}


def unknown_key(config: dict[str, Any]) -> None:
    config["saes"]["topk"]["latent_count"] = 32


def near_key(config: dict[str, Any]) -> None:
    config["saes"]["topk"]["n_latent"] = 32


def misspelt_variant(config: dict[str, Any]) -> None:
    config["variants"] = ["trained", "rerandomised"]


def text_lr(config: dict[str, Any]) -> None:
    config["saes"]["topk"]["lr"] = "3e-4"


def large_k(config: dict[str, Any]) -> None:
    config["saes"]["topk"]["k"] = 33


def far_site(config: dict[str, Any]) -> None:
    config["subjects"]["small"]["sites"] = ["resid_post.0", "resid_post.2"]


def no_subject(config: dict[str, Any]) -> None:
    config["subjects"]["small"]["source"] = {"kind": "pretrained", "path": "./no/such/model"}


def empty_section(config: dict[str, Any]) -> None:
    config["saes"] = None


CONFIG_MISTAKES: dict[str, tuple[Edit, list[str]]] = {
    "unknown_key": (unknown_key, ["saes.topk.latent_count", "unknown key"]),
    "near_key": (near_key, ["saes.topk.n_latent", "unknown key", "did you mean 'n_latents'?"]),
    "variant": (misspelt_variant, ["variants.1", "'rerandomised'", "did you mean 'rerandomized'?"]),
    "text_lr": (text_lr, ["saes.topk.lr", "'3e-4' is text, not a number", "3.0e-4"]),
    "large_k": (large_k, ["saes.topk", "k 33 is larger than n_latents 32"]),
    "far_site": (far_site, ["subjects.small.sites", "resid_post.2", "2 blocks", "0 to 1"]),
    "no_subject": (no_subject, ["subjects.small.source.path", "'./no/such/model'", "config.json"]),
    "empty_section": (empty_section, ["saes"]),
}


# Snakemake's greeting, and the head of a job's log.
HEAD = re.compile(r"Using workflow specific profile|nullsae \d|(aggregate|[a-z]+_[a-z_]+): ")


def one_line(output: str, start: str) -> str:
    """Return the only line of output or log after the head; it must begin with `start`."""
    lines = [line for line in output.splitlines() if line.strip() and not HEAD.match(line)]
    assert len(lines) == 1, output
    assert lines[0].startswith(start), output
    return lines[0]


@pytest.mark.parametrize("case", CONFIG_MISTAKES)
def test_a_mistake_in_the_config_is_one_line_before_anything_runs(
    tree: Path, tmp_path: Path, case: str
) -> None:
    edit, parts = CONFIG_MISTAKES[case]
    # The slowest: one is found last, and one needs a suggestion.
    cold = case in ("no_subject", "near_key")
    study = new_study(tmp_path / "s", tree, cold=cold).configure(edit)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = study.snakemake()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode != 0
    line = one_line(result.stdout, "config: ")
    assert [part for part in parts if part not in line] == []
    assert not (study.folder / "results").exists()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < CPU_SECONDS or not cold


def corpus_mistakes() -> dict[str, tuple[dict[str, Any], str | None, list[str]]]:
    """Per case: changes of the corpus, the text of docs.jsonl if not the usual one, the message."""
    files = {"kind": "files", "paths": ["docs.jsonl"]}
    return {
        "empty": ({}, '{"text": ""}\n{"text": "  "}\n', ["corpora.docs.source", "no text"]),
        "short": (
            {"sae_train_tokens": 9_000_000},
            None,
            ["corpora.docs.sae_train_tokens", "9000000", "lower"],
        ),
        "column": (
            {"source": {**files, "column": "body"}},
            None,
            ["corpora.docs.source.column", "'body'", "text"],
        ),
        "no_file": (
            {"source": {**files, "paths": ["gone/*.txt"]}},
            None,
            ["corpora.docs.source.paths", "'gone/*.txt'"],
        ),
    }


@pytest.mark.parametrize("case", corpus_mistakes())
def test_a_corpus_that_cannot_be_had_is_one_line_and_leaves_nothing(
    tree: Path, tmp_path: Path, case: str
) -> None:
    changes, text, parts = corpus_mistakes()[case]
    config = edited()
    config["corpora"]["docs"].update(changes)
    config["activations"]["sae_train_tokens"] = 8_192
    study = new_study(tmp_path / "s", tree)
    if text is not None:
        replace(study.folder / "docs.jsonl", text)
    params = rule_params(parse_config(config), "prepare_corpus", {"corpus": "docs"})
    result = study.verb("prepare_corpus", name="docs", params=params)
    assert result.returncode == 2
    line = one_line(result.stdout, "nullsae prepare_corpus: error: ")
    assert [part for part in parts if part not in line] == []
    assert not (study.folder / "results").exists()


def params_of(rule: str, *edits: Edit, **wildcards: str) -> str:
    params = json.loads(rule_params(parse_config(edited(*edits)), rule, {**CELL, **wildcards}))
    # The key has a hash of the code, but the study ran on a frozen copy: require no key.
    params |= {key: "" for key in params if key.endswith("activations_key")}
    return json.dumps(params)


def test_a_study_without_latents_to_score_says_what_to_lower(study: Study, tmp_path: Path) -> None:
    def rare(config: dict[str, Any]) -> None:
        config["latents"]["min_firings"] = 1_000_000

    copied = copy_of(study, tmp_path / "rare").configure(rare)
    result = copied.snakemake(gpu=2)
    assert result.returncode != 0
    log = (copied.folder / paths.LOG.format(rule="aggregate", keys="all")).read_text()
    one_line(log, "nullsae aggregate: error: config: latents.min_firings")
    # Results of single cells stay.
    assert (copied.folder / cell(paths.SCORES)).is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_capture_before_it_writes(study: Study, small_disk: Path) -> None:
    output = small_disk / "split=sae_train"
    result = study.verb(
        "cache_activations",
        params=params_of("cache_activations", split="sae_train"),
        split="sae_train",
        model=study.folder / cell(paths.RECIPE),
        tokens=study.folder / paths.CORPUS_MANIFEST.format(corpus="docs", split="sae_train"),
        output=output,
    )
    assert result.returncode == 2
    line = one_line(result.stdout, "nullsae cache_activations: error: ")
    assert str(output) in line
    assert "GB free" in line
    assert "activations.sae_train_tokens" in line
    assert list(small_disk.iterdir()) == []


def test_the_space_asked_for_covers_all_sites_and_bytes(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16384 tokens, 16 dimensions in bfloat16 and an int64 position each: 40 bytes a token.
    needed = 16_384 * (16 * 2 + 8)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    settings = json.loads(params_of("cache_activations", split="sae_train"))
    with pytest.raises(UserError, match=r"lower activations\.sae_train_tokens"):
        cache_activations(
            CacheActivationsParams.model_validate_json(json.dumps(settings)),
            split="sae_train",
            model=study.folder / cell(paths.RECIPE),
            tokens=study.folder / paths.CORPUS_MANIFEST.format(corpus="docs", split="sae_train"),
            output=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()
