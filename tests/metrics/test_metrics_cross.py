from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae import tables
from nullsae.core.errors import UserError
from nullsae.corpus.store import load_tokens
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.metrics import CrossEvaluateParams
from nullsae.metrics.cross import cross_evaluate
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from run_stages import evaluated
from small_chain import (
    COMPUTE,
    CONTEXT,
    D_MODEL,
    VOCAB,
    Chain,
    all_rows,
    cell,
    flip_byte,
    lookup_sae,
    write_sae,
    write_site,
)

SITE = "resid_post.1"
N = 60 * CONTEXT
INPUT_NORM = 5.0


@dataclass(frozen=True)
class Study:
    """The chain's trained activations, and a null's that are shuffled and three times as long."""

    chain: Chain
    sae: Path
    other: Path


@pytest.fixture(scope="module")
def study(chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("cross")
    sae, _ = load_sae(tiny_sae)
    x, _ = all_rows(chain.eval_activations, SITE)
    shuffled = x[:, torch.randperm(D_MODEL, generator=torch.Generator().manual_seed(0))]
    other = write_site(root / "other", shuffled * 3 + 1, [500, N - 500], site=SITE, key="other")
    return Study(chain, save(sae, root / "sae"), other)


def save(sae: Autoencoder, folder: Path) -> Path:
    dictionary = "token_lookup" if sae.architecture == "token_lookup" else "learned"
    return write_sae(sae, folder, dictionary=dictionary, input_norm=INPUT_NORM)


def model(variant: Any, draw: int = 0) -> ModelKeys:
    return ModelKeys(subject="tiny", variant=variant, draw=draw)


def cross(study: Study, output: Path, **keys: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {
        "variants": (model("trained"), model("rerandomized", 2)),
        "max_tokens": 10 * N,
        "activations_keys": ("key", "other"),
        **keys,
    }
    files = arguments.pop("activations", [study.chain.eval_activations, study.other])
    sae = arguments.pop("sae", study.sae)
    params = CrossEvaluateParams(keys=cell(SITE), compute=COMPUTE, **arguments)
    table = output / "cross_evaluation.parquet"
    cross_evaluate(params, sae=sae, activations=files, tokens=study.chain.eval_tokens, output=table)
    rows: list[dict[str, Any]] = tables.read_table(
        table, tables.cell_schema("cross_evaluation")
    ).to_pylist()
    return rows


def dense(sae: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and reconstructions, float64."""
    assert sae.k is not None
    pre = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    top = pre.topk(sae.k, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    return codes, (codes @ sae.w_dec + sae.b_dec).double()


def explained(x: Tensor, output: Tensor) -> float:
    x = x.double()
    return 1 - float((x - output).square().sum() / (x - x.mean(dim=0)).square().sum())


def test_the_own_variant_equals_its_evaluation(study: Study, tmp_path: Path) -> None:
    found = evaluated(tmp_path, sae=study.sae, fidelity_tokens=CONTEXT, **study.chain.inputs)
    (own,) = found["reconstruction"]
    row = cross(study, tmp_path)[0]
    for name in ("n_tokens", "explained_variance", "cosine", "l0", "alive_share"):
        assert row[name] == pytest.approx(own[name], rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("max_tokens", [N, 37 * CONTEXT + 5])
def test_the_table_equals_a_dense_recomputation(
    study: Study, tmp_path: Path, max_tokens: int
) -> None:
    rows = cross(study, tmp_path, max_tokens=max_tokens)
    assert [(row["evaluated_on"], row["evaluated_on_draw"]) for row in rows] == [
        ("trained", 0),
        ("rerandomized", 2),
    ]
    sae, _ = load_sae(study.sae)
    for row, file in zip(rows, (study.chain.eval_activations, study.other), strict=True):
        x = all_rows(file, SITE)[0][:max_tokens]
        codes, output = dense(sae, x)
        scaled = x * (INPUT_NORM / x.norm(dim=1).mean())
        expected = {
            "n_tokens": len(x),
            "explained_variance": explained(x, output),
            "explained_variance_rescaled": explained(scaled, dense(sae, scaled)[1]),
            "cosine": float(F.cosine_similarity(x.double(), output, dim=1).mean()),
            "l0": float((codes > 0).sum()) / len(x),
            "alive_share": float((codes > 0).any(dim=0).double().mean()),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-5), name
        difference = row["explained_variance"] - row["explained_variance_rescaled"]
        assert abs(difference) > 1e-3, "the scale must matter for this to test anything"


def test_the_scale_of_a_variant_does_not_matter_to_the_rescaled_measure(
    study: Study, tmp_path: Path
) -> None:
    x, _ = all_rows(study.chain.eval_activations, SITE)
    scaled = write_site(tmp_path / "scaled", x * 40, [N], site=SITE, key="other")
    own, other = cross(study, tmp_path, activations=[study.chain.eval_activations, scaled])
    name = "explained_variance_rescaled"
    assert other[name] == pytest.approx(own[name], rel=1e-5)
    assert abs(other["explained_variance"] - own["explained_variance"]) > 1e-2


def test_shards_do_not_change_the_table(study: Study, tmp_path: Path) -> None:
    x, _ = all_rows(study.other, SITE)
    shards = write_site(tmp_path / "shards", x, [7, N - 107, 100], site=SITE, key="other")
    for limit in (N, 300):
        one = cross(study, tmp_path / "one", max_tokens=limit)
        files = [study.chain.eval_activations, shards]
        assert cross(study, tmp_path / "two", max_tokens=limit, activations=files) == one


def test_a_lookup_by_token_sees_the_tokens(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullsae.activations.store.BATCH_TOKENS", 300)
    table = torch.randn(VOCAB, D_MODEL, generator=torch.Generator().manual_seed(0)) * 2
    ids = torch.from_numpy(load_tokens(study.chain.eval_tokens).input_ids).flatten().long()
    rows = cross(study, tmp_path, sae=save(lookup_sae(table), tmp_path / "sae"))
    for row, file in zip(rows, (study.chain.eval_activations, study.other), strict=True):
        x, position = all_rows(file, SITE)
        assert row["explained_variance"] == pytest.approx(
            explained(x, table[ids[position]].double()), rel=1e-5
        )
        assert row["l0"] == 1.0
        assert row["alive_share"] == len(set(ids.tolist())) / VOCAB


def test_keys_are_not_asked_for_by_hand(study: Study, tmp_path: Path) -> None:
    assert cross(study, tmp_path / "a", activations_keys=()) == cross(study, tmp_path / "b")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"activations_keys": ("key", "new")}, r"made from another config \(key other, wanted new"),
        ({"activations_keys": ("key",)}, "2 manifests, but --params names 2 variants and 1 keys;"),
        ({"variants": (model("trained"),)}, "2 manifests, but --params names 1 variants and 2 ke"),
        (
            {"wide": D_MODEL + 1},
            r"activations of 17 dimensions, but the SAE .* has 16; evaluate",
        ),
        (
            {"activations": [Path("a"), Path("b")]},
            "resid_post.1/manifest.json: the file is missing",
        ),
        ({"sae": Path("none/cfg.json")}, "none/cfg.json: the file is missing; rebuild it with"),
    ],
)
def test_a_mistake_is_refused_in_one_line(
    study: Study, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    keys = dict(keys)
    if width := keys.pop("wide", None):
        wide = write_site(tmp_path / "w", torch.ones(20, width), [20], site=SITE, key="other")
        keys["activations"] = [study.chain.eval_activations, wide]
    with pytest.raises(UserError, match=message) as caught:
        cross(study, tmp_path, **keys)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.parquet"))


def test_damaged_activations_are_refused(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.other.parent, tmp_path / "other")
    flip_byte(tmp_path / f"other/site={SITE}/shard-00001.safetensors")
    files = [study.chain.eval_activations, tmp_path / "other/manifest.json"]
    with pytest.raises(UserError, match=r"shard-00001.safetensors: damaged"):
        cross(study, tmp_path, activations=files)
