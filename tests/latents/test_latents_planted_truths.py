"""Metrics of effects on the next token in cases where their values are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
import transformers
from planted import FAMILIES, N_TOKENS, Array, Cell, Family, Study

from nullsae.latents.causal_effects import CHANGES
from nullsae.latents.places import Places
from nullsae.metrics.catalogue.effects import AblationCeGain, AblationKlLogRatio, AdditionGain
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.loading import load_subject
from small_chain import CPU

SITE = "resid_post.0"
TOKENS = np.arange(N_TOKENS)
CAUSAL = (AblationKlLogRatio(), AblationCeGain(), AdditionGain())


class Planted:
    """A family's study, and the statistics of its text."""

    def __init__(self, family: Family, study: Study) -> None:
        self.family, self.study = family, study
        self.follows = planted.successor(family.tied)
        now, following = study.ids[:, :-1].reshape(-1), study.ids[:, 1:].reshape(-1)
        counts = np.zeros((N_TOKENS, N_TOKENS))
        np.add.at(counts, (now, following), 1)
        self.given = counts / counts.sum(axis=1, keepdims=True)
        """[now, next]: P(next | now)."""
        self.q = counts.sum(axis=0) / counts.sum()

    def auroc(self, named: Array) -> Array:
        """Return it for latents that fire on one token each and promote one, [n_latents].

        The promoted token is above all others, which are equal. With p its share after firings and
        q its share of all next tokens, p (1 - q / 2) + (1 - p) (1 - q) / 2 = (1 + p - q) / 2.
        """
        found: Array = (1 + self.given[TOKENS, named] - self.q[named]) / 2
        return found

    def bigram(self, named: Array) -> Array:
        """All draws follow the token that the latent fires on: p = q."""
        return np.full(len(named), 0.5)

    def causal(self, named: Array) -> dict[str, Array]:
        """Compute the four columns of changes with the directions of `named` tokens, by hand."""
        codes = self.study.ids.reshape(-1, 1) == TOKENS
        fired, silent = planted.places_of(self.study, SITE, codes)
        ids, by = self.study.ids.reshape(-1), planted.pairs_of(named)
        size = planted.EMBEDDED * self.family.embedding_scale

        def changed(places: Places, amount: float) -> tuple[Array, Array]:
            x = planted.stream(self.family, ids[places.position])
            clean = planted.log_p(self.family, x)
            edited = planted.log_p(self.family, x + amount * by[places.of])
            return clean, edited - clean

        mean = partial(planted.means_of, n_latents=N_TOKENS)
        clean, raised = changed(fired, -size)
        following = ids[fired.position + 1]
        there, added = changed(silent, size)
        return {
            "ablation_kl_nats": mean(fired, -(np.exp(clean) * raised).sum(axis=1)),
            "ablation_ce_nats": mean(fired, -raised[np.arange(len(following)), following]),
            "addition_kl_nats": mean(silent, -(np.exp(there) * added).sum(axis=1)),
            "addition_logp_nats": mean(
                silent, (self.given[silent.of] * added[:, :N_TOKENS]).sum(axis=1)
            ),
        }


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def truth(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    family = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    text = planted.text_of(planted.successor(family.tied))
    return Planted(family, Study(root, planted.planted_model(family), *text))


@pytest.fixture(scope="module")
def known(truth: Planted) -> Cell:
    """Return one latent per token, whose row is the direction of what follows it."""
    return truth.study.cell(SITE, planted.known_directions(truth.family.tied), "known")


def test_the_model_predicts_as_computed_by_hand(truth: Planted) -> None:
    subject = load_subject(truth.study.model, CPU)
    ids = torch.from_numpy(truth.study.ids[:3]).long()
    logits = subject.logits(ids, split="eval", contexts=[0, 1, 2])
    by_hand = planted.log_p(truth.family, planted.stream(truth.family, truth.study.ids[:3].ravel()))
    found = logits.double().log_softmax(dim=2).numpy().reshape(by_hand.shape)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    # The model expects the planted successor.
    assert (found.argmax(axis=1) == truth.follows[truth.study.ids[:3].ravel()]).all()


def test_known_directions_have_the_auroc_of_the_closed_form(truth: Planted, known: Cell) -> None:
    assert known.coverage["no_effects"] is None
    assert known.coverage["n_pass"] == N_TOKENS
    own, foreign = truth.follows, truth.follows[planted.another(SITE, "another_latent", N_TOKENS)]
    for named, of in ((own, ""), (foreign, "_swapped")):
        found = known.column(f"next_token_auroc{of}")
        np.testing.assert_allclose(found, truth.auroc(named), atol=1e-12)
        found = known.column(f"next_token_auroc_bigram{of}")
        np.testing.assert_allclose(found, truth.bigram(named), atol=1e-12)
    assert known.column("next_token_auroc").min() > 0.8
    assert abs(known.column("next_token_auroc_swapped").mean() - 0.5) < 0.03


def test_the_planted_successor_is_the_promoted_token(truth: Planted, known: Cell) -> None:
    for row, token in zip(known.rows, truth.follows, strict=True):
        assert row["promoted_tokens"][0] == token
        # One of 24 effects is not 0: its z-score is the root of 23.
        assert row["promoted_effects"][0] == pytest.approx((N_TOKENS - 1) ** 0.5, rel=1e-5)
        assert row["suppressed_effects"] == pytest.approx(
            [-1 / (N_TOKENS - 1) ** 0.5] * len(row["suppressed_effects"]), rel=1e-5
        )


def test_known_directions_change_predictions_by_the_closed_form(
    truth: Planted, known: Cell
) -> None:
    assert known.coverage["no_causal_effects"] is None
    own = truth.causal(truth.follows)
    foreign = truth.causal(truth.follows[planted.another(SITE, "another_sampled_latent", N_TOKENS)])
    for name in own:
        for values, of in ((own, ""), (foreign, "_swapped")):
            found = known.column(name + of)
            np.testing.assert_allclose(found, values[name], rtol=2e-4, atol=2e-5)
    ratio, loss, gain = (known.metric(metric) for metric in CAUSAL)
    assert (ratio > 1).all()
    assert loss.mean() > 0.3
    assert (gain > 0.3).all()
    assert (known.column("token_injection_rate") == 1).all()
    assert (known.column("token_injection_rate_swapped") == 0).all()


@pytest.mark.parametrize("truth", ["gpt_neox", "llama"], indirect=True)
def test_the_shuffled_dictionary_is_its_own_placebo(truth: Planted, known: Cell) -> None:
    """Rows permuted like the placebo's give the placebo's values, and no more."""
    honest = planted.known_directions(truth.family.tied)
    for purpose, names in (
        ("another_latent", ("next_token_auroc", "next_token_auroc_bigram")),
        ("another_sampled_latent", tuple(truth.causal(truth.follows))),
    ):
        coder = replace(
            honest, w_dec=honest.w_dec[torch.from_numpy(planted.another(SITE, purpose, N_TOKENS))]
        )
        found = truth.study.cell(SITE, coder, f"shuffled_by_{purpose}")
        for name in names:
            np.testing.assert_allclose(
                found.column(name), known.column(f"{name}_swapped"), rtol=1e-5, atol=1e-7
            )
        ratio, loss, gain = (found.metric(metric).mean() for metric in CAUSAL)
        assert abs(found.column("next_token_auroc").mean() - 0.5) < 0.03
        assert abs(ratio) < 0.2
        assert abs(loss) < 0.1
        assert abs(gain) < 0.1


@pytest.fixture(scope="module")
def of_neox(tmp_path_factory: pytest.TempPathFactory) -> Study:
    family = FAMILIES["gpt_neox"]
    text = planted.text_of(planted.successor(family.tied))
    return Study(tmp_path_factory.mktemp("neox"), planted.planted_model(family), *text)


def nulls(found: Cell, names: Sequence[str]) -> set[bool]:
    """Return whether the columns are null for latents that pass."""
    return {row[name] is None for row in found.rows if row["passes_filter"] for name in names}


DIRECT, PASSES = ("next_token_auroc", "next_token_auroc_bigram", "promoted_tokens"), CHANGES[:1]


def test_the_only_passing_latent_has_no_other_row_as_its_placebo(of_neox: Study) -> None:
    n = np.sort(np.bincount(of_neox.ids.ravel()))
    assert n[-1] > n[-2]
    found = of_neox.cell(SITE, planted.known_directions(tied=False), "one", min_firings=int(n[-1]))
    assert found.coverage["n_pass"] == 1
    assert nulls(found, [f"{name}_swapped" for name in (*DIRECT[:2], *PASSES)]) == {True}
    assert nulls(found, (*DIRECT, "next_token_auroc_random", *PASSES)) == {False}


def test_a_site_before_the_residual_stream_has_no_effects_and_a_reason(of_neox: Study) -> None:
    found = of_neox.cell("embed", planted.known_directions(tied=False), "known")
    reason = "the site is not in the residual stream and not written to it"
    assert found.coverage["no_effects"] == found.coverage["no_causal_effects"] == reason
    assert found.coverage["n_pass"] == N_TOKENS
    assert nulls(found, (*DIRECT, *PASSES, "token_injection_rate")) == {True}


def test_a_head_behind_a_projection_leaves_the_causal_effects_alone(tmp_path: Path) -> None:
    """An OPT whose embeddings are narrower: no matrix maps the stream to the logits."""
    config = transformers.OPTConfig(
        **{**planted.SHAPE, "ffn_dim": 16, "word_embed_proj_dim": 8, "dropout": 0.0}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    text = planted.text_of(planted.successor(tied=False))
    study = Study(tmp_path, model, *text)
    rows = torch.randn(N_TOKENS, planted.WIDTH, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(N_TOKENS), torch.zeros(planted.WIDTH)
    coder = Autoencoder("topk", rows, zeros[0], rows.clone(), zeros[1], k=4)
    found = study.cell(SITE, coder, "random")
    assert (
        found.coverage["no_effects"] == "the head is not one matrix that reads the residual stream"
    )
    assert found.coverage["no_causal_effects"] is None
    assert found.coverage["n_pass"] > 5
    assert nulls(found, DIRECT) == {True}
    assert nulls(found, (*PASSES, "token_injection_rate")) == {False}
