"""The Triton kernels without a GPU: interpreted and compared with PyTorch, and compiled."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import nullsae
from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import PARAMETERS, Autoencoder
from nullsae.sae.kernels import Hits, HitsByLatent
from peers import need_peers, run_with_peers

pytestmark = pytest.mark.slow
PRODUCTS = ("decode", "dot_rows", "row_gradient", "bias_gradient")
WINDOW_HITS = 32
UNEVEN = {1: 3, 2: 90, 4: 32, 5: 33, 6: 1, 8: 67, 9: 40, 10: 5}
KERNELS = ("decode", "dot_rows", "long_parts", "row_gradient")


def randn(*shape: int, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, "triton", name), dtype=dtype)


def case(matrix: Tensor, d: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return hits at the nonzeros of a matrix [tokens, n_latents], float64 rounded to `dtype`."""
    n_tokens, n_latents = matrix.shape
    token, latent = matrix.nonzero(as_tuple=True)
    counts = torch.bincount(token, minlength=n_tokens)
    return {
        "values": matrix[token, latent].to(torch.float32).to(torch.float64),
        "latents": latent,
        "offsets": counts.cumsum(0) - counts,
        "rows": randn(n_latents, d, name="rows").to(dtype).to(torch.float64),
        "dense": randn(n_tokens, d, name="dense").to(dtype).to(torch.float64),
    }


def sparse(n_tokens: int, n_latents: int, share: float) -> Tensor:
    chosen = torch.rand(n_tokens, n_latents, generator=torch_generator(0, "triton", "chosen"))
    return randn(n_tokens, n_latents, name="matrix") * (chosen < share)


def same_k() -> Tensor:
    """Return four hits per token."""
    scores = randn(19, 30, name="scores")
    return torch.zeros_like(scores).scatter(1, scores.topk(4, dim=1).indices, scores)


def ragged() -> Tensor:
    """Return tokens with no hits (also at both ends) and with many; latents likewise."""
    matrix = sparse(21, 40, 0.2)
    matrix[5] = randn(40, name="full token")
    matrix[[0, 7, 8, 20]] = 0.0
    matrix[:, [0, 1, 25, 39]] = 0.0
    return matrix


def uneven() -> Tensor:
    """Return latents with more hits than a window (of 32), fewer, equally many, one more, none."""
    matrix = torch.zeros(90, 12, dtype=torch.float64)
    for latent, hits in UNEVEN.items():
        matrix[torch.arange(hits) * 90 // hits, latent] = 1.0
    return matrix * randn(90, 12, name="uneven")


def bordering_on_infinity() -> dict[str, Tensor]:
    """Return ragged hits where unused entries must not be multiplied, not even by 0."""
    given = case(ragged(), 7)
    given["rows"][0] = given["dense"][0] = torch.inf
    return given


CASES = {
    "same_k": case(same_k(), 20),
    "ragged": bordering_on_infinity(),
    "uneven": case(uneven(), 3),
    "wide": case(sparse(6, 9, 0.4), 1100),
    "one": case(torch.tensor([[2.0]]), 1),
    "empty": case(torch.zeros(3, 4), 5),
}
# name: of a case, type of values, type of rows and dense vectors
RUNS: dict[str, tuple[str, torch.dtype, torch.dtype]] = {
    **{name: (name, torch.float64, torch.float64) for name in CASES},
    "uneven-float32": ("uneven", torch.float32, torch.float32),
    "wide-float32": ("wide", torch.float32, torch.float32),
    "ragged-bfloat16": ("ragged", torch.float32, torch.bfloat16),
    "wide-bfloat16": ("wide", torch.bfloat16, torch.bfloat16),
}


def of_types(run: str) -> dict[str, Tensor]:
    name, values, rows = RUNS[run]
    types = {"values": values, "rows": rows, "dense": rows}
    return {key: tensor.to(types.get(key, tensor.dtype)) for key, tensor in CASES[name].items()}


def step() -> dict[str, Tensor]:
    """Return weights of a TopK SAE, activations and dead latents, in float64."""
    n_latents, d = 30, 6
    weights = (
        randn(n_latents, d, name="w_enc"),
        randn(n_latents, name="b_enc") * 0.1,
        F.normalize(randn(n_latents, d, name="w_dec"), dim=1),
        randn(d, name="b_dec") * 0.5,
    )
    dead = torch.arange(n_latents) % 3 == 0
    x = randn(20, d, name="x") + 1.0
    return {**dict(zip(PARAMETERS, weights, strict=True)), "x": x, "dead": dead}


def side(mode: str, folder: Path, **environment: str) -> None:
    """Run `triton_side.py` with the Python that has Triton."""
    need_peers("Triton")
    ours = str(Path(nullsae.__file__).parents[1])
    more = {"PYTHONPATH": ours, "TRITON_CACHE_DIR": str(folder / "cache"), **environment}
    run_with_peers(Path(__file__).with_name("triton_side.py"), mode, folder, **more)


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the kernels' results."""
    folder = tmp_path_factory.mktemp("triton")
    for name in ("cases", "found"):
        (folder / name).mkdir()
    for run in RUNS:
        save_file(of_types(run), folder / "cases" / f"{run}.safetensors")
    save_file(step(), folder / "step.safetensors")
    side("interpret", folder, TRITON_INTERPRET="1")
    return folder / "found"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("triton_compiled")
    side("compile", folder)
    found: dict[str, Any] = json.loads((folder / "compiled.json").read_text())
    return found


def by_pytorch(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute the same products by `kernels` on the CPU."""
    values, rows, dense = given["values"], given["rows"], given["dense"]
    hits = Hits(values, given["latents"], given["offsets"])
    by_latent = HitsByLatent(hits, len(rows))
    return {
        "decode": hits.decode(rows),
        "dot_rows": hits.dot_rows(dense, rows),
        "row_gradient": by_latent.row_gradient(values, dense),
        "bias_gradient": by_latent.bias_gradient(values, len(dense))[:, None],
    }


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("run", RUNS)
def test_a_kernel_equals_pytorch(interpreted: Path, run: str, product: str) -> None:
    _, values, rows = RUNS[run]
    given, found = of_types(run), load_file(interpreted / f"{run}.safetensors")[product]
    exact = {key: t.double() if t.is_floating_point() else t for key, t in given.items()}
    factors = {"dot_rows": (rows, rows), "bias_gradient": (values, values)}
    wider = torch.promote_types(*factors.get(product, (values, rows)))
    assert found.dtype == wider
    # In bfloat16 only the result is rounded, which the interpreter rounds towards 0.
    rtol, atol = {
        torch.float64: (1e-13, 1e-13),
        torch.float32: (1e-5, 1e-5),
        torch.bfloat16: (2**-7, 1e-5),
    }[wider]
    torch.testing.assert_close(found.double(), by_pytorch(exact)[product], rtol=rtol, atol=atol)


def test_the_cases_hold_what_they_are_for() -> None:
    counts = {
        name: (
            torch.bincount(given["latents"], minlength=len(given["rows"])),
            Hits(given["values"], given["latents"], given["offsets"]).tokens.bincount(),
        )
        for name, given in CASES.items()
    }
    latents, tokens = counts["ragged"]
    assert [int(latents[i]) for i in (0, 1, 25, 39)] == [0, 0, 0, 0]
    assert int(tokens[5]) == 36
    assert int(tokens.min()) == 0
    assert len(CASES["ragged"]["offsets"]) == len(tokens) + 1  # the last one has none either
    latents, _ = counts["uneven"]
    assert latents.tolist() == [UNEVEN.get(latent, 0) for latent in range(12)]
    assert int(latents.sum()) % WINDOW_HITS  # the last window is not full
    assert len(CASES["empty"]["values"]) == 0


def test_no_tensor_of_hits_by_dimensions_is_built(interpreted: Path) -> None:
    for run in ("uneven", "wide", "same_k"):
        given = CASES[run]
        n_hits, d = len(given["values"]), given["rows"].shape[1]
        matrices = max(len(given["rows"]), len(given["dense"])) * d
        partial_sums = 2 * d * -(-n_hits // WINDOW_HITS)
        largest = load_file(interpreted / f"{run}.safetensors")["largest"]
        # Indices are hits by two, and all numbers of these runs have 8 bytes.
        assert int(largest) <= 8 * max(matrices, partial_sums, 2 * n_hits) < 8 * n_hits * d


def test_addresses_do_not_wrap_at_32_bits(interpreted: Path) -> None:
    found = load_file(interpreted / "far.safetensors")
    assert found["decode"].tolist() == [[741.0, 852.0, 963.0, 0.0]]
    assert found["dot_rows"].tolist() == [321.0, 654.0, 987.0]


def test_a_gradient_of_topk_is_the_same_by_the_kernels(interpreted: Path) -> None:
    given, found = step(), load_file(interpreted / "step.safetensors")
    sae = Autoencoder.of(given, "topk", 3)
    recipe = Sae.of(n_latents=sae.n_latents, k=3, auxk_k=1, auxk_coefficient=0.5)
    model = recipe.training()(recipe, 3, sae)
    expected, losses = model.gradients(given["x"], given["dead"])
    assert set(found) == {*expected, "losses"}
    for name, gradient in expected.items():
        assert float(gradient.abs().max()) > 1e-3
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)
    assert found["losses"].tolist() == pytest.approx([losses.fvu, losses.auxk], rel=1e-12)
    assert losses.auxk > 0


def test_every_kernel_compiles(compiled: dict[str, Any]) -> None:
    targets = ("bf16-80", "fp32-90")
    assert set(compiled) == {f"{kernel}-{target}" for kernel in KERNELS for target in targets}
    assert all(".entry" in found["ptx"] for found in compiled.values())


def test_the_order_of_additions_is_fixed(compiled: dict[str, Any]) -> None:
    for name, found in compiled.items():
        assert not re.search(r"\b(atom|red)\.", found["ptx"]), name


def test_a_kernel_stays_in_registers_and_reads_16_bytes_at_a_time(compiled: dict[str, Any]) -> None:
    """At d = 4096 rows are read 16 bytes at a time, and everything stays in registers."""
    for name, found in compiled.items():
        assert found["spilled_bytes"] == 0, name
        assert found["registers"] <= 128, name
        assert re.search(r"ld\.global\.v4\.b32", found["ptx"]), name
