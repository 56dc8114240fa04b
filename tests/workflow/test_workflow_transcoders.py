"""A transcoder made elsewhere goes through all stages, together with SAEs and their nulls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from workflow_study import Study, copy_of

from nullsae import tables
from nullsae.sae.transcoder import Transcoder
from small_chain import write_sae

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
READ, WRITTEN = "mlp_in.1", "mlp_out.1"


def with_transcoder(config: dict[str, Any]) -> None:
    config["subjects"]["small"]["sites"] = ["resid_post.0", READ]
    config["saes"]["transcoder"] = {
        **{"pretrained": "./transcoders/{layer}", "input_site": "mlp_in", "output_site": "mlp_out"},
        # It is not trained, but `evaluate_sae` should let it pass.
        **{"batch_tokens": 512, "expect": {"explained_variance": -1e6}},
    }


def write_transcoder(folder: Path) -> None:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    weights = drawn(32, 16), drawn(32), drawn(32, 16), drawn(16) * 0.1
    skip = drawn(16, 16) * 0.1
    made = Transcoder("topk", *weights, k=4, output_site=WRITTEN, w_skip=skip)
    write_sae(made, folder, site=READ)


def test_a_transcoder_reaches_the_report_beside_saes(study: Study, tmp_path: Path) -> None:
    copied = copy_of(study, tmp_path / "s").configure(with_transcoder)
    write_transcoder(copied.folder / "transcoders/1")
    jobs = copied.jobs()
    # Two more sites, and one more SAE for both variants and a transcoder.
    assert (jobs["cache_activations"], jobs["train_sae"], jobs["collect_latents"]) == (4, 3, 3)
    copied.make()
    found = {
        name: tables.read_table(
            copied.folder / f"results/tables/{name}.parquet", tables.SCHEMAS[name]
        ).to_pylist()
        for name in ("reconstruction", "latents", "coverage", "scores", "contrasts", "verdicts")
    }
    own = {
        name: [row for row in rows if row["sae"] == "transcoder"] for name, rows in found.items()
    }
    (row,) = own["reconstruction"]
    assert (row["variant"], row["site"]) == ("trained", READ)
    assert None not in (row["explained_variance"], row["ce_sae"], row["kl_sae"])
    assert {row["site"] for row in found["reconstruction"]} == {"resid_post.0", READ}
    (covered,) = own["coverage"]
    assert (covered["no_effects"], covered["no_causal_effects"]) == (None, None)
    # The SAE that reads the same site is not written to the residual stream.
    beside = next(r for r in found["coverage"] if r["sae"] == "topk" and r["site"] == READ)
    assert beside["no_effects"] == "the site is not in the residual stream and not written to it"
    assert any(row["next_token_auroc"] is not None for row in own["latents"])
    assert any(row["ablation_kl_nats"] is not None for row in own["latents"])
    assert own["scores"]
    assert {row["stage"] for row in own["contrasts"]} == {"explanation", "effect"}
    page = (copied.folder / "results/report/index.html").read_text(encoding="utf-8")
    assert "A transcoder made elsewhere" in page
    assert copied.jobs() == {}
