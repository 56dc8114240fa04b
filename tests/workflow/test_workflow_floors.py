"""A Gaussian floor for every variant: SAEs on data with only its mean and covariance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import torch
from safetensors.torch import load_file
from workflow_study import Edit, Study, cell, copy_of, table

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
END = {"aggregate": 1, "report": 1}
FLOORS = ("gaussian@trained", "gaussian@rerandomized")
MADE = (paths.SAE_WEIGHTS, paths.SAE_CONFIG, paths.HISTORY)


def floors(config: dict[str, Any]) -> None:
    config["evaluation"]["gaussian_floors"] = True


def also(**changes: Any) -> Edit:
    """Return an edit that merges whole sections."""

    def edit(config: dict[str, Any]) -> None:
        for key, value in changes.items():
            merged = isinstance(value, dict)
            config[key] = config.get(key, {}) | value if merged else value

    return edit


def with_gaussian(config: dict[str, Any]) -> None:
    config["variants"] = ["trained", "rerandomized", "gaussian"]


def with_lookup(config: dict[str, Any]) -> None:
    config["saes"]["lookup"] = {"dictionary": "token_lookup"}
    config["saes"]["components"] = {"dictionary": "pca", "k": 4}


@pytest.fixture(scope="module")
def floored(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with floors."""
    copied = copy_of(study, tmp_path_factory.mktemp("floors") / "study")
    copied.configure(floors).make(gpu=2)
    return copied


def dry_run(study: Study, folder: Path, *edits: Edit) -> dict[str, int]:
    return copy_of(study, folder, linked=True).configure(*edits).jobs()


def activations(study: Study, variant: str, split: str) -> np.ndarray[Any, Any]:
    """Read all vectors of a variant at the site, without the package."""
    folder = study.folder / cell(paths.SITE, variant=variant, split=split)
    shards = [load_file(path)["activations"] for path in sorted(folder.glob("*.safetensors"))]
    return torch.cat(shards).double().numpy()


def noise(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the standard normals behind samples in one row: z of mean + z R^(1/2) D."""
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    eigenvalues, vectors = np.linalg.eigh(np.corrcoef(x, rowvar=False))
    keep = eigenvalues > 1e-6
    inverse_root = (vectors[:, keep] / eigenvalues[keep] ** 0.5) @ vectors[:, keep].T
    found: np.ndarray[Any, Any] = (scaled @ inverse_root).ravel()
    return found


# What runs


def test_floors_run_their_own_jobs_and_the_last_ones_alone(study: Study, tmp_path: Path) -> None:
    assert dry_run(study, tmp_path / "s", floors) == {
        **{"sample_gaussian": 4, "train_sae": 2, "evaluate_sae": 2, **END}
    }


def test_every_draw_has_a_floor_and_the_variant_gaussian_is_one_itself(
    study: Study, tmp_path: Path
) -> None:
    without = dry_run(study, tmp_path / "one", with_gaussian, also(draws=2))
    both = dry_run(study, tmp_path / "two", with_gaussian, also(draws=2), floors)
    # Two draws of rerandomized; `gaussian` is the floor of `trained`.
    more = {rule: n - without.get(rule, 0) for rule, n in both.items()}
    # The first draw is evaluated again, together with its floor.
    assert {rule: n for rule, n in more.items() if n} == {
        **{"sample_gaussian": 4, "train_sae": 2, "evaluate_sae": 1}
    }


def test_an_edit_redoes_no_floor_that_it_has_no_part_in(floored: Study, tmp_path: Path) -> None:
    cases: dict[str, tuple[list[Edit], dict[str, int]]] = {
        # The rest was evaluated before, so these jobs take seconds.
        "off": ([], {"evaluate_sae": 2, **END}),
        "nothing": ([floors], {}),
        # Of the variants' SAEs: a floor has no model, and its latents are not described.
        "fidelity": (
            [floors, also(evaluation={"fidelity_tokens": 512})],
            {"evaluate_sae": 2, **END},
        ),
        "drop": ([floors, also(variants=["trained"])], END),
        # PCA has a floor, token lookup has none.
        "dictionaries": (
            [floors, with_lookup],
            {
                # Floors are not matched with each other.
                **{"train_sae": 4 + 2, "evaluate_sae": 2, "match_dictionaries": 2},
                **{"collect_latents": 4, "explain_and_score": 2, **END},
            },
        ),
        "dtype": (
            [floors, also(activations={"dtype": "float32"})],
            {
                **{"cache_activations": 4, "sample_gaussian": 4},
                **{"train_sae": 4, "evaluate_sae": 2, "match_dictionaries": 1},
                **{"collect_latents": 2, "explain_and_score": 2, **END},
            },
        ),
        # For one variant: its own floor, not that of trained.
        "one_variant": (
            [floors, also(randomization={"norm_parameters": "keep"})],
            {
                **{"randomize_model": 1, "cache_activations": 2, "sample_gaussian": 2},
                **{"train_sae": 2, "evaluate_sae": 1, "match_dictionaries": 1},
                **{"collect_latents": 1, "explain_and_score": 1, **END},
            },
        ),
    }
    for name, (edits, expected) in cases.items():
        assert dry_run(floored, tmp_path / name, *edits) == expected, name


def test_a_second_run_has_nothing_to_do(floored: Study) -> None:
    assert "Nothing to be done" in floored.make()


# What is measured


def test_a_floor_has_the_moments_of_its_variant_and_nothing_beside_them(
    floored: Study,
) -> None:
    for floor in FLOORS:
        variant = floor.partition("@")[2]
        own = activations(floored, variant, "sae_train")
        for split in ("sae_train", "eval"):
            found = activations(floored, floor, split)
            n, spread = len(found), own.std(axis=0)
            assert np.abs(found.mean(axis=0) - own.mean(axis=0)).max() < 6 * spread.max() / n**0.5
            correlation = np.corrcoef(found, rowvar=False) - np.corrcoef(own, rowvar=False)
            # bfloat16 rounds to a relative 2^-9.
            assert np.abs(correlation).max() < 6 / n**0.5 + 0.01, (floor, split)
            np.testing.assert_allclose(found.std(axis=0), spread, rtol=6 / (2 * n) ** 0.5 + 0.01)
        manifest = floored.folder / cell(paths.SITE, variant=floor, split="eval") / "manifest.json"
        described = json.loads(manifest.read_text())["fitted"]
        source = floored.folder / cell(paths.SITE, variant=variant, split="sae_train")
        assert described["key"] == json.loads((source / "manifest.json").read_text())["key"]
        assert described["n_tokens"] == len(own) == 16_384
    first, second = (noise(activations(floored, floor, "eval")) for floor in FLOORS)
    correlation = np.corrcoef(first, second)[0, 1]
    assert abs(correlation) < 6 / len(first) ** 0.5, "floors are sampled together"


def test_no_table_misses_a_floor_and_the_rows_of_variants_stay(
    study: Study, floored: Study
) -> None:
    for name in ("reconstruction", "documents", "geometry", "history"):
        rows = table(floored, name)
        assert list(rows.variant.unique()) == ["trained", "rerandomized", *FLOORS], name
        own = rows[~rows.variant.isin(FLOORS)]
        before = table(study, name)
        # Floors have nulls, next to which pandas reads whole numbers as floats.
        pd.testing.assert_frame_equal(own, before, check_dtype=False, check_exact=True, obj=name)
    for name in ("latents", "coverage", "windows", "explanations", "scores", "summaries", "models"):
        file = paths.TABLE.format(table=name)
        if (floored.folder / file).exists():
            assert not set(FLOORS) & set(table(floored, name).variant), name


def test_a_floor_has_the_recipe_of_its_variant_and_no_loss(floored: Study) -> None:
    rows = table(floored, "reconstruction").set_index("variant")
    for floor in FLOORS:
        own, variant = rows.loc[floor], rows.loc[floor.partition("@")[2]]
        assert (own.draw, own.site, own.sae, own.seed) == (0, "resid_post.0", "topk", 0)
        assert (own.n_latents, own.n_tokens) == (variant.n_latents, variant.n_tokens)
        assert pd.isna(own.ce_clean)
        assert not pd.isna(variant.ce_clean)
        # A Gaussian sample knows nothing of its token.
        assert own.token_lookup_r2 < 0.05 < variant.token_lookup_r2
        assert 0 < own.explained_variance < variant.explained_variance
        assert own.effective_rank == pytest.approx(variant.effective_rank, rel=0.05)
    documents = table(floored, "documents")
    for floor in FLOORS:
        found, other = (
            documents[documents.variant == name].set_index("document")
            for name in (floor, floor.partition("@")[2])
        )
        assert found.index.equals(other.index)
        assert found.n_tokens.equals(other.n_tokens)
        share = 1 - found.squared_error.sum() / found.squared_deviation.sum()
        assert share == pytest.approx(rows.loc[floor].explained_variance, abs=1e-9)


def test_above_floors_is_what_neither_covariance_nor_token_identity_explains(
    floored: Study,
) -> None:
    """Computed from each variant's shards and tokens, and both SAEs' explained variances."""
    rows = table(floored, "reconstruction").set_index("variant")
    found = table(floored, "summaries")
    found = found[found.metric == "above_floors"].set_index("variant")
    assert set(found.index) == {"trained", "rerandomized"}
    for variant in found.index:
        tokens = {
            split: load_file(
                floored.folder
                / paths.CORPUS.format(corpus="docs")
                / f"split={split}/tokens.safetensors"
            )["input_ids"]
            .flatten()
            .numpy()
            for split in ("sae_train", "eval")
        }
        places = load_positions(floored, variant, "sae_train")
        fitted = pd.DataFrame(activations(floored, variant, "sae_train"))
        means = fitted.groupby(tokens["sae_train"][places]).mean()
        x = activations(floored, variant, "eval")
        ids = tokens["eval"][load_positions(floored, variant, "eval")]
        looked_up = means.reindex(ids).fillna(fitted.mean()).to_numpy()
        left = ((x - looked_up) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
        of_gaussian = 1 - rows.loc[f"gaussian@{variant}"].explained_variance
        own = 1 - rows.loc[variant].explained_variance
        expected = 1 - own / min(left, of_gaussian)
        assert found.loc[variant].value == pytest.approx(expected, rel=1e-6)
        assert found.loc[variant].low < expected < found.loc[variant].high


def load_positions(study: Study, variant: str, split: str) -> np.ndarray[Any, Any]:
    """Return the position of each vector's token in the split."""
    folder = study.folder / cell(paths.SITE, variant=variant, split=split)
    shards = [load_file(path)["position"] for path in sorted(folder.glob("*.safetensors"))]
    return torch.cat(shards).numpy()


def test_other_tools_read_the_floors_from_the_path(floored: Study) -> None:
    dataset = ds.dataset(  # type: ignore[no-untyped-call]
        [
            str(path)
            for path in (floored.folder / "results/metrics").rglob("reconstruction.parquet")
        ],
        partitioning="hive",
    )
    assert {*dataset.to_table()["variant"].to_pylist()} >= set(FLOORS)


def test_the_page_does_not_show_floors_as_variants(floored: Study) -> None:
    page = (floored.folder / paths.REPORT).read_text(encoding="utf-8")
    assert "gaussian_floors: true" in page
    assert not [floor for floor in FLOORS if floor in page]


# How it is made


def test_a_shared_pass_and_a_stream_give_the_same_floors(floored: Study, tmp_path: Path) -> None:
    """A stream that fits to all tokens samples the same data, and trains the same bits."""
    for name, settings in (
        ("shared", {"shared_pass": True}),
        ("stream", {"mode": "stream", "fitted_tokens": 16_384}),
    ):
        copied = copy_of(floored, tmp_path / name).configure(floors, also(activations=settings))
        targets = [cell(paths.SAE_CONFIG, variant=floor) for floor in reversed(FLOORS)]
        for floor in FLOORS:
            shutil.rmtree(copied.folder / cell(paths.SAE, variant=floor))
        output = copied.make(*targets, gpu=2)
        for floor in FLOORS:
            for pattern in MADE[:2] if name == "shared" else MADE[:1]:
                file = cell(pattern, variant=floor)
                one, two = ((s.folder / file).read_bytes() for s in (floored, copied))
                assert one == two, (name, file)
        assert "(Rule: train_saes_" in output
        logs = copied.folder / "results/logs/train_sae/subject=small/variant=gaussian@trained"
        if name == "stream":
            assert "2 blocks sampled" in (logs / "draw=0.log").read_text()


def test_a_damaged_floor_is_told_with_the_command_that_makes_it_again(
    floored: Study, tmp_path: Path
) -> None:
    copied = copy_of(floored, tmp_path / "s")
    weights = copied.folder / cell(paths.SAE_WEIGHTS, variant=FLOORS[1])
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    measured = cell(paths.RECONSTRUCTION, variant=FLOORS[1])
    (copied.folder / measured).unlink()
    # Copies of its evaluation from before the damage.
    shutil.rmtree(copied.folder / paths.EVALUATED)
    assert copied.snakemake(measured).returncode != 0
    # In the job of its variant, after the variant's own SAE.
    keys = cell(paths.MODEL_KEYS, variant="rerandomized")
    log = paths.LOG.format(rule="evaluate_sae", keys=keys)
    *_, line = (copied.folder / log).read_text().splitlines()
    assert line.startswith("nullsae evaluate_sae: error: ")
    command = line.partition("rebuild it with: ")[2]
    # As in a shell, with this study's folder and sources.
    here = command.replace("snakemake", " ".join(copied.command()), 1)
    result = copied.run(["bash", "-c", here])
    assert result.returncode == 0, result.stdout
    assert weights.read_bytes() == whole
    copied.make(measured)
