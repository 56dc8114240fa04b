from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nullsae.core.randomness import torch_generator
from nullsae.subjects import gates
from nullsae.subjects.changes import (
    MATCHED,
    PERMUTED,
    REDRAWN,
    ROWS_PERMUTED,
    ROWS_ROTATED,
    Change,
)
from refusing import refused

NAMES = {"layers.1.w", "layers.10.w"}
CHANGES = dict.fromkeys(NAMES, REDRAWN)
DRAWN = (REDRAWN, PERMUTED, MATCHED, ROWS_PERMUTED, ROWS_ROTATED)
HALVES = (torch.bfloat16, torch.float16)
redraw, permute, match_spectrum = REDRAWN.new, PERMUTED.new, MATCHED.new
permute_rows, rotate = ROWS_PERMUTED.new, ROWS_ROTATED.new


def generator(name: str = "") -> torch.Generator:
    return torch_generator(0, "test_gates", name)


def table(dtype: torch.dtype = torch.float32, rows: int = 300) -> Tensor:
    """Return an embedding whose rows share a mean and differ in length."""
    g = generator("table")
    x = torch.randn(rows, 64, generator=g) * torch.rand(rows, 1, generator=g)
    return (x + torch.randn(64, generator=g)).to(dtype)


def gain(dtype: torch.dtype) -> Tensor:
    """Return norm gains that differ by a few of the dtype's steps."""
    return (1 + 0.003 * torch.randn(1024, generator=generator("gain"))).to(dtype)


def before() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "layers.1.w": torch.randn(40, 40, generator=g) * 0.3 + 0.1,
        "layers.10.w": torch.rand(40, 40, generator=g),
        "layers.10.bias": torch.zeros(40),
        "embed": torch.randn(40, 40, generator=g),
    }


def after() -> dict[str, Tensor]:
    return {
        name: redraw(t, generator(name)) if name in NAMES else t.clone()
        for name, t in before().items()
    }


def test_a_good_randomization_passes_every_gate() -> None:
    old, new = before(), after()
    checks = [
        gates.inventory(old, new),
        gates.changed(old, new, NAMES),
        gates.changed(old, new, {*NAMES, "layers.10.bias"}),  # constant: it may stay
        gates.moments(old, new, NAMES),
        gates.uncorrelated(old, new, CHANGES),
        gates.repeatable(gates.fingerprints(new), gates.fingerprints(after())),
    ]
    assert all(gate["passed"] for gate in checks), checks
    gates.require(checks, "folder")


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "dtype"])
def test_another_inventory_fails(kind: str) -> None:
    old, new = before(), after()
    name = "layers.1.w"
    if kind == "missing":
        del new[name]
    elif kind == "extra":
        del old[name]
    else:
        new[name] = new[name].half() if kind == "dtype" else new[name][1:]
    gate = gates.inventory(old, new)
    assert not gate["passed"]
    assert gate["detail"].startswith("layers.1.w: ")


def test_a_tensor_that_did_not_change_fails() -> None:
    old, new = before(), after()
    new["layers.10.w"] = old["layers.10.w"].clone()
    gate = gates.changed(old, new, NAMES)
    assert gate["detail"] == "layers.10.w: should have changed and did not"
    assert not gate["passed"]


def test_a_tensor_that_should_not_have_changed_fails() -> None:
    """If `layers.1` matched `layers.10`, too much would be redrawn."""
    old, new = before(), after()
    gate = gates.changed(old, new, {"layers.1.w"})
    assert gate["detail"] == "layers.10.w: changed and should not have"
    assert not gate["passed"]


@pytest.mark.parametrize("wrong", ["mean", "variance"])
def test_moments_of_another_distribution_fail(wrong: str) -> None:
    old, new = before(), after()
    x = new["layers.1.w"]
    n = x.numel()
    std = float(old["layers.1.w"].std())
    # Just beyond: 13 standard errors of the mean, or of the variance.
    if wrong == "mean":
        x += 13 * std / math.sqrt(n)
    else:
        x.copy_((x - x.mean()) * math.sqrt(1 + 13 * math.sqrt(2 / n)) + x.mean())
    gate = gates.moments(old, new, NAMES)
    assert not gate["passed"]
    assert gate["detail"].startswith("layers.1.w: 1")
    assert gate["detail"].endswith("standard errors off")
    assert gates.moments(old, new, {"layers.10.w"})["passed"]


def test_standard_errors_are_those_of_normal_draws() -> None:
    n, shift = 400, 0.2
    old = {"w": torch.randn(n, generator=torch.Generator().manual_seed(1)).double()}
    old["w"] = (old["w"] - old["w"].mean()) / old["w"].std(correction=0)
    # The variance expected of a sample, and a mean off by exactly 4 standard errors.
    new = {"w": old["w"].flip(0) * math.sqrt((n - 1) / n) + shift}
    detail = gates.moments(old, new, {"w"})["detail"]
    assert detail == f"largest deviation {shift * math.sqrt(n):.2f} standard errors"


def test_weights_that_still_hold_the_original_fail() -> None:
    old, new = before(), after()
    # A tenth of the original in a redrawn tensor with the same moments.
    own = old["layers.1.w"] - old["layers.1.w"].mean()
    mixed = new["layers.1.w"] - new["layers.1.w"].mean()
    new["layers.1.w"] = 0.3 * own + math.sqrt(1 - 0.09) * mixed + old["layers.1.w"].mean()
    gate = gates.uncorrelated(old, new, CHANGES)
    assert not gate["passed"]
    assert gate["detail"].startswith("layers.1.w: correlation 0.3")


def test_a_draw_that_does_not_repeat_fails() -> None:
    new, again = after(), after()
    again["embed"][3, 3] += 1e-6
    gate = gates.repeatable(gates.fingerprints(new), gates.fingerprints(again))
    assert not gate["passed"]
    assert gate["detail"].startswith("embed: ")


def test_fingerprints_compare_bits_and_not_numbers() -> None:
    """0 and -0 are equal, and a scalar or a transposed view has bits too."""
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    first = gates.fingerprints({"x": x, "scalar": x[1, 1], "view": x.T})
    assert first == gates.fingerprints({"x": x, "scalar": x[1, 1].clone(), "view": x.T.clone()})
    assert len(set(first.values())) == 3
    assert first["x"] != gates.fingerprints({"x": torch.where(x == 0, -x, x)})["x"]
    half = gates.fingerprints({"x": x.bfloat16()})
    assert half != gates.fingerprints({"x": x.half()})


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("n_odd", [1, 2, 40, 1024])
def test_rounding_alone_passes_the_moments(dtype: torch.dtype, n_odd: int) -> None:
    """Gains within a few steps of 1, where rounding widens, narrows or moves their distribution."""
    original = torch.ones(1024, dtype=dtype)
    original[:n_odd] = gain(dtype)[:n_odd]
    original[0] = 1 + torch.finfo(dtype).eps
    assert len(original.unique()) > 1
    for draw in range(20):
        new = {"w": redraw(original, generator(str(draw)))}
        gate = gates.moments({"w": original}, new, {"w"})
        assert gate["passed"], gate["detail"]


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_one_side_passes_the_moments(dtype: torch.dtype) -> None:
    """A mean between two neighbouring numbers, and a spread below their distance from it."""
    original = torch.ones(1 << 14, dtype=dtype)
    original[::4] += torch.finfo(dtype).eps
    new = {"w": redraw(original, generator())}
    assert abs(float(new["w"].double().mean() - original.double().mean())) > (
        6 * float(original.double().std()) / 2**7
    )
    assert gates.moments({"w": original}, new, {"w"})["passed"]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_rounding_step_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    for size in (1.0, 0.25, torch.finfo(dtype).tiny / 8):
        x = torch.full((3,), size, dtype=dtype)
        gap = float(torch.nextafter(x, x + 1)[0].double() - x[0].double())
        assert gates.rounding_step(x.double(), dtype) == pytest.approx(gap, rel=1e-9)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_does_not_excuse_wrong_moments(dtype: torch.dtype) -> None:
    original = torch.randn(100, 100, generator=generator()).to(dtype)
    for wrong in (1.08 * original, original + 0.08):
        gate = gates.moments({"w": original}, {"w": wrong.flip(0)}, {"w"})
        assert not gate["passed"]
    wide = 1 + (gain(dtype).float() - 1) * 3
    gate = gates.moments({"w": gain(dtype)}, {"w": wide.to(dtype).flip(0)}, {"w"})
    assert not gate["passed"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_numbers_fail(bad: float) -> None:
    old, new = before(), after()
    new["layers.1.w"][0, 0] = bad
    for gate in (
        gates.moments(old, new, NAMES),
        gates.initializer({"layers.1.w": new["layers.1.w"]}, old),
        gates.spectrum(old, new, NAMES),
        gates.entries(old, new, NAMES),
        gates.rows_permuted(old, new, NAMES),
        gates.rows_rotated(old, new, NAMES),
        gates.uncorrelated(old, new, CHANGES),
    ):
        assert not gate["passed"], gate
        assert gate["detail"].startswith("layers.1.w: ")


def test_a_constant_that_is_no_binary_fraction_passes() -> None:
    constant = {"w": torch.full((1000,), 0.1)}
    assert gates.uncorrelated(constant, constant, {"w": REDRAWN})["passed"]
    assert gates.moments(constant, constant, {"w"})["passed"]


def test_a_lost_entry_fails() -> None:
    old = {"v": torch.randn(50, generator=generator()), "w": table()}
    new = {name: permute(tensor, generator(name)) for name, tensor in old.items()}
    assert gates.entries(old, new, {"v", "w"})["passed"]
    new["w"][7, 7] = torch.nextafter(new["w"][7, 7], torch.tensor(9.0))
    gate = gates.entries(old, new, {"v", "w"})
    assert not gate["passed"]
    assert gate["detail"] == "w: not a permutation of the original's entries"
    assert gates.entries(old, new, {"v"})["passed"]
    # The same values, one of them twice as often, which a set would not notice.
    doubled = {"w": torch.tensor([1.0, 1.0, 2.0])}
    assert not gates.entries({"w": torch.tensor([1.0, 2.0, 2.0])}, doubled, {"w"})["passed"]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_other_singular_values_fail_and_rounded_ones_pass(dtype: torch.dtype) -> None:
    old = {"w": table(dtype), "zero": torch.zeros(8, 8, dtype=dtype)}
    new = {name: match_spectrum(tensor, generator(name)) for name, tensor in old.items()}
    assert gates.spectrum(old, new, set(old))["passed"]
    # Three times the effect of rounding, in all singular values or in the largest.
    beyond = 3 * torch.finfo(dtype).eps
    scaled = new["w"].double() * (1 + beyond)
    u, s, v = torch.linalg.svd(new["w"].double(), full_matrices=False)
    s[0] += beyond * s.norm()
    for wrong in (scaled, (u * s) @ v, old["w"].flatten()[torch.randperm(old["w"].numel())]):
        gate = gates.spectrum(old, {**new, "w": wrong.reshape(old["w"].shape).to(dtype)}, set(old))
        assert not gate["passed"]
        assert gate["detail"].startswith("w: singular values off by ")


def test_a_lost_row_fails() -> None:
    old = {"embed": table()}
    new = {"embed": permute_rows(old["embed"], generator())}
    assert gates.rows_permuted(old, new, {"embed"})["passed"]
    for wrong in (
        torch.cat([new["embed"][1:2], new["embed"][1:]]),  # one row twice, another lost
        new["embed"].flip(1),  # entries, not rows
        permute(old["embed"], generator()),
    ):
        gate = gates.rows_permuted(old, {"embed": wrong}, {"embed"})
        assert gate == gates.failed("rows", "embed: not a permutation of the original's rows")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_stretched_or_a_flipped_row_fails_and_a_rounded_one_passes(dtype: torch.dtype) -> None:
    old = {"embed": table(dtype, rows=256)}
    old["embed"][9] = 0
    right = rotate(old["embed"], generator())
    assert gates.rows_rotated(old, {"embed": right}, {"embed"})["passed"]
    stretched, flipped = right.clone(), right.clone()
    stretched[5] = (stretched[5].double() * (1 + 3 * torch.finfo(dtype).eps)).to(dtype)
    flipped[5] = -flipped[5]  # the norm is kept, the angles to the others are not
    gate = gates.rows_rotated(old, {"embed": stretched}, {"embed"})
    assert gate == gates.failed("rows", "embed: the norm of row 5 changed")
    gate = gates.rows_rotated(old, {"embed": flipped}, {"embed"})
    assert gate == gates.failed("rows", "embed: the inner product of rows 0 and 5 changed")


def test_smallest_numbers_of_a_precision_pass_every_gate() -> None:
    """Below float16's normal numbers, the step no longer shrinks with the entries."""
    small = table(torch.float32) * 3e-8
    old = {"embed": small.half()}
    assert float(old["embed"].abs().max()) < torch.finfo(torch.float16).tiny
    for draw in range(5):
        g = generator(str(draw))
        rotated = {"embed": rotate(old["embed"], g)}
        assert gates.rows_rotated(old, rotated, {"embed"})["passed"]
        matched = {"embed": match_spectrum(old["embed"], g)}
        assert gates.spectrum(old, matched, {"embed"})["passed"]
        redone = {"embed": redraw(old["embed"], g)}
        assert gates.moments(old, redone, {"embed"})["passed"]


@pytest.mark.parametrize("change", DRAWN)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_good_draw_is_not_called_correlated(change: Change, dtype: torch.dtype) -> None:
    """Even for tensors that one entry, one row or one direction dominates."""
    g = generator("rank")
    line = torch.outer(torch.randn(300, generator=g), torch.randn(64, generator=g))
    spiked, long = torch.randn(300, 64, generator=g) * 0.01, table()
    spiked[3, 3] = 50.0
    long[7] *= 500
    for name, tensor in {"table": table(), "line": line, "spiked": spiked, "long": long}.items():
        old = {name: tensor.to(dtype)}
        for draw in range(5):
            new = {name: change.new(old[name], generator(str(draw)))}
            gate = gates.uncorrelated(old, new, {name: change})
            assert gate["passed"], gate["detail"]


def test_an_outlier_that_stays_in_its_place_passes_the_gate() -> None:
    """By chance one permutation in n leaves it there, which is not rare with n gains."""
    old = torch.randn(768, generator=generator("v")) * 0.01
    old[5] = 30.0
    rest = permute(torch.cat([old[:5], old[6:]]), generator())
    new = torch.cat([rest[:5], old[5:6], rest[5:]])
    gate = gates.uncorrelated({"w": old}, {"w": new}, {"w": PERMUTED})
    assert gate["passed"]
    assert gate["detail"].startswith("largest |correlation| 0.99")


def test_a_long_row_that_stays_in_its_place_passes_the_gate() -> None:
    old = table()
    old[7] *= 500
    rest = permute_rows(torch.cat([old[:7], old[8:]]), generator())
    new = torch.cat([rest[:7], old[7:8], rest[7:]])
    gate = gates.uncorrelated({"w": old}, {"w": new}, {"w": ROWS_PERMUTED})
    assert gate["passed"]
    assert gate["detail"].startswith("largest |correlation| 0.99")


def test_chance_in_both_singular_vectors_of_a_line_passes_the_gate() -> None:
    """Three standard errors in each of two vectors are nine in their product, and not unusual."""
    sides = []
    for n in (400, 900):
        x, other = torch.randn(2, n, generator=generator(str(n))).double()
        x, other = x / x.norm(), other - (other @ x) * x / x.norm() ** 2
        cosine = 3 / math.sqrt(n)
        sides.append((x, cosine * x + math.sqrt(1 - cosine**2) * other / other.norm()))
    old, new = ({"w": torch.outer(sides[0][i], sides[1][i])} for i in (0, 1))
    assert gates.uncorrelated(old, new, {"w": MATCHED})["passed"]
    assert not gates.uncorrelated(old, new, {"w": REDRAWN})["passed"]


@pytest.mark.parametrize("change", DRAWN)
def test_a_draw_that_holds_much_of_the_original_fails(change: Change) -> None:
    """For each change, applied only to a part of the tensor."""
    old = table(rows=2000)
    new = change.new(old, generator())
    assert gates.uncorrelated({"w": old}, {"w": new}, {"w": change})["passed"]
    half = len(old) // 2
    if change is ROWS_ROTATED:  # by a rotation that leaves half of the dimensions alone
        part = torch.cat([rotate(old[:, :32], generator()), old[:, 32:]], dim=1)
    else:
        part = torch.cat([change.new(old[:half], generator()), old[half:]])
    gate = gates.uncorrelated({"w": old}, {"w": part}, {"w": change})
    assert not gate["passed"]
    assert gate["detail"].startswith("w: correlation 0.")


def initial(draw: int) -> dict[str, Tensor]:
    g = generator(f"draw {draw}")
    return {
        "gain": torch.full((64,), 0.1),
        "A_log": torch.arange(1.0, 65.0).log(),  # without chance, but no constant
        "uniform": torch.rand(64, 64, generator=g),
        "w": torch.randn(64, 64, generator=g) * 0.02,
    }


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_tensors_that_the_initializer_did_not_draw_fail(dtype: torch.dtype) -> None:
    other = initial(1)  # in float32, as the initializer draws it

    def gate(**changes: Tensor) -> gates.Gate:
        new = {name: tensor.to(dtype) for name, tensor in {**initial(0), **changes}.items()}
        return gates.initializer(new, other, {"A_log"})

    fine = gate()
    assert fine["passed"]
    assert fine["detail"].startswith("2 of 4 tensors drawn, ")
    w, uniform = initial(0)["w"], initial(0)["uniform"]
    for changes, detail in (
        ({"gain": torch.ones(64)}, "gain: not the initializer's constant"),
        ({"w": other["w"]}, "w: the same in another draw"),
        ({"w": w, "A_log": torch.arange(64.0)}, "A_log: not the initializer's constant"),
        ({"w": w * 1.2}, "w: "),  # a trained tensor is wider
        ({"w": w + 0.01}, "w: "),
        ({"uniform": uniform * 1.2 - 0.1}, "uniform: "),
    ):
        found = gate(**changes)
        assert not found["passed"]
        assert found["detail"].startswith(detail)
        if detail.endswith(": "):
            assert found["detail"].endswith("standard errors off another draw")


def test_other_logits_after_a_reload_fail() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[1, 2, 3] += 0.5
    assert gates.reloads(logits, logits.clone())["passed"]
    gate = gates.reloads(logits, other)
    assert not gate["passed"]
    assert "0.5" in gate["detail"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_fail(bad: float) -> None:
    fine = torch.ones(2, 3)
    broken = torch.tensor([[1.0, bad]])
    assert gates.finite({"resid_post.0": fine}, fine)["passed"]
    gate = gates.finite({"resid_post.0": fine, "resid_post.1": broken}, fine)
    assert not gate["passed"]
    assert gate["detail"].startswith("resid_post.1: ")
    assert gates.finite({"resid_post.0": fine}, broken)["detail"].startswith("logits: ")


def test_wrong_embedding_noise_fails() -> None:
    g = torch.Generator().manual_seed(0)
    plain = torch.randn(4, 16, 32, generator=g)
    noise = torch.randn(4, 16, 32, generator=g) * 0.5
    names = ["noise repeatable", "noise moments", "noise replaces"]

    def failed(first: Tensor, other: Tensor, std: float) -> list[str]:
        found = gates.noise(first, other, plain, std)
        assert [gate["gate"] for gate in found] == names
        return [gate["gate"] for gate in found if not gate["passed"]]

    assert failed(noise, noise, 0.5) == []
    assert failed(noise, noise.flip(0), 0.5) == ["noise repeatable"]
    assert failed(noise, noise, 0.6) == ["noise moments"]
    assert failed(noise + 0.1, noise + 0.1, 0.5) == ["noise moments"]
    added = (noise + 0.5 * plain) / math.sqrt(2)  # added to the embedding instead of replacing it
    assert failed(added, added, 0.5) == ["noise replaces"]


def test_a_failed_gate_stops_the_rule_and_names_its_tensor(tmp_path: Path) -> None:
    checks = [gates.passed("inventory", "3 tensors"), gates.failed("moments", "w: 9 off")]
    assert (
        refused(gates.require, checks, str(tmp_path))
        == f"{tmp_path}: gate 'moments' failed: w: 9 off"
    )


def test_a_copy_of_the_state_does_not_follow_the_model() -> None:
    model = torch.nn.Linear(3, 2)
    copy = gates.state(model)
    with torch.no_grad():
        model.weight.zero_()
    assert bool(copy["weight"].any())
