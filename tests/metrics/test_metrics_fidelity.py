from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nullsae.corpus.store import load_tokens
from nullsae.metrics.fidelity import COLUMNS, DOCUMENT_COLUMNS, fidelity, spread
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.subjects.loading import Subject, load_subject
from small_chain import CPU, D_MODEL, SITES, VOCAB, Chain, all_rows, lookup_sae

SITE = SITES[1]


@pytest.fixture(scope="module")
def subject(chain: Chain) -> Subject:
    return load_subject(chain.recipe, CPU)


@pytest.fixture(scope="module")
def ids(chain: Chain) -> Tensor:
    """Return 20 contexts: one full batch and a shorter one."""
    return torch.from_numpy(load_tokens(chain.eval_tokens).input_ids[:20])


@pytest.fixture(scope="module")
def documents(chain: Chain) -> NDArray[np.int32]:
    return load_tokens(chain.eval_tokens).document_id[:20]


@pytest.fixture(scope="module")
def mean(chain: Chain) -> Tensor:
    return all_rows(chain.eval_activations, SITE)[0].double().mean(dim=0)


def identity() -> Autoencoder:
    """Return an SAE of rectified halves of every coordinate, an exact copy."""
    rows = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    zero = torch.zeros(2 * D_MODEL)
    return Autoencoder("topk", rows, zero, rows.clone(), torch.zeros(D_MODEL), k=2 * D_MODEL)


def zeros() -> Autoencoder:
    sae = identity()
    return dataclasses.replace(sae, w_dec=sae.w_dec * 0)


def row_of(
    subject: Subject, sae: Autoencoder, site: str, ids: Tensor, mean: Tensor
) -> dict[str, Any]:
    """Return the totals, with all tokens in one document."""
    documents = np.zeros(ids.shape, dtype=np.int32)
    contexts = range(len(ids))
    return fidelity(subject, sae, site, ids, documents, mean, contexts=contexts).totals()


def by_hand(
    subject: Subject,
    ids: Tensor,
    replace: Callable[[Tensor], Tensor] | None,
    module: str = "layers.1",
) -> tuple[float, Tensor]:
    """Compute loss and log-probabilities with a module's output replaced, without nullsae."""

    def hook(_module: object, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return (replace(output[0]), *output[1:]) if replace else output
        return replace(output) if replace and isinstance(output, Tensor) else output

    handle = subject.model.gpt_neox.get_submodule(module).register_forward_hook(hook)
    with torch.inference_mode():
        log_p = F.log_softmax(subject.model(ids.long()).logits[:, :-1].double(), dim=-1)
    handle.remove()
    target = ids[:, 1:].long()
    return float(F.nll_loss(log_p.flatten(0, 1), target.flatten())), log_p


def test_an_exact_copy_keeps_the_predictions(subject: Subject, ids: Tensor, mean: Tensor) -> None:
    row = row_of(subject, identity(), SITE, ids, mean)
    assert row["ce_sae"] == row["ce_clean"]
    assert row["kl_sae"] == pytest.approx(0.0, abs=1e-7)
    assert row["fidelity_tokens"] == 20 * 15
    assert row.keys() == set(COLUMNS)


def test_an_sae_of_zeros_equals_zeros(subject: Subject, ids: Tensor, mean: Tensor) -> None:
    row = row_of(subject, zeros(), SITE, ids, mean)
    assert row["ce_sae"] == row["ce_zero"]
    assert row["kl_sae"] == row["kl_zero"] > 0


def test_losses_equal_those_of_a_splice_by_hand(
    subject: Subject, ids: Tensor, mean: Tensor, tiny_sae: Path
) -> None:
    sae, _ = load_sae(tiny_sae)
    row = row_of(subject, sae, SITE, ids, mean)

    def dense(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        pre = (flat - sae.b_dec) @ sae.w_enc.T + sae.b_enc
        top = pre.topk(sae.k or 0, dim=1)
        codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        return (codes @ sae.w_dec + sae.b_dec).view(x.shape)

    clean, log_p = by_hand(subject, ids, None)
    replacements: dict[str, Callable[[Tensor], Tensor]] = {
        "sae": dense,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.float().expand_as(x),
    }
    assert row["ce_clean"] == pytest.approx(clean, abs=1e-6)
    for name, stand_in in replacements.items():
        loss, other = by_hand(subject, ids, stand_in)
        assert row[f"ce_{name}"] == pytest.approx(loss, abs=1e-5), name
        assert abs(loss - clean) > 1e-3, "the replacement must matter for this to test anything"
        if name != "mean":
            kl = F.kl_div(other, log_p, log_target=True, reduction="sum") / log_p[..., 0].numel()
            assert row[f"kl_{name}"] == pytest.approx(float(kl), abs=1e-5), name


def test_the_batch_does_not_change_the_losses(
    subject: Subject, ids: Tensor, mean: Tensor, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, _ = load_sae(tiny_sae)
    one = row_of(subject, sae, SITE, ids, mean)
    monkeypatch.setattr("nullsae.metrics.fidelity.BATCH_CONTEXTS", 3)
    other = row_of(subject, sae, SITE, ids, mean)
    for name, value in one.items():
        assert other[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(
    ("site", "module"),
    [
        ("embed", "embed_in"),
        ("attn_out.1", "layers.1.attention"),
        ("mlp_out.2", "layers.2.mlp"),
        ("resid_post.0", "layers.0"),
    ],
)
def test_a_lookup_by_token_is_spliced_in_at_its_tokens_and_site(
    subject: Subject, ids: Tensor, mean: Tensor, site: str, module: str
) -> None:
    """The dictionary sees only ids, at any site, over a full batch and a shorter one."""
    table = torch.randn(VOCAB, D_MODEL, generator=torch.Generator().manual_seed(0))
    row = row_of(subject, lookup_sae(table), site, ids, mean)
    loss, _ = by_hand(subject, ids, lambda _: table[ids.long()], module)
    assert row["ce_sae"] == pytest.approx(loss, abs=1e-5)
    for name, new in (("zero", torch.zeros_like), ("mean", mean.float().expand_as)):
        loss, _ = by_hand(subject, ids, new, module)
        assert row[f"ce_{name}"] == pytest.approx(loss, abs=1e-5), name
        assert abs(loss - row["ce_sae"]) > 1e-3


def test_a_loss_counts_for_the_document_of_the_predicted_token(
    subject: Subject, ids: Tensor, documents: NDArray[np.int32], mean: Tensor, tiny_sae: Path
) -> None:
    """Token by token, compared with the losses of a splice by hand."""
    sae, _ = load_sae(tiny_sae)
    found = fidelity(subject, sae, SITE, ids, documents, mean, contexts=range(20))

    def dense(x: Tensor) -> Tensor:
        return sae.decode(*sae.encode(x.flatten(0, 1))).view(x.shape)

    _, clean = by_hand(subject, ids, None)
    log_p = {
        "ce_clean": clean,
        "ce_sae": by_hand(subject, ids, dense)[1],
        "ce_zero": by_hand(subject, ids, torch.zeros_like)[1],
        "ce_mean": by_hand(subject, ids, lambda x: mean.float().expand_as(x))[1],
    }
    expected: dict[int, dict[str, float]] = defaultdict(lambda: dict.fromkeys(DOCUMENT_COLUMNS, 0))
    for context in range(len(ids)):
        for at in range(1, ids.shape[1]):
            row, token = expected[int(documents[context, at])], int(ids[context, at])
            row["fidelity_tokens"] += 1
            for name, values in log_p.items():
                row[name] -= float(values[context, at - 1, token])
            p, q = clean[context, at - 1], log_p["ce_sae"][context, at - 1]
            row["kl_sae"] += float((p.exp() * (p - q)).sum())
    assert len(expected) > 5
    for document, row in expected.items():
        assert found.of_document(document) == pytest.approx(row, rel=1e-5, abs=1e-5)
    # Contexts cut documents, so neither sum is a regrouping of the other.
    assert any(len(set(context.tolist())) > 1 for context in documents)


def test_documents_add_up_to_the_totals(
    subject: Subject, ids: Tensor, documents: NDArray[np.int32], mean: Tensor, tiny_sae: Path
) -> None:
    sae, _ = load_sae(tiny_sae)
    # Text that the subject itself would write from the first tokens on, so zeroing does clear harm.
    written = ids[:, :1]
    while written.shape[1] < ids.shape[1]:
        logits = subject.logits(written, split="eval", contexts=range(len(ids)))
        written = torch.cat([written, logits[:, -1:].argmax(dim=-1).int()], dim=1)
    split = fidelity(subject, sae, SITE, written, documents, mean, contexts=range(20))
    whole = row_of(subject, sae, SITE, written, mean)
    assert whole["ce_score"] is not None
    assert split.totals() == pytest.approx(whole, rel=1e-12)
    rows = [split.of_document(int(document)) for document in np.unique(documents[:, 1:])]
    sums = {name: sum(row[name] for row in rows) for name in DOCUMENT_COLUMNS}
    assert sums["fidelity_tokens"] == whole["fidelity_tokens"] == 20 * 15
    for name in DOCUMENT_COLUMNS[1:]:
        assert sums[name] / sums["fidelity_tokens"] == pytest.approx(whole[name], rel=1e-12)
    score = (sums["ce_zero"] - sums["ce_sae"]) / (sums["ce_zero"] - sums["ce_clean"])
    assert whole["ce_score"] == pytest.approx(score, rel=1e-12)


def test_a_document_without_a_predicted_token_has_no_losses(
    subject: Subject, ids: Tensor, mean: Tensor
) -> None:
    documents = np.full(ids.shape, 3)
    documents[0, 0] = 7  # only its first token, which nothing predicts
    found = fidelity(subject, identity(), SITE, ids, documents, mean, contexts=range(20))
    nothing = dict.fromkeys(DOCUMENT_COLUMNS)
    assert found.of_document(7) == nothing
    assert found.of_document(0) == nothing
    assert found.of_document(99) == nothing
    assert found.of_document(3)["fidelity_tokens"] == 20 * 15


def test_a_sample_is_spread_evenly_over_the_split() -> None:
    assert spread(60, 20 * 16 + 3, 16) == list(range(0, 60, 3))
    assert spread(10, 4 * 16, 16) == [0, 2, 5, 7]
    assert spread(10, 99 * 16, 16) == list(range(10))
    assert spread(10, 5, 16) == [0]
    for n_contexts in range(1, 40):
        for n in range(1, 60):
            found = spread(n_contexts, n, 1)
            assert len(set(found)) == len(found) == min(n, n_contexts)
            gaps = np.diff([*found, n_contexts])
            assert gaps.max() - gaps.min() <= 1


def test_noise_is_that_of_the_same_context(
    chain: Chain, ids: Tensor, documents: NDArray[np.int32], mean: Tensor
) -> None:
    """The variant `noise_embeddings` draws its noise by the index of a context in its split."""
    noisy = load_subject(chain.recipe, CPU)
    noisy = dataclasses.replace(
        noisy,
        recipe={
            **noisy.recipe,
            **{"variant": "noise_embeddings", "embedding_noise_std": 1.0, "seed": 0, "draw": 0},
        },
    )
    contexts = [3 * index + 1 for index in range(20)]
    found = fidelity(noisy, identity(), SITE, ids, documents, mean, contexts=contexts).totals()
    log_p = noisy.logits(ids, split="eval", contexts=contexts)[:, :-1].log_softmax(dim=-1)
    expected = F.nll_loss(log_p.flatten(0, 1), ids[:, 1:].long().flatten())
    assert found["ce_clean"] == pytest.approx(float(expected), abs=1e-5)
    others = fidelity(noisy, identity(), SITE, ids, documents, mean, contexts=range(20)).totals()
    assert abs(others["ce_clean"] - found["ce_clean"]) > 1e-3
