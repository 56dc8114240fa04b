"""All SAEs of a model evaluated by one job, and none of them twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nullsae.core.files import write_json
from nullsae.core.kept import Kept
from nullsae.jobs.metrics import EvaluatedModel, EvaluatedSae, EvaluateSaesParams
from nullsae.metrics.evaluate import evaluate_sae, evaluate_together
from nullsae.metrics.evaluate_all import TABLES, evaluate_saes
from nullsae.sae.files import load_sae, save_sae
from small_chain import COMPUTE, CONTEXT, Chain, flip_byte

SITE = "resid_post.1"
PLACE = "{variant}/{sae}/{seed}"


def params(seeds: tuple[int, ...] = (0, 1), **changes: Any) -> EvaluateSaesParams:
    saes = tuple(EvaluatedSae(site=SITE, sae="topk", seed=seed) for seed in seeds)
    model = EvaluatedModel(
        variant="trained", saes=saes, activations_key="key", eval_activations_key="key"
    )
    plain: dict[str, Any] = {
        **{"seed": 3, "subject": "tiny", "draw": 0, "models": (model,)},
        **{"fidelity_tokens": 4 * CONTEXT, "compute": COMPUTE},
    }
    return EvaluateSaesParams(**{**plain, **changes})


@pytest.fixture
def folder(tiny_sae: Path, tmp_path: Path) -> Path:
    """Return three SAEs: one, its negative, and one with a lower encoder threshold."""
    for seed in range(3):
        coder, config = load_sae(tiny_sae)
        own = tmp_path / "saes" / PLACE.format(variant="trained", sae="topk", seed=seed)
        own.mkdir(parents=True)
        coder.b_enc += 0.1 * seed
        left_out = {"weights_checksum", "architecture", "d_model", "n_latents", "k"}
        save_sae(coder, own, **config.model_dump(exclude=left_out))
    return tmp_path


def run(
    chain: Chain, folder: Path, given: EvaluateSaesParams, code: str | None = "code"
) -> dict[str, bytes]:
    """Return the tables that a job leaves in a new folder `metrics`."""
    metrics = folder / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)
    evaluate_saes(
        given,
        sae=f"{folder}/saes/{PLACE}/cfg.json",
        model=chain.recipe,
        train_activations=str(chain.train_activations),
        eval_activations=str(chain.eval_activations),
        train_tokens=chain.train_tokens,
        eval_tokens=chain.eval_tokens,
        output=f"{metrics}/{PLACE}",
        kept=Kept(folder / "kept", code) if code else None,
    )
    return {str(f.relative_to(metrics)): f.read_bytes() for f in metrics.rglob("*.parquet")}


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of seeds of evaluated SAEs, in order."""
    seeds: list[int] = []

    def counted(saes: Any, **files: Any) -> None:
        seeds.extend(one.params.keys.seed for one in saes)
        evaluate_together(saes, **files)

    monkeypatch.setattr("nullsae.metrics.evaluate_all.evaluate_together", counted)
    return seeds


def test_each_sae_gets_the_tables_that_it_gets_alone(chain: Chain, folder: Path) -> None:
    found = run(chain, folder, params((0, 1, 2)), code=None)
    assert len(found) == 3 * len(TABLES)
    assert not (folder / "kept").exists()
    for one in params((0, 1, 2)).each():
        place = PLACE.format(**one.keys.model_dump())
        alone = {name: folder / "alone" / place / f"{name}.parquet" for name in TABLES}
        evaluate_sae(
            one,
            sae=folder / "saes" / place / "cfg.json",
            model=chain.recipe,
            train_activations=chain.train_activations,
            eval_activations=chain.eval_activations,
            train_tokens=chain.train_tokens,
            eval_tokens=chain.eval_tokens,
            **alone,  # type: ignore[arg-type]
        )
        for name, file in alone.items():
            assert found[f"{place}/{name}.parquet"] == file.read_bytes(), place
    # They do differ.
    of_seeds = {found[f"trained/topk/{seed}/reconstruction.parquet"] for seed in range(3)}
    assert len(of_seeds) == 3


def test_only_a_new_sae_is_evaluated(chain: Chain, folder: Path, evaluated: list[int]) -> None:
    before = run(chain, folder, params((0, 1)))
    assert evaluated == [0, 1]
    assert run(chain, folder, params((0, 1))) == before
    after = run(chain, folder, params((1, 2, 0)))
    assert evaluated == [0, 1, 2]
    assert before.items() <= after.items()
    assert len(after) == len(before) + len(TABLES)


def test_an_sae_is_evaluated_again_when_anything_that_counts_is_another(
    chain: Chain, folder: Path, evaluated: list[int]
) -> None:
    run(chain, folder, params((0, 1)))
    evaluated.clear()
    run(chain, folder, params((0, 1), fidelity_tokens=2 * CONTEXT))
    assert evaluated == [0, 1]
    run(chain, folder, params((0, 1)), code="other")
    assert evaluated == 2 * [0, 1]
    run(chain, folder, params((0, 1), seed=4), code="other")
    assert evaluated == 3 * [0, 1]
    # Retrained: other weights, whatever the file's time.
    evaluated.clear()
    config = folder / "saes" / PLACE.format(variant="trained", sae="topk", seed=1) / "cfg.json"
    coder, described = load_sae(config)
    time = config.stat().st_mtime_ns
    coder.b_dec += 0.5
    left_out = {"weights_checksum", "architecture", "d_model", "n_latents", "k"}
    save_sae(coder, config.parent, **described.model_dump(exclude=left_out))
    os.utime(config, ns=(time, time))
    run(chain, folder, params((0, 1), seed=4), code="other")
    assert evaluated == [1]


def test_copies_that_are_not_whole_are_not_taken(
    chain: Chain, folder: Path, evaluated: list[int]
) -> None:
    before = run(chain, folder, params((0,)))
    (kept,) = (folder / "kept").rglob("made.json")
    damages = (
        lambda: flip_byte(kept.parent / "documents.parquet"),
        (kept.parent / "geometry.parquet").unlink,
        kept.unlink,
        lambda: kept.write_text('{"key": '),
        lambda: write_json(kept, {"key": "other", "checksums": {}}),
    )
    for n_damages, damage in enumerate(damages, start=1):
        damage()
        assert run(chain, folder, params((0,))) == before
        assert len(evaluated) == 1 + n_damages
    assert run(chain, folder, params((0,))) == before
    assert len(evaluated) == 1 + len(damages)
