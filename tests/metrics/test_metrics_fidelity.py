from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.corpus.store import load_tokens
from nullsae.metrics.fidelity import COLUMNS, ce_score, fidelity
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.subjects.loading import Subject, load_subject
from small_chain import CPU, D_MODEL, SITES, VOCAB, Chain, all_rows

SITE = SITES[1]


@pytest.fixture(scope="module")
def subject(chain: Chain) -> Subject:
    return load_subject(chain.recipe, CPU)


@pytest.fixture(scope="module")
def ids(chain: Chain) -> Tensor:
    """20 contexts: one full batch and a shorter one."""
    return torch.from_numpy(load_tokens(chain.eval_tokens).input_ids[:20])


@pytest.fixture(scope="module")
def mean(chain: Chain) -> Tensor:
    return all_rows(chain.eval_activations, SITE)[0].double().mean(dim=0)


def identity() -> Autoencoder:
    """Rectified halves of every coordinate: an exact copy."""
    rows = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    zero = torch.zeros(2 * D_MODEL)
    return Autoencoder("topk", rows, zero, rows.clone(), torch.zeros(D_MODEL), k=2 * D_MODEL)


def zeros() -> Autoencoder:
    sae = identity()
    return dataclasses.replace(sae, w_dec=sae.w_dec * 0)


def by_hand(
    subject: Subject,
    ids: Tensor,
    replace: Callable[[Tensor], Tensor] | None,
    module: str = "layers.1",
) -> tuple[float, Tensor]:
    """Loss with a module's output replaced, and log-probabilities, outside the package's code."""

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


def test_an_exact_copy_changes_the_predictions(subject: Subject, ids: Tensor, mean: Tensor) -> None:
    row = fidelity(subject, identity(), SITE, ids, mean)
    assert row["ce_sae"] == row["ce_clean"]
    assert row["kl_sae"] == pytest.approx(0.0, abs=1e-7)
    assert row["fidelity_tokens"] == 20 * 15
    assert row.keys() == set(COLUMNS)


def test_an_sae_of_zeros_differs_from_zeros(subject: Subject, ids: Tensor, mean: Tensor) -> None:
    row = fidelity(subject, zeros(), SITE, ids, mean)
    assert row["ce_sae"] == row["ce_zero"]
    assert row["kl_sae"] == row["kl_zero"] > 0


def test_losses_differ_from_a_splice_by_hand(
    subject: Subject, ids: Tensor, mean: Tensor, tiny_sae: Path
) -> None:
    sae, _ = load_sae(tiny_sae)
    row = fidelity(subject, sae, SITE, ids, mean)

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


def test_the_batch_changes_the_losses(
    subject: Subject, ids: Tensor, mean: Tensor, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, _ = load_sae(tiny_sae)
    one = fidelity(subject, sae, SITE, ids, mean)
    monkeypatch.setattr("nullsae.metrics.fidelity.BATCH_CONTEXTS", 3)
    other = fidelity(subject, sae, SITE, ids, mean)
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
def test_a_lookup_by_token_is_spliced_in_at_other_tokens_or_elsewhere(
    subject: Subject, ids: Tensor, mean: Tensor, site: str, module: str
) -> None:
    """The dictionary that sees ids alone, at any site, over a full batch and a shorter one."""
    table = torch.randn(VOCAB, D_MODEL, generator=torch.Generator().manual_seed(0))
    length = table.norm(dim=1)
    sae = Autoencoder(
        "token_lookup",
        torch.empty(0, D_MODEL),
        length,
        table / length[:, None],
        torch.zeros(D_MODEL),
    )
    row = fidelity(subject, sae, site, ids, mean)
    loss, _ = by_hand(subject, ids, lambda _: table[ids.long()], module)
    assert row["ce_sae"] == pytest.approx(loss, abs=1e-5)
    for name, new in (("zero", torch.zeros_like), ("mean", mean.float().expand_as)):
        loss, _ = by_hand(subject, ids, new, module)
        assert row[f"ce_{name}"] == pytest.approx(loss, abs=1e-5), name
        assert abs(loss - row["ce_sae"]) > 1e-3


def losses(clean: list[float], sae: list[float], zero: list[float]) -> dict[str, Tensor]:
    parts = {"clean": clean, "sae": sae, "zero": zero}
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in parts.items()}


def test_the_score_runs_the_other_way() -> None:
    clean, zero = [3.0, 3.2, 2.8, 3.1], [6.0, 6.1, 6.2, 5.9]
    assert ce_score(losses(clean, clean, zero)) == 1.0
    assert ce_score(losses(clean, zero, zero)) == 0.0
    half = [(a + b) / 2 for a, b in zip(clean, zero, strict=True)]
    assert ce_score(losses(clean, half, zero)) == pytest.approx(0.5)
    worse = [b + 1.0 for b in zero]
    score = ce_score(losses(clean, worse, zero))
    assert score is not None
    assert score < 0


@pytest.mark.parametrize(
    ("reason", "clean", "zero"),
    [
        ("zeroing helps", [5.0, 5.1, 5.2], [4.0, 4.1, 4.2]),
        ("no harm at all", [5.0, 5.1, 5.2], [5.0, 5.1, 5.2]),
        ("within 3 standard errors", [5.0, 5.0, 5.0, 5.0], [6.0, 4.5, 6.5, 5.0]),
        ("less than 0.1 nats, however sure", [5.0, 5.0, 5.0], [5.05, 5.051, 5.049]),
        ("one context", [3.0], [9.0]),
    ],
)
def test_a_score_is_given_where_zeroing_does_no_clear_harm(
    reason: str, clean: list[float], zero: list[float]
) -> None:
    assert ce_score(losses(clean, clean, zero)) is None, reason


def test_three_standard_errors_are_not_the_limit() -> None:
    """Harm 1 +- s over 4 contexts: standard error s * sqrt(4/3) / 2, limit s = 1 / sqrt(3)."""
    for s, given in ((0.57, True), (0.585, False)):
        zero = [1 + s, 1 - s, 1 + s, 1 - s]
        assert (ce_score(losses([0.0] * 4, [0.0] * 4, zero)) is not None) == given
