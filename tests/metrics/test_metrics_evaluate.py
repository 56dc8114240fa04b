from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae import tables
from nullsae.activations.capture import cache_activations
from nullsae.activations.store import SiteReader
from nullsae.config.activations import Exclude
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, write_json
from nullsae.corpus.store import load_tokens
from nullsae.metrics.fidelity import COLUMNS, DOCUMENT_COLUMNS, fidelity
from nullsae.metrics.geometry import decoder_geometry
from nullsae.sae.files import load_sae
from nullsae.sae.token_means import fit_token_means
from nullsae.subjects.loading import load_subject
from run_stages import evaluated
from small_chain import (
    CONTEXT,
    CPU,
    D_MODEL,
    VOCAB,
    Chain,
    all_rows,
    capture_params,
    flip_byte,
    lookup_sae,
    write_corpus,
    write_sae,
    write_site,
)

SITE = "resid_post.1"


def run(chain: Chain, sae: Path, folder: Path, **keys: Any) -> tuple[Any, Any]:
    """Return the rows of `reconstruction` and `documents`."""
    return measure(sae, folder, **{**chain.inputs, **keys})


def measure(sae: Path, folder: Path, **arguments: Any) -> tuple[Any, Any]:
    """Return the same rows, with all arguments given."""
    plain = {"seed": 3, "fidelity_tokens": 20 * CONTEXT + 3, "activations_key": "key"}
    found = evaluated(folder, sae=sae, **{**plain, **arguments})
    assert found["geometry"] == [decoder_geometry(load_sae(sae)[0], 3)]
    return found["reconstruction"], found["documents"]


def sampled(chain: Chain, folder: Path) -> Path:
    """Return the chain's `eval` activations as if they had been sampled from a fit."""
    shutil.copytree(chain.eval_activations.parent, folder)
    manifest = folder / f"site={SITE}/manifest.json"
    write_json(manifest, {**read_json(manifest, rebuild=""), "fitted": {"key": "other"}})
    return folder / "manifest.json"


def test_every_table_equals_a_dense_recomputation(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    (row,), documents = run(chain, tiny_sae, tmp_path)
    sae, _ = load_sae(tiny_sae)
    x, _ = all_rows(chain.eval_activations, SITE)
    tokens = load_tokens(chain.eval_tokens)
    pre = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    assert sae.k is not None
    top = pre.topk(sae.k, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    output = (codes @ sae.w_dec + sae.b_dec).double()
    exact = x.double()
    error = (exact - output).square().sum(dim=1)
    deviation = (exact - exact.mean(dim=0)).square().sum(dim=1)
    expected = {
        "n_tokens": len(x),
        "n_latents": 48,
        "d_model": 16,
        "explained_variance": 1 - float(error.sum() / deviation.sum()),
        "cosine": float(F.cosine_similarity(exact, output, dim=1).mean()),
        "l0": float((codes > 0).sum()) / len(x),
        "l1": float(codes.double().sum()) / len(x),
        "l2_ratio": float(output.norm(dim=1).mean() / exact.norm(dim=1).mean()),
        "alive_share": float((codes > 0).any(dim=0).double().mean()),
        "mean_norm": float(exact.norm(dim=1).mean()),
        "fidelity_tokens": 20 * (CONTEXT - 1),
        "max_coordinate_variance_share": float((exact.var(dim=0) / exact.var(dim=0).sum()).max()),
        "max_eigenvalue_share": float(torch.linalg.eigvalsh(exact.T.cov()).max())
        / float(exact.var(dim=0).sum()),
        "effective_rank": effective_rank(exact),
        "explained_variance_all_tokens": 1 - float(error.sum() / deviation.sum()),
        "n_tokens_excluded": 0,
        "excluded_variance_share": 0.0,
        "token_lookup_tokens": SiteReader.open(chain.train_activations, SITE).n_tokens,
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5), name
    assert row["l0"] <= sae.k
    # Token lookup: means per id from the training split, applied to eval.
    train_x, at = all_rows(chain.train_activations, SITE)
    train_ids = torch.from_numpy(load_tokens(chain.train_tokens).input_ids).flatten().long()[at]
    ids = torch.from_numpy(tokens.input_ids).flatten().long()
    means = train_x.double().mean(dim=0).repeat(VOCAB, 1)
    for token in set(train_ids.tolist()):
        means[token] = train_x[train_ids == token].double().mean(dim=0)
    lookup = 1 - float((exact - means[ids]).square().sum() / deviation.sum())
    assert row["token_lookup_r2"] == pytest.approx(lookup, rel=1e-9)
    assert 0 < lookup < 1
    # Fidelity: every third of 60 contexts, the split's mean.
    subject = load_subject(chain.recipe, CPU)
    third = slice(None, None, 3)
    spliced = fidelity(
        subject,
        sae,
        SITE,
        torch.from_numpy(tokens.input_ids[third]),
        tokens.document_id[third],
        exact.mean(dim=0),
        contexts=range(0, 60, 3),
    )
    for name, value in spliced.totals().items():
        assert row[name] == (None if value is None else pytest.approx(value, abs=1e-7)), name
    # Documents.
    by_document = np.bincount(tokens.document_id.ravel(), weights=error.numpy())
    for entry in documents:
        assert entry["squared_error"] == pytest.approx(by_document[entry["document"]], rel=1e-5)
        left = (exact - means[ids])[tokens.document_id.ravel() == entry["document"]]
        assert entry["token_lookup_error"] == pytest.approx(float(left.square().sum()), rel=1e-9)
        wanted = spliced.of_document(entry["document"])
        found = {name: entry[name] for name in DOCUMENT_COLUMNS}
        assert found == {n: v and pytest.approx(v, abs=1e-5) for n, v in wanted.items()}
    inside = {entry["document"] for entry in documents if entry["fidelity_tokens"] is not None}
    assert inside == set(np.unique(tokens.document_id[third, 1:]).tolist())
    assert 1 < len(inside) < len(documents)
    assert [entry["document"] for entry in documents] == np.unique(tokens.document_id).tolist()
    assert sum(entry["n_tokens"] for entry in documents) == len(x)
    total = sum(entry["squared_error"] for entry in documents)
    spread = sum(entry["squared_deviation"] for entry in documents)
    assert row["explained_variance"] == pytest.approx(1 - total / spread, rel=1e-12)


def test_excluded_tokens_enter_no_metric(chain: Chain, tiny_sae: Path, tmp_path: Path) -> None:
    """Compared with the test's own hook; all but the first token of each context count."""
    exclude = Exclude(start_tokens=1, norm_above_median=None)
    activations = {}
    for split, tokens in (("sae_train", chain.train_tokens), ("eval", chain.eval_tokens)):
        params = capture_params(sites=(SITE,), exclude=exclude)
        folder = tmp_path / split
        cache_activations(params, split=split, model=chain.recipe, tokens=tokens, output=folder)
        activations[split] = folder / "manifest.json"
    (row,), documents = run(
        chain,
        tiny_sae,
        tmp_path,
        train_activations=activations["sae_train"],
        eval_activations=activations["eval"],
    )
    sae, _ = load_sae(tiny_sae)
    x, position = all_rows(activations["eval"], SITE)
    exact, output = x.double(), sae.decode(*sae.encode(x)).double()
    counts = position % CONTEXT > 0

    def explained(of: Tensor) -> float:
        deviation = exact[of] - exact[of].mean(dim=0)
        return 1 - float((exact - output)[of].square().sum() / deviation.square().sum())

    assert row["n_tokens"] == int(counts.sum()) == sum(d["n_tokens"] for d in documents)
    assert row["n_tokens_excluded"] == int((~counts).sum()) == len(x) // CONTEXT
    assert row["explained_variance"] == pytest.approx(explained(counts), rel=1e-6)
    assert row["explained_variance_all_tokens"] == pytest.approx(
        explained(torch.ones_like(counts)), rel=1e-6
    )
    assert abs(explained(counts) - explained(torch.ones_like(counts))) > 1e-3

    tokens = load_tokens(chain.eval_tokens)
    contexts = list(range(0, 60, 3))
    ids = torch.from_numpy(tokens.input_ids[contexts]).long()
    mean = exact[counts].mean(dim=0).float()
    subject = load_subject(chain.recipe, CPU)
    replacements: dict[str, Any] = {
        "ce_clean": lambda rest: rest,
        "ce_sae": lambda rest: sae.decode(*sae.encode(rest.flatten(0, 1))).view(rest.shape),
        "ce_zero": torch.zeros_like,
        "ce_mean": lambda rest: mean.expand_as(rest),
    }
    for name, replace in replacements.items():

        def splice(_module: Any, _inputs: Any, out: Any, replace: Any = replace) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            new = torch.cat([hidden[:, :1], replace(hidden[:, 1:])], dim=1)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        handle = subject.model.gpt_neox.layers[1].register_forward_hook(splice)
        with torch.inference_mode():
            logits = subject.model(ids).logits
        handle.remove()
        losses = F.cross_entropy(logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten())
        assert row[name] == pytest.approx(float(losses), rel=1e-5), name
    assert row["fidelity_tokens"] == 20 * (CONTEXT - 2)


def effective_rank(x: Tensor) -> float:
    """Compute it from singular values, without a covariance."""
    share = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    share = share / share.sum()
    return float((-(share * share.log()).sum()).exp())


def test_health_is_taken_over_the_first_tokens(
    chain: Chain, tiny_sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullsae.metrics.evaluate.HEALTH_TOKENS", 100)
    monkeypatch.setattr("nullsae.activations.store.BATCH_TOKENS", 64)
    (row,), _ = run(chain, tiny_sae, tmp_path)
    x = all_rows(chain.eval_activations, SITE)[0].double()
    assert row["n_tokens"] == len(x) > 100
    assert row["effective_rank"] == pytest.approx(effective_rank(x[:100]), rel=1e-9)
    assert abs(effective_rank(x) - effective_rank(x[:100])) > 1e-3


def test_without_a_model_only_its_losses_are_missing(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    (with_model,), documents = run(chain, tiny_sae, tmp_path / "one")
    (without,), others = run(
        chain,
        tiny_sae,
        tmp_path / "two",
        model=None,
        eval_activations=sampled(chain, tmp_path / "sampled"),
    )
    for name, value in without.items():
        assert value == (None if name in COLUMNS else with_model[name]), name
    lacking = dict.fromkeys(DOCUMENT_COLUMNS)
    assert others == [{**document, **lacking} for document in documents]
    for table, columns in (("reconstruction", COLUMNS), ("documents", DOCUMENT_COLUMNS)):
        nullable = {f.name for f in tables.cell_schema(table) if f.nullable}
        assert set(columns) <= nullable


def test_a_model_that_is_missing_or_too_many_is_refused(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=rf"--model: not given, but .*site={SITE} was captured from a model; give"
    ):
        run(chain, tiny_sae, tmp_path / "one", model=None)
    eval_activations = sampled(chain, tmp_path / "sampled")
    with pytest.raises(
        UserError, match=r"--model: .*recipe.json, but .* was sampled, from no model; leave it out"
    ):
        run(chain, tiny_sae, tmp_path / "two", eval_activations=eval_activations)
    assert [path.name for path in tmp_path.iterdir()] == ["sampled"]


def test_a_lookup_by_token_sees_the_tokens(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary of the token means explains as much as the floor `token_lookup_r2`."""
    monkeypatch.setattr("nullsae.activations.store.BATCH_TOKENS", 300)
    x, at = all_rows(chain.train_activations, SITE)
    ids = torch.from_numpy(load_tokens(chain.train_tokens).input_ids).flatten().long()[at]
    means, _ = fit_token_means([(x, ids)], VOCAB, D_MODEL)
    sae = write_sae(lookup_sae(means), tmp_path, dictionary="token_lookup", n_steps=0)
    (row,), documents = run(chain, sae, tmp_path)
    assert row["explained_variance"] == pytest.approx(row["token_lookup_r2"], abs=1e-6)
    for document in documents:
        left = document["token_lookup_error"]
        assert document["squared_error"] == pytest.approx(left, rel=1e-5)
    assert row["l0"] == 1.0
    assert row["ce_sae"] != pytest.approx(row["ce_mean"], abs=1e-3)


def test_an_sae_of_another_width_is_refused(chain: Chain, tiny_sae: Path, tmp_path: Path) -> None:
    wide = write_site(tmp_path / "wide", torch.randn(40, D_MODEL + 1), [40], site=SITE)
    message = rf"site={SITE}: activations of 17 dimensions, but the SAE {tiny_sae} has 16"
    with pytest.raises(UserError, match=message):
        run(chain, tiny_sae, tmp_path, eval_activations=wide)


def test_other_shards_give_the_same_table(chain: Chain, tiny_sae: Path, tmp_path: Path) -> None:
    """With other shards but the same batches of the forward pass, numbers agree to the bit."""
    captured = {}
    for split, tokens in (("sae_train", chain.train_tokens), ("eval", chain.eval_tokens)):
        cache_activations(
            capture_params(sites=(SITE,), shard_tokens=24 * CONTEXT),
            split=split,
            model=chain.recipe,
            tokens=tokens,
            output=tmp_path / split,
        )
        captured[split] = tmp_path / split / "manifest.json"
    one, documents = run(chain, tiny_sae, tmp_path / "one")
    two, other = run(chain, tiny_sae, tmp_path / "two", eval_activations=captured["eval"])
    assert (tmp_path / "one/documents.parquet").read_bytes() == (
        tmp_path / "two/documents.parquet"
    ).read_bytes()
    assert one == two
    assert documents == other
    three, _ = run(chain, tiny_sae, tmp_path / "three", train_activations=captured["sae_train"])
    for name, value in one[0].items():
        assert three[0][name] == (value and pytest.approx(value, rel=1e-12)), name


def test_progress_reaches_the_end_of_the_split(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    run(chain, tiny_sae, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60 * CONTEXT, 60 * CONTEXT)


def test_foreign_or_damaged_activations_are_refused(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="made from another config"):
        run(chain, tiny_sae, tmp_path, activations_key="other")
    copy = tmp_path / "eval"
    shutil.copytree(chain.eval_activations.parent, copy)
    flip_byte(copy / f"site={SITE}/shard-00003.safetensors")
    with pytest.raises(UserError, match=r"shard-00003.safetensors: damaged"):
        run(chain, tiny_sae, tmp_path, eval_activations=copy / "manifest.json")
    assert not list(tmp_path.glob("*.parquet"))


def anonymous_bytes() -> int:
    """Return this process' memory that is not backed by a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_memory_does_not_grow_with_the_tokens(tiny_sae: Path, tmp_path: Path) -> None:
    """Two numbers of 4 bytes per token of both splits would be 32 MB more at 8 times the tokens."""
    peaks = {}
    for n_contexts in (2**15, 2**18):
        folder = tmp_path / str(n_contexts)
        n = n_contexts * CONTEXT
        ids = (np.arange(n, dtype=np.int32) % VOCAB).reshape(-1, CONTEXT)
        documents = (np.arange(n) * 50 // n).astype(np.int32).reshape(-1, CONTEXT)
        tokens = write_corpus(folder / "tokens", ids, documents)
        g = torch.Generator().manual_seed(0)
        at = torch.randperm(n, generator=g)[:20_000]
        x = torch.randn(len(at), D_MODEL, generator=g)
        captured = write_site(folder / "captured", x, [len(at)], site=SITE, position=at)
        manifest = captured.parent / f"site={SITE}/manifest.json"
        write_json(manifest, {**read_json(manifest, rebuild=""), "fitted": {"key": "other"}})
        del ids, documents, at, x
        seen = [anonymous_bytes()]
        measure(
            tiny_sae,
            folder,
            model=None,
            train_activations=captured,
            eval_activations=captured,
            train_tokens=tokens,
            eval_tokens=tokens,
            progress=lambda done, total, seen=seen: seen.append(anonymous_bytes()),
        )
        seen.append(anonymous_bytes())
        peaks[n_contexts] = max(seen) - seen[0]
    assert peaks[2**18] - peaks[2**15] < 12_000_000
