"""Products in low precision that choose latents, emulated on the CPU by rounding their factors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nullsae.config.compute import Compute, ComputeKey, Precise, precision_on
from nullsae.config.saes import ARCHITECTURES, Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae import kernels
from nullsae.sae.architectures.batch_topk import batch_top_k
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.initialization import initialize
from nullsae.sae.kernels import Hits, differing_share, encode_top_k, top_k_in_two_stages
from nullsae.sae.trainer import Trainer, evaluate

# The effect of `compute.precision: bfloat16` and `tf32`, as described in docs/training.md.
LOW = {"topk": "bfloat16", "batch_topk": "bfloat16", "matryoshka": "bfloat16"}
LOW |= {"jumprelu": "float32", "gated": "tf32", "standard": "tf32"}


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, "precision", key, *shape))


# --- the choice --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "k"), [(8, 3), (64, 4), (1000, 7), (4096, 32), (4099, 32)])
def test_two_stages_find_the_k_largest(width: int, k: int, dtype: torch.dtype) -> None:
    pre = randn(40, width, key="pre").to(dtype)
    values, columns = top_k_in_two_stages(pre, k)
    assert torch.equal(values, pre.gather(1, columns))
    assert all(len(set(row)) == k for row in columns.tolist())
    # bfloat16 has many ties, so only the values are defined.
    expected = np.sort(pre.float().numpy(), axis=1)[:, -k:]
    assert np.array_equal(np.sort(values.float().numpy(), axis=1), expected)


def test_two_stages_take_a_batch_without_tokens() -> None:
    """As `Autoencoder.encode` does on a CPU, which selects otherwise."""
    values, columns = top_k_in_two_stages(torch.empty(0, 4099), 32)
    assert values.shape == columns.shape == (0, 32)


def test_two_stages_pass_no_nan_over_and_stay_inside_a_row_of_infinities() -> None:
    pre = torch.full((3, 403), -math.inf)
    pre[0, 402] = math.nan
    pre[1, 5] = 1.0
    values, columns = top_k_in_two_stages(pre, 2)
    assert values[0].isnan().any()
    assert 1.0 in values[1]
    assert int(columns.max()) < 403


def emulated(x: Tensor, w_enc: Tensor, b_enc: Tensor) -> np.ndarray:
    """Emulate a tensor core's pre-activations in numpy: rounded factors, exact sums, rounded."""
    factors = [t.bfloat16().double().numpy() for t in (x, w_enc, b_enc)]
    sums = factors[0] @ factors[1].T + factors[2]
    return torch.from_numpy(sums).bfloat16().double().numpy()


def inputs(n_tokens: int, n_latents: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    w_enc = F.normalize(randn(n_latents, d, key="w"), dim=1)
    return randn(n_tokens, d, key="x"), w_enc, 0.1 * randn(n_latents, key="b")


def test_candidates_of_the_product_are_ranked_again_in_float32() -> None:
    x, w_enc, b_enc = inputs(64, 500, 24)
    k = 8
    values, indices = encode_top_k(x, w_enc, b_enc, k, "bfloat16")
    low, exact = emulated(x, w_enc, b_enc), (x.double() @ w_enc.double().T + b_enc.double()).numpy()
    for row in range(64):
        found = set(indices[row].tolist())
        # Among the ten largest of the product (or as large), the eight that are largest.
        tenth = np.sort(low[row])[-10]
        candidates = np.flatnonzero(low[row] >= tenth * (1 - 2**-8))
        assert found <= set(candidates.tolist())
        sure = np.flatnonzero(low[row] > tenth * (1 + 2**-8))
        lost = [c for c in sure if c not in found]
        assert all(exact[row, c] <= exact[row, list(found)].min() + 1e-6 for c in lost)
    torch.testing.assert_close(
        values.double(), torch.from_numpy(exact).gather(1, indices).relu(), rtol=1e-6, atol=1e-6
    )


def test_the_hits_of_a_batch_are_exact_values_and_nearly_the_exact_choice() -> None:
    x, w_enc, b_enc = inputs(64, 500, 24)
    hits = batch_top_k(x, w_enc, b_enc, 512, "bfloat16")
    exact = batch_top_k(x, w_enc, b_enc, 512)
    assert len(hits.values) == 512
    pre = x.double() @ w_enc.double().T + b_enc.double()
    torch.testing.assert_close(
        hits.values.double(), pre[hits.tokens, hits.latents], rtol=1e-6, atol=1e-6
    )
    assert differing_share(hits, exact, 500) < 0.01


def test_the_share_of_differing_choices_is_what_counting_gives() -> None:
    found = Hits.of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[4, 5], [6, 7]]))
    exact = Hits.of(torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[5, 9], [4, 7]]))
    # (0, 4), (0, 5) and (1, 6) fire; only (0, 5) is among the exact ones.
    assert differing_share(found, exact, 10) == pytest.approx(2 / 3)
    assert differing_share(exact, exact, 10) == 0.0


@pytest.mark.parametrize("k", [4, 32])
def test_few_choices_differ_and_fewer_than_without_spare_candidates(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w_enc, b_enc = inputs(200, 2048, 64)
    exact = Hits.of(*encode_top_k(x, w_enc, b_enc, k))
    shares = {}
    for spare in (1.0, kernels.CANDIDATES):
        monkeypatch.setattr(kernels, "CANDIDATES", spare)
        found = Hits.of(*encode_top_k(x, w_enc, b_enc, k, "bfloat16"))
        shares[spare] = differing_share(found, exact, 2048)
    assert 0 < shares[1.0] < 0.05
    assert shares[kernels.CANDIDATES] < 0.2 * shares[1.0]


# --- gradients ---------------------------------------------------------------------------------


def trainer(name: str, precision: Precise, *, dtype: torch.dtype = torch.float32) -> Trainer:
    n_latents, d, k = 60, 20, 4
    rows = F.normalize(randn(n_latents, d, key="sae"), dim=1).to(dtype)
    bias, b_dec = 0.1 * randn(n_latents, key="bias").to(dtype), randn(d, key="b_dec").to(dtype)
    start = Autoencoder("topk", rows.clone(), bias, rows, b_dec, k=k)
    own = {"n_latents": n_latents} | ({} if LOW[name] == "tf32" else {"k": k})
    return Trainer(Sae.of(architecture=name, **own), 100, start, k=k, precision=precision)


@pytest.mark.parametrize("name", ["topk", "batch_topk"])
def test_gradients_are_exact_for_the_latents_that_low_precision_chose(name: str) -> None:
    """Compared with autograd in float64 on those latents, as a dense mask."""
    model = trainer(name, "bfloat16").model
    x = randn(80, 20, key="batch") + 0.5
    hits = model.chosen(x - model.b_dec, "bfloat16")
    mask = torch.zeros(80, 60, dtype=torch.float64)
    mask[hits.tokens, hits.latents] = 1.0
    found, losses = model.gradients(x, torch.zeros(60, dtype=torch.bool))
    weights = [t.detach().double().requires_grad_() for t in model.parameters.values()]
    w_enc, b_enc, w_dec, b_dec = weights
    exact = x.double()
    code = ((exact - b_dec) @ w_enc.T + b_enc).relu() * mask
    scale = (exact - exact.mean(dim=0)).square().sum()
    loss = (exact - code @ w_dec - b_dec).square().sum() / scale
    gradients = torch.autograd.grad(loss, weights)
    assert losses.fvu == pytest.approx(float(loss), rel=1e-5)
    for key, expected in zip(model.parameters, gradients, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found[key].double(), expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_says_what_low_precision_is_for(name: str) -> None:
    assert trainer(name, "bfloat16").model.precision == LOW[name]
    assert trainer(name, "float32").model.precision == "float32"
    known = LOW[name] != "float32"
    assert trainer(name, "tf32").model.precision == ("tf32" if known else "float32")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_of_dense_architectures_alone_are_in_tensorfloat(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(name, "bfloat16")
    seen: list[str] = []
    gradients = made.model.gradients

    def spied(*arguments: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return gradients(*arguments)

    monkeypatch.setattr(made.model, "gradients", spied)
    made.train_step(randn(80, 20, key="batch"))
    assert seen == ["high" if LOW[name] == "tf32" else "highest"]
    assert torch.get_float32_matmul_precision() == "highest"
    share = made.differing_choices(randn(80, 20, key="batch"))
    assert (share is None) == (LOW[name] != "bfloat16")


# --- quality -----------------------------------------------------------------------------------


def learned(seed: int, precision: Precise) -> dict[str, float]:
    """Return FVU, dead share and mean max cosine after 250 steps on planted directions."""
    d, n_true, n_latents, k = 24, 48, 64, 3
    generator = torch_generator(seed, "precision", "planted")
    truth = F.normalize(torch.randn(n_true, d, generator=generator), dim=1)

    def tokens(n: int) -> Tensor:
        drawn = torch.rand(n, n_true, generator=generator).topk(k, dim=1).indices
        size = torch.rand(n, k, generator=generator) + 0.5
        x = F.embedding_bag(drawn, truth, per_sample_weights=size, mode="sum")
        return (x + 0.02 * torch.randn(n, d, generator=generator)) * math.sqrt(d / 3)

    recipe = Sae.of(n_latents=n_latents, k=k, batch_tokens=128, lr=5e-3, dead_after_tokens=3_000)
    start = initialize(tokens(512), n_latents=n_latents, k=k, generator=generator)
    trained = Trainer(recipe, 250, start, k=k, precision=precision)
    for _ in range(250):
        trained.train_step(tokens(128))
    heldout = evaluate(trained.sae, tokens(2000))
    cosine = (truth @ F.normalize(trained.sae.w_dec, dim=1).T).amax(dim=1)
    return {
        "fvu": 1.0 - heldout["heldout_explained_variance"],
        "dead": 1.0 - heldout["heldout_alive_share"],
        "cosine": float(cosine.mean()),
        "differing": trained.differing_choices(tokens(1000)) or 0.0,
    }


@pytest.mark.slow
def test_bfloat16_learns_what_float32_does_within_the_noise_of_seeds() -> None:
    found = {
        precision: [learned(seed, precision) for seed in range(3)]
        for precision in ("float32", "bfloat16")
    }
    for name, least in (("fvu", 0.002), ("dead", 0.02), ("cosine", 0.005)):
        exact = np.array([row[name] for row in found["float32"]])
        low = np.array([row[name] for row in found["bfloat16"]])
        # Twice the standard error of a difference of two means of three.
        noise = 2 * exact.std(ddof=1) * math.sqrt(2 / 3)
        assert abs(low.mean() - exact.mean()) <= max(least, noise), (name, exact, low)
    assert np.mean([row["cosine"] for row in found["float32"]]) > 0.9  # it was learned at all
    assert [row["differing"] for row in found["float32"]] == [0.0] * 3
    assert all(row["differing"] < 0.005 for row in found["bfloat16"])


# --- memory ------------------------------------------------------------------------------------


class Made(TorchDispatchMode):
    """Record the types of large tensors, and the size of the largest one of 4 or 8 bytes."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.types = large, set[torch.dtype]()
        self.most_wide = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                if leaf.numel() >= self.large:
                    self.types.add(leaf.dtype)
                if leaf.itemsize >= 4:
                    self.most_wide = max(self.most_wide, leaf.numel())
        return made


def test_no_tensor_of_tokens_by_latents_is_float32_or_sorted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The operations of a GPU, on the CPU, whose bfloat16 products are real but slow."""
    monkeypatch.setattr(kernels, "has_tensor_cores", lambda _: True)
    monkeypatch.setattr(kernels, "rows_at_once", lambda *_: 16)
    x, w_enc, b_enc = inputs(48, 4096, 8)
    k, ranked = 8, list[int]()
    topk = torch.topk

    def counted(given: Tensor, *arguments: Any, **keys: Any) -> Any:
        ranked.append(given.shape[1])
        return topk(given, *arguments, **keys)

    monkeypatch.setattr(torch, "topk", counted)
    with Made(16 * 4096) as made:
        values, indices = encode_top_k(x, w_enc, b_enc, k, "bfloat16")
    assert made.types == {torch.bfloat16}
    # sqrt(4096 / 10) = 20 columns in a group: 204 maxima, then the 10 x 21 of the groups chosen.
    assert sorted(set(ranked)) == [204, 210]
    # Columns of the candidates of a chunk, or the weights themselves.
    assert made.most_wide <= max(16 * 210, 48 * 10, w_enc.numel())
    exact = Hits.of(*encode_top_k(x, w_enc, b_enc, k))
    assert differing_share(Hits.of(values, indices), exact, 4096) < 0.02


# --- the config --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "on_cuda", "on_cpu"),
    [
        ("auto", "bfloat16", "float32"),
        ("float32", "float32", "float32"),
        ("tf32", "tf32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_precision_by_device(precision: Any, on_cuda: str, on_cpu: str) -> None:
    assert precision_on(precision, "cuda") == on_cuda
    assert precision_on(precision, "cpu") == on_cpu


def test_only_the_training_of_saes_depends_on_the_precision() -> None:
    from nullsae.jobs.activations import CacheActivationsParams

    given = ComputeKey(threads=2, device="cpu", precision="bfloat16")
    keys: dict[str, Any] = {"sites": ("resid_post.0",), "seed": 0, "dtype": "float32"}
    keys |= {"shard_tokens": 64, "batch_contexts": 8, "key": "key"}
    job = CacheActivationsParams(**keys, compute=given)
    assert job.compute == Compute(threads=2, device="cpu")
    assert "precision" not in job.model_dump_json()
