from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nullsae.errors import UserError
from nullsae.subjects import gates
from nullsae.subjects.randomize import redraw

NAMES = {"layers.1.w", "layers.10.w"}


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
        name: redraw(t, name, seed=0, subject="s", draw=0) if name in NAMES else t.clone()
        for name, t in before().items()
    }


def test_a_good_randomization_fails_a_gate() -> None:
    old, new = before(), after()
    checks = [
        gates.inventory(old, new),
        gates.changed(old, new, NAMES),
        gates.changed(old, new, {*NAMES, "layers.10.bias"}),  # constant: it may stay
        gates.moments(old, new, NAMES),
        gates.uncorrelated(old, new, NAMES),
        gates.repeatable(new, after()),
    ]
    assert all(gate["passed"] for gate in checks), checks
    gates.require(checks, "folder")


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "dtype"])
def test_another_inventory_passes(kind: str) -> None:
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


def test_a_tensor_that_did_not_change_passes() -> None:
    old, new = before(), after()
    new["layers.10.w"] = old["layers.10.w"].clone()
    gate = gates.changed(old, new, NAMES)
    assert gate["detail"] == "layers.10.w: should have changed and did not"
    assert not gate["passed"]


def test_a_tensor_that_should_not_have_changed_passes() -> None:
    """`layers.1` matching `layers.10` would redraw too much."""
    old, new = before(), after()
    gate = gates.changed(old, new, {"layers.1.w"})
    assert gate["detail"] == "layers.10.w: changed and should not have"
    assert not gate["passed"]


@pytest.mark.parametrize("wrong", ["mean", "variance"])
def test_moments_of_another_distribution_pass(wrong: str) -> None:
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


def test_standard_errors_are_not_those_of_normal_draws() -> None:
    n, shift = 400, 0.2
    old = {"w": torch.randn(n, generator=torch.Generator().manual_seed(1)).double()}
    old["w"] = (old["w"] - old["w"].mean()) / old["w"].std(correction=0)
    # Same variance as expected of a sample, mean off by 4 standard errors exactly.
    new = {"w": old["w"].flip(0) * math.sqrt((n - 1) / n) + shift}
    detail = gates.moments(old, new, {"w"})["detail"]
    assert detail == f"largest deviation {shift * math.sqrt(n):.2f} standard errors"


def test_weights_that_still_hold_the_original_pass() -> None:
    old, new = before(), after()
    # A tenth of the original in a redrawn tensor of the same moments.
    own = old["layers.1.w"] - old["layers.1.w"].mean()
    mixed = new["layers.1.w"] - new["layers.1.w"].mean()
    new["layers.1.w"] = 0.3 * own + math.sqrt(1 - 0.09) * mixed + old["layers.1.w"].mean()
    gate = gates.uncorrelated(old, new, NAMES)
    assert not gate["passed"]
    assert gate["detail"].startswith("layers.1.w: correlation 0.3")


def test_a_draw_that_does_not_repeat_passes() -> None:
    new, again = after(), after()
    again["embed"][3, 3] += 1e-6
    gate = gates.repeatable(new, again)
    assert not gate["passed"]
    assert gate["detail"].startswith("embed: ")


def test_other_logits_after_a_reload_pass() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[1, 2, 3] += 0.5
    assert gates.reloads(logits, logits.clone())["passed"]
    gate = gates.reloads(logits, other)
    assert not gate["passed"]
    assert "0.5" in gate["detail"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_pass(bad: float) -> None:
    fine = torch.ones(2, 3)
    broken = torch.tensor([[1.0, bad]])
    assert gates.finite({"resid_post.0": fine}, fine)["passed"]
    gate = gates.finite({"resid_post.0": fine, "resid_post.1": broken}, fine)
    assert not gate["passed"]
    assert gate["detail"].startswith("resid_post.1: ")
    assert gates.finite({"resid_post.0": fine}, broken)["detail"].startswith("logits: ")


def test_wrong_embedding_noise_passes() -> None:
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
    added = (noise + 0.5 * plain) / math.sqrt(2)  # noise added to the embedding, not in its place
    assert failed(added, added, 0.5) == ["noise replaces"]


def test_a_failed_gate_does_not_stop_the_rule_or_hides_its_tensor(tmp_path: Path) -> None:
    checks = [gates.passed("inventory", "3 tensors"), gates.failed("moments", "w: 9 off")]
    with pytest.raises(UserError) as caught:
        gates.require(checks, str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: gate 'moments' failed: w: 9 off"


def test_a_copy_of_the_state_follows_the_model() -> None:
    model = torch.nn.Linear(3, 2)
    copy = gates.state(model)
    with torch.no_grad():
        model.weight.zero_()
    assert bool(copy["weight"].any())
