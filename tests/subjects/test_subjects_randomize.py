from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from nullsae.config.randomization import Settings
from nullsae.config.variants import VARIANTS
from nullsae.core.randomness import seed_of, torch_generator
from nullsae.subjects import gates
from nullsae.subjects.changes import (
    MATCHED,
    PERMUTED,
    REDRAWN,
    Draw,
    embedding_parameters,
    haar_frame,
    initial_parameters,
    norm_parameters,
    randomize,
)

torch.set_num_threads(1)
redraw, permute, match_spectrum = REDRAWN.new, PERMUTED.new, MATCHED.new
N_LAYERS, D_MODEL, VOCAB = 3, 16, 96
OWN_SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": N_LAYERS, "n_embd": D_MODEL, "n_head": 2, "n_positions": 32},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": D_MODEL},
    "llama": {"num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 8},
}
KINDS = [(kind, tied) for kind in OWN_SIZES for tied in (False, True)]
INPUTS = {
    "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
    "gpt_neox": {"gpt_neox.embed_in.weight"},
    "opt": {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"},
}
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANDOM = sorted(name for name, variant in VARIANTS.items() if variant.changes_weights)
NORM_POLICY = [v for v in RANDOM if v not in ("fresh_init", *(v for v in RANDOM if "ed_emb" in v))]
KEYS: dict[str, Any] = {"seed": 0, "subject": "tiny", "draw": 0}


@cache
def untrained(kind: str, tied: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    plain = {
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    }
    sizes = {**({} if kind == "gpt2" else plain), **OWN_SIZES[kind], **ends, "vocab_size": VOCAB}
    config = AutoConfig.for_model(kind, **sizes, pad_token_id=1, tie_word_embeddings=tied)
    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def trained_values(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return values like those of training: heavy tails, common means, a dominant direction."""
    x = torch.randn(shape, generator=generator) * 0.2
    kind = int(torch.randint(4, (1,), generator=generator))
    if len(shape) == 1:
        if kind == 0:
            x = 1 + 0.05 * x
        elif kind == 1:
            x[int(torch.randint(len(x), (1,), generator=generator))] = 30.0
    elif kind == 0:
        x = x + torch.randn(shape[-1], generator=generator)
    elif kind == 1:
        rows, columns = (torch.randn(n, generator=generator) for n in shape)
        x = 0.1 * x + torch.outer(rows, columns)
    elif kind == 2:
        x = 10 * x**3
    return x


def model_of(kind: str, tied: bool, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    return deepcopy(as_trained(kind, tied, dtype, seed))


@lru_cache(maxsize=1)
def as_trained(kind: str, tied: bool, dtype: torch.dtype, seed: int) -> Any:
    model = deepcopy(untrained(kind, tied))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch_generator(seed, "test", kind, name)
            parameter.copy_(trained_values(parameter.shape, generator))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@dataclass(frozen=True)
class Case:
    """A subject of the property tests, and the keys of its randomization."""

    kind: str
    tied: bool
    dtype: torch.dtype
    seed: int
    draw: int
    norms: str

    def model(self) -> Any:
        return model_of(self.kind, self.tied, self.dtype, self.seed)

    def run(self, variant: str, **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """Return parameters before and after, and the changes."""
        model = changes.pop("model", None) or self.model()
        before = gates.state(model)
        keys: dict[str, Any] = {"seed": self.seed, "subject": "tiny", "draw": self.draw}
        settings = {"norm_parameters": self.norms if variant in NORM_POLICY else None}
        settings |= {key: changes.pop(key) for key in [*changes] if key in Settings.model_fields}
        found = randomize(model, variant, Settings(**settings), **{**keys, **changes})
        return before, gates.state(model), found


CASES = st.builds(
    Case,
    kind=st.sampled_from(sorted(OWN_SIZES)),
    tied=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    draw=st.integers(0, 5),
    norms=st.sampled_from(["keep", "rerandomize"]),
)


def few(n: int) -> Callable[[Any], Any]:
    return settings(max_examples=n, deadline=None)


def exact(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


def same_entries(a: Tensor, b: Tensor) -> bool:
    return np.array_equal(np.sort(exact(a), axis=None), np.sort(exact(b), axis=None))


def spectra_apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of singular values, as a share of the largest."""
    one, other = (np.linalg.svd(exact(x), compute_uv=False) for x in (a, b))
    return float(np.abs(one - other).max() / one.max())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(exact(a).ravel(), exact(b).ravel())[0, 1])


def redrawn(tensor: Tensor, name: str = "w", purpose: str = "rerandomize", **keys: Any) -> Tensor:
    key = {**KEYS, **keys}
    generator = torch_generator(key["seed"], purpose, key["subject"], key["draw"], name)
    return redraw(tensor, generator)


# ---- What each variant keeps and what it does not


@given(mean=st.floats(-5, 5), std=st.floats(0.01, 10), draw=st.integers(0, 10**6))
@few(25)
def test_moments_stay_within_six_standard_errors(mean: float, std: float, draw: int) -> None:
    original = torch.rand(64, 64, generator=torch.Generator().manual_seed(draw)) * std + mean
    new = redrawn(original, draw=draw).double()
    n, variance = original.numel(), float(original.double().var(correction=0))
    assert abs(float(new.mean() - original.double().mean())) < 6 * math.sqrt(variance / n)
    assert abs(float(new.var()) - variance) < 6 * variance * math.sqrt(2 / n)


@given(case=CASES)
@few(12)
def test_rerandomized_weights_keep_two_moments_and_nothing_else(case: Case) -> None:
    before, after, changes = case.run("rerandomized")
    assert set(changes.values()) == {REDRAWN}
    for name in changes:
        old, new = before[name].double(), after[name].double()
        n, std = old.numel(), float(old.std(correction=0))
        # A rounded entry is off by at most half the distance of its neighbours.
        rounding = torch.finfo(case.dtype).eps * float(old.square().mean().sqrt())
        assert abs(float(new.mean() - old.mean())) < 6 * std / math.sqrt(n) + rounding / 2
        if n >= 256:
            spread = 6 * math.sqrt(2 / n) * std**2 + rounding**2
            assert abs(float(new.var()) - std**2) < spread
            assert abs(correlation(old, new)) < 6 / math.sqrt(n)
            assert not same_entries(old, new)


@given(case=CASES)
@few(12)
def test_permuted_weights_keep_their_entries_and_lose_their_spectrum(case: Case) -> None:
    before, after, changes = case.run("permuted_weights")
    for name in changes:
        old, new = before[name], after[name]
        assert same_entries(old, new), name
        assert not torch.equal(old, new), name
        if old.ndim == 2:
            assert spectra_apart(old, new) > 1e-3, name


@given(case=CASES)
@few(12)
def test_matched_weights_keep_their_spectrum_and_lose_their_entries(case: Case) -> None:
    before, after, changes = case.run("spectrum_matched")
    for name, change in changes.items():
        old, new = before[name], after[name]
        if old.ndim == 1:
            # The singular values of diag(gain) are its entries, those of a column its norm.
            assert change is PERMUTED
            assert same_entries(old, new), name
            continue
        assert change is MATCHED
        # Only one rounding to the subject's precision.
        assert spectra_apart(old, new) < math.sqrt(old.numel()) * torch.finfo(case.dtype).eps
        assert not same_entries(old, new), name
        assert abs(correlation(old, new)) < 20 / math.sqrt(old.numel()), name


@given(case=CASES, first=st.integers(0, N_LAYERS - 1))
@few(12)
def test_the_cascade_redraws_its_first_block_and_later_ones_alone(case: Case, first: int) -> None:
    before, after, changes = case.run("cascade", first_random_block=first)
    blocks = BLOCKS.get(case.kind, "model.layers")
    for name, old in before.items():
        layer = int(name.removeprefix(f"{blocks}.").split(".")[0]) if blocks in name else -1
        norm = any(part.startswith("ln_") or "norm" in part for part in name.split("."))
        redone = layer >= first and not (norm and case.norms == "keep")
        assert (name in changes) == redone, name
        assert torch.equal(old, after[name]) == (not redone), name
        if redone and old.numel() >= 256:
            errors = abs(float(after[name].double().mean() - old.double().mean()))
            assert errors < 6 * float(old.double().std()) / math.sqrt(old.numel()), name


def only_the_table(case: Case, variant: str) -> tuple[Tensor, Tensor]:
    """Return the input embedding before and after; nothing else may change, and ties must hold."""
    model = case.model()
    table = model.get_input_embeddings().weight
    name = next(name for name, p in model.named_parameters() if p is table)
    before, after, changes = case.run(variant, model=model)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {name} == set(changes)
    assert model.get_input_embeddings().weight is table
    assert (model.get_output_embeddings().weight is table) == case.tied
    return before[name], after[name]


@given(case=CASES)
@few(12)
def test_permuted_embeddings_keep_their_rows_and_lose_their_order(case: Case) -> None:
    old, new = only_the_table(case, "permuted_embeddings")
    rows = [Counter(tuple(row) for row in table.tolist()) for table in (old, new)]
    assert rows[0] == rows[1]
    in_place = int((old == new).all(dim=1).sum())
    assert in_place < 12  # their number is Poisson(1): P(12 or more) is 8e-10


@given(case=CASES)
@few(12)
def test_rotated_embeddings_keep_norms_and_angles_and_lose_directions(case: Case) -> None:
    old, new = (exact(table) for table in only_the_table(case, "rotated_embeddings"))
    unit_roundoff = torch.finfo(case.dtype).eps / 2
    norms = np.linalg.norm(old, axis=1)
    allowed = np.outer(norms, norms) * (3 * unit_roundoff + 1e-12)
    assert (np.abs(new @ new.T - old @ old.T) <= allowed).all()
    assert (np.linalg.norm(new - old, axis=1) > 0.1 * norms).all()
    # It is a single rotation of all rows, which can be recovered from them.
    q = np.linalg.lstsq(old, new, rcond=None)[0]
    assert np.abs(old @ q - new).max() <= 4 * unit_roundoff * norms.max() + 1e-12


@given(case=CASES)
@few(8)
def test_a_fresh_model_is_what_from_config_makes_without_the_weights(case: Case) -> None:
    from transformers import AutoModelForCausalLM

    before, after, changes = case.run("fresh_init")
    assert set(changes) == set(before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(case.seed, "fresh_init", "tiny", case.draw))
        config = deepcopy(untrained(case.kind, case.tied).config)
        expected = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in expected.named_parameters():
        assert torch.equal(after[name], parameter.detach().to(case.dtype)), name
        assert not torch.equal(after[name], before[name]), name


def test_a_fresh_model_is_drawn_in_float32_and_leaves_the_config_as_it_is() -> None:
    model = model_of("llama", False, torch.bfloat16)
    model.config.dtype = torch.bfloat16
    drawn = initial_parameters(model, Draw(purpose="fresh_init", **KEYS))
    assert {tensor.dtype for tensor in drawn.values()} == {torch.float32}
    assert model.config.dtype == torch.bfloat16
    assert not all(torch.equal(t, t.bfloat16().float()) for t in drawn.values())


@given(case=CASES, variant=st.sampled_from(RANDOM))
@few(24)
def test_a_draw_repeats_itself_and_no_other(case: Case, variant: str) -> None:
    """It depends neither on the order of the parameters nor on the global generator."""
    _, after, changes = case.run(variant)
    model = case.model()
    names = [name for name, _ in model.named_parameters()]
    backwards = list(reversed(list(model.named_parameters())))
    model.named_parameters = lambda *_, **__: iter(backwards)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        state = torch.get_rng_state()
        _, again, _ = case.run(variant, model=model)
        assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert list(again) == names[::-1]
    assert all(torch.equal(after[name], again[name]) for name in names)
    for other in ({"draw": case.draw + 1}, {"seed": case.seed + 1}, {"subject": "other"}):
        _, others, _ = case.run(variant, **other)
        for name in changes:
            fixed = variant == "fresh_init" and len(after[name].unique()) == 1
            # A short vector has few orders to choose from, and so does one with few values.
            if not fixed and len(after[name].unique()) >= 10:
                assert not torch.equal(after[name], others[name]), (name, other)


@given(case=CASES, variant=st.sampled_from(NORM_POLICY))
@few(12)
def test_the_norm_policy_keeps_the_norms_and_nothing_else(case: Case, variant: str) -> None:
    changed = {}
    for policy in ("keep", "rerandomize"):
        before, after, found = case.run(variant, norm_parameters=policy)
        changed[policy] = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed[policy] == set(found)
    norms = norm_parameters(case.model())
    assert changed["rerandomize"] - changed["keep"] == norms & changed["rerandomize"] != set()


@given(case=CASES, variant=st.sampled_from(RANDOM))
@few(16)
def test_ties_buffers_and_dtypes_stay_as_they_are(case: Case, variant: str) -> None:
    model = case.model()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before, after, _ = case.run(variant, model=model)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    inner, outer = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inner is outer) == case.tied
    assert gates.inventory(before, after)["passed"]
    assert {tensor.dtype for tensor in after.values()} == {case.dtype}


# ---- Names


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_keep_embeddings_keeps_every_embedding_and_nothing_else(kind: str, tied: bool) -> None:
    """Positions that are looked up are part of the input embedding, as in the paper's code."""
    model = model_of(kind, tied)
    embeddings = INPUTS.get(kind, {"model.embed_tokens.weight"})
    if not tied:
        embeddings = embeddings | {"lm_head.weight"}
    assert embedding_parameters(model) == embeddings
    names = {name for name, _ in model.named_parameters()}
    changes = VARIANTS["rerandomized_keep_embeddings"].changes(model, Settings())
    assert names - set(changes) == embeddings


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_the_norm_policy_takes_every_norm_and_nothing_else(kind: str, tied: bool) -> None:
    model = model_of(kind, tied)
    by_hand = {
        name
        for name, _ in model.named_parameters()
        if any(part.startswith("ln_") or "norm" in part for part in name.split("."))
    }
    per_norm = 2 if kind in ("gpt2", "gpt_neox", "opt") else 1
    per_block = {"qwen3": 4, "gemma3_text": 6}.get(kind, 2)
    assert len(by_hand) == per_norm * (per_block * N_LAYERS + 1)
    assert norm_parameters(model) == by_hand


def test_only_the_rerandomized_variants_share_their_random_numbers() -> None:
    purposes = {name: VARIANTS[name].purpose or name for name in RANDOM}
    shared = [v for v, purpose in purposes.items() if purpose == "rerandomize"]
    assert shared == ["rerandomized", "rerandomized_keep_embeddings"]
    assert len(set(purposes.values())) == len(purposes) - 1
    case = Case("gpt_neox", False, torch.float32, 0, 0, "rerandomize")
    _, one, changes = case.run("cascade")
    _, other, _ = case.run("rerandomized")
    assert all(not torch.equal(one[name], other[name]) for name in changes)


def test_the_purpose_of_a_generator_is_the_published_one() -> None:
    """The published bits of a draw depend on its key."""
    original = model_of("gpt2", True)
    model = model_of("gpt2", True)
    randomize(model, "rerandomized", **KEYS)
    for name, parameter in original.named_parameters():
        assert torch.equal(model.get_parameter(name), redrawn(parameter, name)), name


# ---- Single tensors


def test_entries_are_new_normals_and_no_permutation_of_the_original() -> None:
    """`permuted_weights` keeps the multiset; `rerandomized` must not (the paper, section 3)."""
    original = torch.rand(100, 100, generator=torch.Generator().manual_seed(0)) ** 4
    new = redrawn(original)
    assert not torch.equal(new.flatten().sort().values, original.flatten().sort().values)
    z = (new.double() - new.double().mean()) / new.double().std()
    # A normal has skewness 0 and kurtosis 3 (standard errors sqrt(6/n), sqrt(24/n)).
    assert abs(float((z**3).mean())) < 6 * math.sqrt(6 / z.numel())
    assert abs(float((z**4).mean()) - 3) < 6 * math.sqrt(24 / z.numel())


def test_a_draw_depends_on_its_seed_subject_draw_and_name() -> None:
    class One(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            values = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
            self.register_parameter(name, nn.Parameter(values))

    def drawn(name: str = "w", **keys: Any) -> Tensor:
        model = One(name)
        randomize(model, "rerandomized", **{**KEYS, **keys})
        return model.get_parameter(name).detach()

    first = drawn()
    assert torch.equal(drawn(), first)
    assert not torch.equal(drawn("v"), first)
    for other in ({"seed": 1}, {"subject": "other"}, {"draw": 1}):
        assert not torch.equal(drawn(**other), first), other


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1])
def test_a_constant_tensor_stays_as_it_is(constant: float) -> None:
    original = torch.full((7, 13), constant)
    assert torch.equal(redrawn(original), original)
    assert torch.equal(permute(original, torch.Generator()), original)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_draw_depends_on_the_precision_by_rounding_alone(dtype: torch.dtype) -> None:
    original = torch.randn(50, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    new = redrawn(original)
    assert new.dtype == dtype
    assert torch.equal(new, redrawn(original.float()).to(dtype))


def test_a_tensor_with_one_odd_entry_changes_in_every_draw() -> None:
    """One order in n would leave it unchanged; bfloat16 gains can look like this."""
    original = torch.tensor([1.0, 1.0, 1.0, 1.0078125])
    for draw in range(20):
        drawn = permute(original, torch.Generator().manual_seed(draw))
        assert not torch.equal(drawn, original)
        assert same_entries(drawn, original)


def test_orders_of_a_permutation_are_all_as_likely() -> None:
    n = 3000
    original = torch.arange(3.0)
    generator = torch.Generator().manual_seed(0)
    orders = Counter(tuple(permute(original, generator).tolist()) for _ in range(n))
    assert len(orders) == 5, "all but the one that changes nothing"
    spread = math.sqrt(n * 0.2 * 0.8)
    assert all(abs(count - n / 5) < 5 * spread for count in orders.values())


def test_random_frames_are_uniform() -> None:
    """The Q of a QR alone is not: its diagonal is biased (Mezzadri 2007)."""
    generator, n = torch.Generator().manual_seed(0), 4000
    square = torch.stack([haar_frame(3, 3, generator) for _ in range(n)])
    assert torch.allclose(square.mT @ square, torch.eye(3, dtype=torch.float64), atol=1e-12)
    # Each entry has mean 0 and variance 1/3; the trace has mean 0 and variance 1.
    assert float(square.mean(dim=0).abs().max()) < 5 * math.sqrt(1 / 3 / n)
    traces = square.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert abs(float(traces.mean())) < 5 / math.sqrt(n)
    assert float(traces.var()) == pytest.approx(1, abs=0.15)
    positive = float((torch.linalg.det(square) > 0).double().mean())
    assert positive == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))
    tall = haar_frame(40, 3, generator)
    assert torch.allclose(tall.T @ tall, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_singular_vectors_of_a_matched_matrix_are_new_in_each_draw() -> None:
    """For a rank-one matrix, both vectors must be new in each draw, and unrelated."""
    a, b = (torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (300, 500))
    generator = torch.Generator().manual_seed(0)
    left, right = [a.double() / a.norm()], [b.double() / b.norm()]
    for _ in range(2):
        u, s, v = torch.linalg.svd(match_spectrum(torch.outer(a, b), generator).double())
        assert float(s[0]) == pytest.approx(float(a.norm() * b.norm()), rel=1e-6)
        assert float(s[1]) < 1e-4 * float(s[0])
        left.append(u[:, 0])
        right.append(v[0])
    for vectors in (left, right):
        x = torch.stack(vectors)
        cosines = (x @ x.T).fill_diagonal_(0)
        assert float(cosines.abs().max()) < 6 / math.sqrt(x.shape[1])


def test_stacked_matrices_are_matched_one_by_one() -> None:
    """Experts in one tensor [experts, rows, columns] each keep their own singular values."""
    generator = torch.Generator().manual_seed(0)
    stack = (
        torch.randn(3, 8, 5, generator=generator) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    )
    new = match_spectrum(stack, generator)
    assert new.shape == stack.shape
    for old, drawn in zip(stack, new, strict=True):
        assert spectra_apart(old, drawn) < 1e-6
        assert not torch.allclose(old, drawn)


def test_a_tall_embedding_needs_no_square_matrix_of_its_height() -> None:
    """For 200,000 rows, it would take 320 GB."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(200_000, 4, generator=generator) * torch.arange(1.0, 5.0)
    assert spectra_apart(table, match_spectrum(table, generator)) < 1e-6
