"""Exports, read back by the other side's own code: delphi's and Neuronpedia's packages."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from typer.testing import CliRunner

from nullsae import paths, tables
from nullsae.cli.main import app
from nullsae.config.latents import Latents
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.corpus.store import load_tokens
from nullsae.latents.exports.cell import LatentFolder, corpus_files, model_place
from nullsae.latents.sample import FiringReader
from nullsae.latents.split import Split
from peers import need_peers, run_with_peers
from run_stages import collected
from small_chain import CONTEXT, VOCAB, Chain, cell, write_corpus

LENGTH, MIN_EXAMPLES, N_SAMPLED = 4, 20, 12
SITES = ("resid_post.1", "resid_post.0")
RUN = "tiny_trained_0_topk_0"


def folder_of(root: Path, site: str) -> Path:
    keys = {"subject": "tiny", "variant": "trained", "draw": 0, "sae": "topk", "seed": 0}
    return root / paths.LATENT_FOLDER.format(**keys, site=site)


@pytest.fixture(scope="module")
def root(chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study's results: latents of an SAE at two sites, corpus, merged config."""
    root = tmp_path_factory.mktemp("study")
    tokens = load_tokens(chain.eval_tokens)
    manifest = root / paths.CORPUS_MANIFEST.format(corpus="c", split="eval")
    write_corpus(manifest.parent, tokens.input_ids, tokens.document_id)
    words = Tokenizer(WordLevel({f"word{i}": i for i in range(VOCAB)}, unk_token="word0"))
    tokenizer = root / paths.TOKENIZER_FILE.format(corpus="c")
    tokenizer.parent.mkdir()
    words.save(str(tokenizer))
    write_text(root / paths.RUN_CONFIG, "subjects: {tiny: {corpus: c}}\n")
    for site in SITES:
        collected(
            folder_of(root, site),
            keys=cell(site),
            latents=Latents(
                n_sampled=N_SAMPLED,
                min_firings=20,
                min_pool_windows=8,
                window_tokens=LENGTH,
                n_quantiles=3,
                score_active_windows=6,
                top_windows=4,
            ),
            sae=tiny_sae,
            activations=chain.eval_activations,
            tokens=manifest,
            model=chain.recipe,
        )
    return root


def export(root: Path, layout: str, output: Path, *more: str) -> Any:
    latents = [str(part) for site in SITES for part in ("--latents", folder_of(root, site))]
    command = ["export", "latents", *latents, "--layout", layout, "--output", str(output), *more]
    result = CliRunner().invoke(app, command)
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what delphi and Neuronpedia's client read from the exports."""
    need_peers("delphi and Neuronpedia's client")
    folder = tmp_path_factory.mktemp("exports")
    for layout in ("delphi", "neuronpedia"):
        export(root, layout, folder / layout)
    tokenizer = root / paths.TOKENIZER_FILE.format(corpus="c")
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    run_with_peers(Path(__file__).with_name("latents_peers_side.py"), folder)
    read: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return read


@pytest.mark.slow
def test_delphi_reads_the_same_firings(root: Path, seen: dict[str, Any]) -> None:
    found = seen["delphi"][RUN]
    tokens = load_tokens(root / paths.CORPUS_MANIFEST.format(corpus="c", split="eval"))
    assert found["tokens"] == tokens.input_ids.tolist()
    expected = {}
    for site in SITES:
        reader = FiringReader.open(folder_of(root, site) / "firings.safetensors")
        assert len(reader.latents) == N_SAMPLED
        for latent in reader.latents.tolist():
            position, value = reader.of(latent)
            context, offset = np.divmod(position.astype(int), CONTEXT)
            locations = [
                [*pair, latent] for pair in zip(context.tolist(), offset.tolist(), strict=True)
            ]
            expected[f"{site}/{latent}"] = [locations, value.tolist()]
    assert found["firings"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["all", "selected"])
def test_delphi_builds_the_same_examples(root: Path, seen: dict[str, Any], chosen: str) -> None:
    records = seen["delphi"][RUN]["records"][chosen]
    tokens = load_tokens(root / paths.CORPUS_MANIFEST.format(corpus="c", split="eval"))
    ids = tokens.input_ids.ravel()
    n_checked = 0
    for site in SITES:
        reader = FiringReader.open(folder_of(root, site) / "firings.safetensors")
        enough = set()
        for latent in reader.latents.tolist():
            position, value = reader.of(latent)
            dense = np.zeros(ids.size, dtype=np.float32)
            dense[position] = value
            windows = dense.reshape(-1, LENGTH)
            active = windows.max(axis=1) > 0
            if active.sum() < MIN_EXAMPLES:
                continue
            enough.add(f"{site}/{latent}")
            frequency, examples = records[f"{site}/{latent}"]
            assert frequency == pytest.approx(len(position) / ids.size)
            ours = {
                (tuple(t), tuple(v))
                for t, v in zip(
                    ids.reshape(-1, LENGTH)[active].tolist(), windows[active].tolist(), strict=True
                )
            }
            assert {(tuple(t), tuple(v)) for t, v in examples} == ours
            n_checked += len(ours)
        assert enough == {name for name in records if name.startswith(site)}
    assert n_checked > 500


@pytest.mark.slow
def test_neuronpedia_reads_the_same_rows(root: Path, seen: dict[str, Any]) -> None:
    for site in SITES:
        layer = site.removeprefix("resid_post.")
        source = f"{layer}-trained-0-topk-0-{site.replace('.', '_')}"
        features = {int(f["index"]): f for f in seen["neuronpedia"][f"tiny/{source}"]}
        cell = LatentFolder.open(folder_of(root, site))
        rows = [row for row in cell.latents.to_pylist() if row["sampled"]]
        assert sorted(features) == [row["latent"] for row in rows]
        table = tables.read_table(cell.folder / "windows.parquet", tables.cell_schema("windows"))
        windows = [w for w in table.to_pylist() if w["active"] and w["pool"] != "explain"]
        for row in rows:
            feature = features[row["latent"]]
            assert feature["density"] == pytest.approx(row["firing_share"])
            mine = [w for w in windows if w["latent"] == row["latent"]]
            mine.sort(key=lambda w: w["pool"] != "top")
            assert len(feature["activations"]) == len(mine) > 4
            for activation, window in zip(feature["activations"], mine, strict=True):
                assert activation["tokens"] == [f" word{token}" for token in window["token_ids"]]
                assert activation["values"] == pytest.approx(window["activations"])
                assert (activation["modelId"], activation["index"]) == ("tiny", row["latent"])
                if window["pool"] == "top":
                    assert activation["quantileFraction"] is None
                else:
                    assert activation["quantileFraction"] == pytest.approx(1 / 3)
                    low, high = activation["quantileMin"], activation["quantileMax"]
                    assert low <= max(window["activations"]) <= high
            top = feature["activations"][0]["values"]
            assert max(top) <= row["max_activation"]


def jsonl(file: Path) -> list[dict[str, Any]]:
    data = file.read_bytes()
    text = gzip.decompress(data) if file.suffix == ".gz" else data
    return [json.loads(line) for line in text.splitlines()]


def test_neuronpedia_rows_belong_together(root: Path, tmp_path: Path) -> None:
    export(root, "neuronpedia", tmp_path / "out", "--creator", "someone")
    for site in SITES:
        (place,) = (tmp_path / "out/tiny").glob(f"*{site.replace('.', '_')}")
        (source,), (model,), (sources,), (release,) = (
            jsonl(place / f"{name}.jsonl") for name in ("source", "model", "sourceset", "release")
        )
        assert source["id"] == place.name
        assert source["modelId"] == sources["modelId"] == model["id"] == "tiny"
        assert source["setName"] == sources["name"]
        assert sources["releaseName"] == release["name"]
        assert (source["num_prompts"], source["num_tokens_in_prompt"]) == (60, CONTEXT)
        reader = FiringReader.open(folder_of(root, site) / "firings.safetensors")
        features = jsonl(place / "features/batch-0.jsonl.gz")
        cell = LatentFolder.open(folder_of(root, site))
        rows = {str(row["latent"]): row for row in cell.latents.to_pylist()}
        for feature in features:
            for name, end in (("pos", "promoted"), ("neg", "suppressed")):
                row = rows[feature["index"]]
                assert feature[f"{name}_str"] == [f" word{v}" for v in row[f"{end}_tokens"]]
                assert feature[f"{name}_values"] == row[f"{end}_effects"]
                assert len(feature[f"{name}_str"]) == 10
            assert (feature["layer"], feature["creatorId"]) == (source["id"], "someone")
            assert feature["hookName"] == f"blocks.{site[-1]}.hook_resid_post"
            _, value = reader.of(int(feature["index"]))
            assert sum(feature["freq_hist_data_bar_heights"]) == len(value)
            bars = feature["freq_hist_data_bar_values"]
            assert value.min() <= bars[0] <= bars[-1] <= value.max()
        activations = jsonl(place / "activations/batch-0.jsonl.gz")
        assert {row["index"] for row in activations} == {row["index"] for row in features}
        assert len({row["id"] for row in activations}) == len(activations)
        for row in activations:
            assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
    export(root, "neuronpedia", tmp_path / "again", "--creator", "someone")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) == 12
    for file in files:
        again = tmp_path / "again" / file.relative_to(tmp_path / "out")
        assert file.read_bytes() == again.read_bytes(), file


def test_delphi_files_are_small_and_leave_no_latent_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullsae.latents.exports.delphi.FILE_FIRINGS", 300)
    export(root, "delphi", tmp_path / "out")
    folder = tmp_path / "out" / RUN / "latents" / SITES[0]
    names = sorted(
        tuple(int(edge) for edge in file.stem.split("_")) for file in folder.glob("*.safetensors")
    )
    assert len(names) > 3
    assert names[0][0] == 0
    assert names[-1][1] == 47
    assert all(one[1] + 1 == two[0] for one, two in pairwise(names))
    config = json.loads((folder / "config.json").read_text())
    assert (config["cache_ctx_len"], config["n_tokens"]) == (CONTEXT, 960)
    assert config["n_splits"] == len(names)


def test_a_mistake_is_refused_without_half_an_export(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for layout, more, message in (
        ("parquet", (), "--layout: 'parquet' is not one of delphi, neuronpedia"),
        ("delphi", ("--latents", str(tmp_path)), "--latents: .* is not a folder such as results/"),
        ("neuronpedia", ("--tokenizer", str(tmp_path / "none.json")), "none.json: the file is"),
    ):
        with pytest.raises(UserError, match=message):
            export(root, layout, output, *more)
    other = write_corpus(tmp_path / "other", *(np.zeros((2, 16), np.int32) for _ in range(2)))
    with pytest.raises(UserError, match=r"latents of 960 tokens, but .* has 32"):
        export(root, "delphi", output, "--tokens", str(other))
    assert not output.exists()
    output.mkdir()
    (output / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="out already exists; name a new folder"):
        export(root, "delphi", output)
    assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_a_corpus_that_the_config_does_not_name_is_not_guessed(root: Path, tmp_path: Path) -> None:
    cells = [LatentFolder.open(folder_of(root, site)) for site in SITES]
    tokens, tokenizer = corpus_files(cells)
    assert tokens.is_file()
    assert tokenizer.is_file()
    config = root / paths.RUN_CONFIG
    text = config.read_text()
    try:
        config.unlink()
        with pytest.raises(UserError, match=r"does not name the corpus of .* give --tokens"):
            corpus_files(cells)
    finally:
        config.write_text(text)


def test_the_schema_of_latents_has_what_exports_read() -> None:
    names = set(tables.cell_schema("latents").names)
    assert {"sampled", "max_activation", "firing_share", "n_tokens"} <= names


def test_delphi_is_told_a_folder_and_no_name_that_is_an_id_of_the_hub(
    root: Path, tmp_path: Path
) -> None:
    manifest = root / paths.CORPUS_MANIFEST.format(corpus="c", split="eval")
    split, cell = Split.open(manifest), LatentFolder.open(folder_of(root, SITES[0]))
    corpus = str(root / paths.TOKENIZER.format(corpus="c"))
    # Only latents and tokens, as for sampled activations.
    gaussian = replace(cell, keys={**cell.keys, "variant": "gaussian"})
    assert model_place(gaussian, split) == corpus
    for variant in ("trained", "noise_embeddings"):
        keys = {**cell.keys, "variant": variant}
        model = tmp_path / paths.RECIPE.format(**keys)
        moved = replace(cell, folder=tmp_path / paths.LATENT_FOLDER.format(**keys), keys=keys)
        assert model_place(moved, split) == corpus
        model.parent.mkdir(parents=True)
        (model.parent / "tokenizer.json").write_text("{}")
        assert model_place(moved, split) == str(model.parent)
    lonely = replace(split, manifest=tmp_path / "alone/split=eval/manifest.json")
    assert model_place(gaussian, lonely) == ""
    export(root, "delphi", tmp_path / "out")
    config = tmp_path / "out" / RUN / "latents" / SITES[0] / "config.json"
    assert json.loads(config.read_text())["model_name"] == corpus
