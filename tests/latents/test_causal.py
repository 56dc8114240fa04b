from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_latents_statistics import firings_of
from torch import Tensor

from nullsae.latents import causal
from nullsae.latents.causal import Changes, Tokens, changes_at, equal_norms
from nullsae.latents.next_token import Successors
from nullsae.latents.places import Places, firing_places, silent_places
from nullsae.latents.split import Split
from nullsae.latents.windows import Grid
from nullsae.metrics.catalogue.effects import AblationCeGain, AblationKlLogRatio, AdditionGain
from nullsae.subjects.interventions import Interventions
from nullsae.subjects.loading import Subject
from small_chain import CPU, VOCAB, tiny_model, tokens_of

CONTEXT, WIDTH, N_CONTEXTS = 24, 16, 12
ONES = torch.ones(WIDTH)


def split_of(n_contexts: int = N_CONTEXTS, seed: int = 3) -> Split:
    ids, document = tokens_of(n_contexts, seed=seed, context=CONTEXT)
    return Split(ids.reshape(-1), document.reshape(-1), CONTEXT, None, Path("manifest.json"))


def subject_of(model: Any) -> Subject:
    return Subject(model, {"vocab_size": VOCAB}, CPU)


def places_of(split: Split, n_latents: int, seed: int = 0) -> Places:
    """Return tokens with a successor, in different contexts for each latent."""
    rng = np.random.default_rng(seed)
    each = [rng.choice(N_CONTEXTS, 5, replace=False) * CONTEXT for _ in range(n_latents)]
    position = np.concatenate([starts + rng.integers(0, CONTEXT - 1, 5) for starts in each])
    return Places(np.repeat(np.arange(n_latents), 5), position, rng.uniform(1, 3, len(position)))


def rows_of(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def generator_of(purpose: str) -> Callable[[int], np.random.Generator]:
    return partial(_generator, purpose)


def _generator(purpose: str, latent: int) -> np.random.Generator:
    return np.random.default_rng([len(purpose), latent])


def ablated(subject: Subject, site: str, split: Split, places: Places, rows: Tensor) -> Changes:
    directions = equal_norms([rows, rows.roll(1, dims=0)])
    return changes_at(
        *(Interventions(subject, site), split, places, -places.value, directions),
        Tokens.of_places(split, places),
    )


@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.2", "mlp_out.1"])
def test_changes_are_those_of_whole_passes_one_after_the_other(site: str) -> None:
    split, rows = split_of(), rows_of(4)
    places, model = places_of(split, 4), tiny_model("gpt_neox")
    found = ablated(subject_of(model), site, split, places, rows)
    kind, _, layer = site.partition(".")
    block = model.gpt_neox.layers[int(layer)]
    ids = torch.from_numpy(split.ids.reshape(-1, CONTEXT)).long()

    def predicted(position: int, added: Tensor) -> np.ndarray:
        context, at = divmod(position, CONTEXT)

        def add(_module: Any, _args: Any, output: Any) -> Any:
            x = (output if isinstance(output, Tensor) else output[0]).clone()
            x[0, at] += added
            return x if isinstance(output, Tensor) else (x, *output[1:])

        module = block.mlp if kind == "mlp_out" else block
        handle = module.register_forward_hook(add)
        logits = model(input_ids=ids[context : context + 1]).logits[0, at].double()
        handle.remove()
        return np.asarray(logits.softmax(dim=0))

    for latent in range(4):
        own, foreign = rows[latent], rows[latent - 1]
        foreign = foreign / foreign.norm() * own.norm()
        for column, row in enumerate((own, foreign)):
            kl, gain = [], []
            for i in np.flatnonzero(places.of == latent):
                position, value = int(places.position[i]), float(places.value[i])
                p = predicted(position, torch.zeros(WIDTH))
                q = predicted(position, -value * row)
                kl.append(np.sum(p * (np.log(p) - np.log(q))))
                following = split.ids[position + 1]
                gain.append(np.log(q[following]) - np.log(p[following]))
            assert found.kl[latent, column] == pytest.approx(np.mean(kl), rel=1e-3)
            assert found.gain[latent, column] == pytest.approx(np.mean(gain), rel=1e-3, abs=1e-5)


def planted() -> tuple[Any, Tensor]:
    """Make a Llama whose blocks add nothing and whose norm and head only scale and copy dimensions.

    So the next token's logits are 8 x / rms(x) in the first dimensions. Also returns the inputs'
    embeddings.
    """
    keys = {"rms_norm_eps": 1e-12, "tie_word_embeddings": False}
    model = tiny_model("llama", **keys)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(8.0)
        model.lm_head.weight.zero_()
        # Of 16 dimensions, a token reads each of the first 12; none reads the last 4.
        model.lm_head.weight[:12, :12] = torch.eye(12)
    return model, model.model.embed_tokens.weight


def test_a_planted_direction_changes_predictions_by_the_closed_form() -> None:
    model, embedding = planted()
    split = split_of()
    places = places_of(split, 1)
    d = torch.zeros(1, WIDTH)
    d[0, 3] = 2.0
    found = ablated(subject_of(model), "resid_post.1", split, places, d)

    def log_p(x: np.ndarray) -> np.ndarray:
        logits = np.zeros(VOCAB)
        logits[:12] = 8 * x[:12] / np.sqrt(np.mean(x**2))
        return logits - np.log(np.sum(np.exp(logits)))

    kl, gain = [], []
    for position, value in zip(places.position, places.value, strict=True):
        x = embedding[int(split.ids[position])].double().numpy()
        p, q = log_p(x), log_p(x - value * d[0].double().numpy())
        kl.append(np.sum(np.exp(p) * (p - q)))
        gain.append((q - p)[split.ids[position + 1]])
    assert found.kl[0, 0] == pytest.approx(np.mean(kl), rel=1e-5)
    assert found.gain[0, 0] == pytest.approx(np.mean(gain), rel=1e-4)


def test_a_direction_that_is_read_has_a_large_ratio_and_one_that_is_not_has_none() -> None:
    split = split_of()
    subject, places = subject_of(tiny_model("gpt_neox")), places_of(split, 2)
    # All norms of a GPT-NeoX subtract the mean, so nothing reads what all dimensions share.
    alive, dead = rows_of(1)[0], ONES

    def log_ratio(found: Changes) -> np.ndarray:
        own, foreign = found.kl.T
        names = AblationKlLogRatio.columns
        return AblationKlLogRatio().value(dict(zip(names, (own, foreign), strict=True)))

    found = ablated(subject, "resid_post.1", split, places, torch.stack([alive, dead]))
    assert log_ratio(found)[0] > np.log(1e6)
    assert log_ratio(found)[1] < -np.log(1e6)
    assert found.gain[1, 0] == pytest.approx(0, abs=1e-5)
    found = ablated(subject, "resid_post.1", split, places, torch.stack([dead, 2 * dead]))
    np.testing.assert_allclose(log_ratio(found), 0, atol=1e-12)
    np.testing.assert_allclose(found.gain, 0, atol=1e-5)


def test_metrics_compare_with_the_foreign_direction_and_with_no_random_one() -> None:
    own, foreign = np.array([0.02, 0.0, 0.0]), np.array([0.01, 0.0, 1e-3])
    for metric, wanted in (
        (AblationKlLogRatio(), [np.log(2), 0, np.log(1e-7)]),
        (AblationCeGain(), own - foreign),
        (AdditionGain(), own - foreign),
    ):
        assert metric.columns[1] == f"{metric.columns[0]}_swapped"
        value = metric.value(dict(zip(metric.columns, (own, foreign), strict=True)))
        np.testing.assert_allclose(value, wanted, rtol=1e-12)


def test_a_row_without_direction_changes_nothing() -> None:
    split, rows = split_of(), rows_of(3)
    rows[1] = 0
    found = ablated(
        subject_of(tiny_model("gpt2")), "resid_post.0", split, places_of(split, 3), rows
    )
    assert found.kl[1].tolist() == [0, 0]
    # The third is compared with it.
    assert found.kl[2, 1] == 0
    assert found.kl[2, 0] > 1e-3


def test_sign_and_order_of_latents_turn_the_values_with_them() -> None:
    split, rows = split_of(), rows_of(4)
    subject, places = subject_of(tiny_model("gpt_neox")), places_of(split, 4)
    interventions = Interventions(subject, "resid_post.1")
    directions = equal_norms([rows, rows.roll(1, dims=0)])
    looked_at = Tokens.of_places(split, places)
    here = changes_at(interventions, split, places, -places.value, directions, looked_at)
    # A negative activation times a negated row is the same contribution.
    turned = changes_at(interventions, split, places, places.value, -directions, looked_at)
    order = np.array([2, 0, 3, 1])
    moved = Places(np.argsort(order)[places.of], places.position, places.value)
    there = changes_at(interventions, split, moved, -moved.value, directions[order], looked_at)
    for values in range(2):
        np.testing.assert_array_equal(turned[values], here[values])
        np.testing.assert_array_equal(there[values], here[values][order])


@pytest.mark.parametrize(
    ("passed", "captured", "logits"), [(1, 1, 1), (200, 50, 2**23), (2**13, 2**14, 700)]
)
def test_what_is_computed_together_changes_no_value(
    passed: int, captured: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, rows = split_of(), rows_of(4)
    subject, places = subject_of(tiny_model("gpt_neox")), places_of(split, 4)
    together = ablated(subject, "resid_post.1", split, places, rows)
    for name, value in (
        ("PASSED_TOKENS", passed),
        ("CAPTURED_TOKENS", captured),
        ("LOGITS", logits),
    ):
        monkeypatch.setattr(causal, name, value)
    apart = ablated(subject, "resid_post.1", split, places, rows)
    np.testing.assert_allclose(apart.kl, together.kl, rtol=1e-4)
    np.testing.assert_allclose(apart.gain, together.gain, rtol=1e-4, atol=1e-6)


def test_adding_the_direction_of_a_token_promotes_what_follows_firings() -> None:
    model, _ = planted()
    split = split_of()
    # The latent fires before token 3, and its direction is that of token 3's logit.
    dense = np.zeros((split.n_tokens, 2), np.float32)
    dense[:-1, 0] = split.ids[1:] == 3
    dense[:-1, 1] = split.ids[1:] == 5
    firings, successors = firings_of(dense), Successors.of(split)
    places = places_of(split, 2)
    looked_at = Tokens.of_firings(firings, np.arange(2), successors, places)
    d = torch.zeros(2, WIDTH)
    d[0, 3] = d[1, 5] = 1.0
    found = changes_at(
        *(Interventions(subject_of(model), "resid_post.1"), split, places, np.full(10, 2.0)),
        *(equal_norms([d, d.roll(1, dims=0)]), looked_at),
    )
    assert (found.gain[:, 0] > 1).all()
    assert (found.gain[:, 1] < 0).all()
    for row, target in zip((0, 5), (3, 5), strict=True):
        dense_target = looked_at.some(np.array([row]), VOCAB, CPU)[0]
        assert dense_target.sum() == 1
        assert dense_target[target] == 1


def test_places_are_at_firings_each_in_another_context() -> None:
    split = split_of(40)
    rng = np.random.default_rng(1)
    dense = np.maximum(rng.normal(-1, 1, (split.n_tokens, 3)), 0).astype(np.float32)
    dense[CONTEXT * 3 :, 2] = 0
    firings, successors = firings_of(dense), Successors.of(split)
    order = rng.permutation(40)
    places = firing_places(
        *(firings, np.array([0, 2]), successors.pair, split, order, 6), generator_of("a")
    )
    assert np.bincount(places.of).tolist() == [6, 3]
    latents = np.array([0, 2])[places.of]
    np.testing.assert_array_equal(places.value, dense[places.position, latents])
    assert (places.value > 0).all()
    assert (successors.pair[places.position] >= 0).all()
    assert np.array_equal(places.enough(2, 4), [True, False])
    # The first contexts of the order with a firing that a token follows.
    fires = (dense[:, 0] > 0) & (successors.pair >= 0)
    first = [c for c in order if fires.reshape(40, CONTEXT)[c].any()][:6]
    assert (places.position[places.of == 0] // CONTEXT).tolist() == first


def test_silent_places_are_in_silent_windows_on_tokens_that_count() -> None:
    split = split_of(40)
    grid = Grid.cut(split.document.reshape(-1, CONTEXT), 4)
    rng = np.random.default_rng(2)
    # Where each of two latents fires, by window; the second fires nearly everywhere.
    fires = rng.random((grid.n_windows, 2)) < np.array([0.2, 0.97])
    cells = firings_of(fires.astype(np.float32))
    order = rng.permutation(40)
    odd = lambda position: position % 2 == 1  # noqa: E731
    places = silent_places(cells, np.arange(2), grid, odd, order, 10, generator_of("s"))
    window = grid.cell_of(places.position)
    assert not fires[window, places.of].any()
    assert (grid.document[window] >= 0).all()
    assert not odd(places.position).any()
    context = places.position // CONTEXT
    silent = (~fires & (grid.document >= 0)[:, None]).reshape(40, -1, 2).any(axis=1)
    for latent in range(2):
        first = [c for c in order if silent[c, latent]][:10]
        assert context[places.of == latent].tolist() == first
    assert np.bincount(places.of)[0] == 10
