"""Each site of a Llama with handmade attention and MLP, compared with a forward pass in NumPy.

A context begins with the token of its mode; then neutral tokens alternate with others of the
mode's class. The attention of the first block writes the mode to all tokens, and at a neutral
token its MLP raises the logits of the class that is due. So the next token depends on known
directions at each site, beyond the current token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import planted
import pytest
import torch
import transformers
from planted import Array, Cell, Study, means_of

from nullsae.metrics.catalogue.effects import AblationKlLogRatio, AdditionGain
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.loading import load_subject
from small_chain import CPU

VOCAB, WIDTH, CONTEXT, N_CONTEXTS = 14, 48, 16, 80
MODES, NEUTRAL = np.arange(2), np.arange(2, 6)
CLASSES = np.arange(6, 14).reshape(2, 4)
# Dimensions: the head reads 0 to 13, one for each token.
MARKED, WRITTEN, IS_NEUTRAL, ALWAYS, ID = 14, 16, 18, 19, 20
EPS = 1e-6


def weights() -> dict[str, Array]:
    """Return a Llama's parameters by name, float64: all that are not 0 or 1."""
    embedding = np.zeros((VOCAB, WIDTH))
    embedding[:, ALWAYS] = 1
    embedding[np.arange(VOCAB), ID + np.arange(VOCAB)] = 1
    embedding[MODES, MARKED + MODES] = 2
    embedding[NEUTRAL, IS_NEUTRAL] = 1
    # A neutral token follows the others.
    embedding[np.ix_(CLASSES.ravel(), NEUTRAL)] = 0.5
    embedding[np.ix_(MODES, NEUTRAL)] = 0.5
    value, out = np.zeros((WIDTH, WIDTH)), np.zeros((WIDTH, WIDTH))
    gate, up, down = np.zeros((2, WIDTH)), np.zeros((2, WIDTH)), np.zeros((WIDTH, 2))
    for mode in MODES:
        value[mode, MARKED + mode] = 1
        out[WRITTEN + mode, mode] = 4
        gate[mode, IS_NEUTRAL] = 2
        up[mode, WRITTEN + mode] = 1
        down[CLASSES[mode], mode] = 0.5
    return {
        "model.embed_tokens": embedding,
        "model.layers.0.self_attn.v_proj": value,
        "model.layers.0.self_attn.o_proj": out,
        "model.layers.0.mlp.gate_proj": gate,
        "model.layers.0.mlp.up_proj": up,
        "model.layers.0.mlp.down_proj": down,
        "lm_head": np.eye(VOCAB, WIDTH),
    }


def normed(x: Array) -> Array:
    found: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    return found


def passed(ids: Array, site: str = "", added: Array | float = 0.0) -> dict[str, Array]:
    """Return each site of contexts, and logits: float64 [n, tokens, ...].

    `added`, [n, tokens, WIDTH], is added at a site. Attention is uniform over previous tokens.
    """
    w = {name.rpartition(".")[2]: matrix for name, matrix in weights().items()}
    found: dict[str, Array] = {}

    def at(name: str, x: Array) -> Array:
        found[name] = x + added if name == site else x
        return found[name]

    x = at("resid_pre.0", w["embed_tokens"][ids])
    values = normed(x) @ w["v_proj"].T
    seen = values.cumsum(axis=1) / np.arange(1, ids.shape[1] + 1)[:, None]
    x = x + at("attn_out.0", seen @ w["o_proj"].T)
    read = normed(x)
    gate = read @ w["gate_proj"].T
    gate = gate / (1 + np.exp(-gate))
    x = x + at("mlp_out.0", (gate * (read @ w["up_proj"].T)) @ w["down_proj"].T)
    x = at("resid_pre.1", at("resid_post.0", x))
    # The second block adds nothing.
    x = x + at("attn_out.1", np.zeros_like(x)) + at("mlp_out.1", np.zeros_like(x))
    found["logits"] = 3 * normed(at("resid_post.1", x)) @ w["lm_head"].T
    return found


def log_p(logits: Array) -> Array:
    found: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    config = transformers.LlamaConfig(
        **{
            **planted.SHAPE,
            **{"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 2},
            **{"tie_word_embeddings": False, "rms_norm_eps": EPS, "pad_token_id": None},
            **{"bos_token_id": None, "eos_token_id": None},
        }
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    given = weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = given.get(name.removesuffix(".weight"))
            if own is not None:
                parameter.copy_(torch.from_numpy(own))
            else:
                parameter.fill_(float("norm" in name))
        model.model.norm.weight.fill_(3.0)
    rng = np.random.default_rng(2)
    ids = np.empty((N_CONTEXTS, CONTEXT), dtype=np.int32)
    mode = rng.permutation(np.arange(N_CONTEXTS) % 2)
    ids[:, 0] = mode
    ids[:, 1::2] = rng.choice(NEUTRAL, (N_CONTEXTS, CONTEXT // 2))
    others = rng.integers(0, 4, (N_CONTEXTS, CONTEXT // 2 - 1))
    ids[:, 2::2] = CLASSES[mode[:, None], others]
    documents = np.repeat(np.arange(N_CONTEXTS, dtype=np.int32)[:, None], CONTEXT, axis=1)
    return Study(tmp_path_factory.mktemp("sites"), model.eval(), ids, documents, VOCAB)


def one_hot(*dimensions: int) -> Array:
    row = np.zeros(WIDTH)
    row[list(dimensions)] = 1
    return row


BY_CLASS = [one_hot(*tokens) for tokens in CLASSES.tolist()]
BY_MODE = [one_hot(WRITTEN + mode) for mode in MODES.tolist()]
# By site: what each latent reads, its row, and the tokens whose logits that raises.
DICTIONARIES: dict[str, tuple[list[Array], list[Array], Sequence[Any]]] = {
    # Tokens by name: a neutral one, whose row only the MLP reads, and two others.
    "resid_pre.0": (
        [one_hot(ID + token) for token in (2, 6, 10)],
        [one_hot(IS_NEUTRAL), *[one_hot(*NEUTRAL.tolist())] * 2],
        [[], NEUTRAL, NEUTRAL],
    ),
    "attn_out.0": (BY_MODE, BY_MODE, [[], []]),
    "mlp_out.0": (BY_CLASS, BY_CLASS, CLASSES),
    "resid_post.0": (BY_CLASS, BY_CLASS, CLASSES),
    "resid_pre.1": (BY_CLASS, BY_CLASS, CLASSES),
    "resid_post.1": (BY_CLASS, BY_CLASS, CLASSES),
}


def dictionary(site: str) -> Autoencoder:
    """Make latents that fire where what they read is clearly above 0."""
    read, rows, _ = DICTIONARIES[site]
    encoder, decoder = (torch.tensor(np.array(part), dtype=torch.float32) for part in (read, rows))
    return Autoencoder("topk", encoder, torch.zeros(len(read)), decoder, torch.zeros(WIDTH), k=2)


@pytest.fixture(scope="module", params=sorted(DICTIONARIES))
def at_site(request: pytest.FixtureRequest, study: Study) -> tuple[str, Array, Cell]:
    """Return a site, its dictionary's codes by hand, [n_tokens, n_latents], and its tables."""
    site = request.param
    x = passed(study.ids)[site].reshape(-1, WIDTH)
    codes = np.maximum(x @ np.array(DICTIONARIES[site][0]).T, 0)
    return site, codes, study.cell(site, dictionary(site), "known")


def test_the_model_passes_on_what_is_computed_by_hand(study: Study) -> None:
    subject = load_subject(study.model, CPU)
    ids = torch.from_numpy(study.ids[:4]).long()
    by_hand = passed(study.ids[:4])
    where: dict[str, Any] = {"split": "eval", "contexts": range(4)}
    found = subject.activations(ids, sites=[n for n in by_hand if n != "logits"], **where)
    found["logits"] = subject.logits(ids, **where)
    for name, values in by_hand.items():
        np.testing.assert_allclose(found[name].numpy(), values, atol=1e-5, err_msg=name)


def test_aurocs_are_those_of_the_closed_form_at_each_site(
    study: Study, at_site: tuple[str, Array, Cell]
) -> None:
    """With p of a latent's firings followed by tokens that its row raises: (1 + p - q) / 2.

    q is their share of all next tokens or, for each firing, of those after the same token.
    """
    site, codes, cell = at_site
    assert cell.coverage["no_effects"] is None
    now, following = study.ids[:, :-1].ravel(), study.ids[:, 1:].ravel()
    fires = codes.reshape(N_CONTEXTS, CONTEXT, -1)[:, :-1].reshape(len(now), -1) > 0
    for row, raised, fired in zip(cell.rows, DICTIONARIES[site][2], fires.T, strict=True):
        assert row["firings"] == (codes[:, row["latent"]] > 0).sum()
        is_raised = np.isin(following, raised)
        q = np.bincount(now, is_raised, VOCAB) / np.maximum(1, np.bincount(now))
        wanted = (1 + is_raised[fired] - is_raised.mean()) / 2
        assert row["next_token_auroc"] == pytest.approx(wanted.mean(), abs=1e-12)
        wanted = (1 + is_raised[fired] - q[now[fired]]) / 2
        assert row["next_token_auroc_bigram"] == pytest.approx(wanted.mean(), abs=1e-12)
    unigram, bigram = (cell.column(f"next_token_auroc{form}") for form in ("", "_bigram"))
    if site in ("attn_out.0", "resid_pre.0"):
        # Only the MLP reads the first row, so no direct path shows it.
        assert unigram[0] == 0.5
        assert (bigram == 0.5).all()
    else:
        # A latent of the context says more than the token that it fires on.
        assert (bigram > 0.7).all()
        assert (unigram > 0.8).all()


def test_changes_are_those_of_a_forward_pass_by_hand_at_each_site(
    study: Study, at_site: tuple[str, Array, Cell]
) -> None:
    site, codes, cell = at_site
    assert cell.coverage["no_causal_effects"] is None
    n = codes.shape[1]
    rows = np.array(DICTIONARIES[site][1])
    sizes = np.linalg.norm(rows, axis=1)
    partner = planted.another(site, "another_sampled_latent", n)
    fired, silent = planted.places_of(study, site, codes)
    mean = codes.sum(axis=0) / (codes > 0).sum(axis=0)
    now, following = study.ids[:, :-1].ravel(), study.ids[:, 1:].ravel()
    fires = codes.reshape(N_CONTEXTS, CONTEXT, -1)[:, :-1].reshape(len(now), -1) > 0
    after = np.array([np.bincount(following[f], minlength=VOCAB) / f.sum() for f in fires.T])
    for directions, of in (
        (rows, ""),
        (rows[partner] * (sizes / sizes[partner])[:, None], "_swapped"),
    ):
        for places, amounts, names in (
            (fired, -fired.value, ("ablation_kl_nats", "ablation_ce_nats")),
            (silent, mean[silent.of], ("addition_kl_nats", "addition_logp_nats")),
        ):
            context, at = np.divmod(places.position, CONTEXT)
            added = np.zeros((len(at), CONTEXT, WIDTH))
            each = np.arange(len(at))
            added[each, at] = amounts[:, None] * directions[places.of]
            clean, edited = (
                log_p(passed(study.ids[context], site, add)["logits"][each, at])
                for add in (0.0, added)
            )
            raised = edited - clean
            kl = means_of(places, -(np.exp(clean) * raised).sum(axis=1), n)
            if places is fired:
                ids = study.ids.ravel()[places.position + 1]
                other = means_of(places, -raised[each, ids], n)
            else:
                other = means_of(places, (after[places.of] * raised).sum(axis=1), n)
            for name, wanted in zip(names, (kl, other), strict=True):
                found = cell.column(name + of)
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5, err_msg=name)
    # Even if no direct path leads to the logits.
    assert cell.metric(AblationKlLogRatio())[0] > 1


def test_injection_rates_are_those_of_tokens_written_by_hand(
    study: Study, at_site: tuple[str, Array, Cell]
) -> None:
    site, codes, cell = at_site
    _, silent = planted.places_of(study, site, codes)
    ids = study.ids.ravel()
    n_of = np.bincount(ids, minlength=VOCAB)
    for latent, own in enumerate(codes.T):
        sums = np.bincount(ids, own, VOCAB)
        peak = np.sort(np.argsort(-sums, kind="stable")[: min(5, (sums > 0).sum())])
        firings = np.bincount(ids, own > 0, VOCAB)[peak]
        position = silent.position[silent.of == latent]
        generator = planted.generator_of(site, "injected_tokens")(latent)
        drawn = generator.choice(len(peak), len(position), p=firings / firings.sum())
        context, at = np.divmod(position, CONTEXT)
        written, each = study.ids[context].copy(), np.arange(len(at))
        written[each, at] = peak[drawn]
        x = passed(written)[site][each, at]
        fires = x @ DICTIONARIES[site][0][latent] > 0
        wanted = fires.mean() / (firings / n_of[peak])[drawn].mean()
        assert cell.rows[latent]["token_injection_rate"] == pytest.approx(wanted, abs=1e-12)
    rates = cell.column("token_injection_rate")
    if site == "resid_pre.0":
        # These latents only read the token's own embedding.
        assert (rates == 1).all()
    elif site != "attn_out.0":
        # A neutral token and a mode make them fire; the token alone never does.
        assert (rates == 0).all()
    else:
        # The token of the mode does.
        assert ((rates > 0) & (rates < 1)).all()


def test_a_dictionary_of_the_other_class_is_as_far_below_a_half(study: Study) -> None:
    honest, site = dictionary("mlp_out.0"), "mlp_out.0"
    crossed = replace(honest, w_dec=honest.w_dec.flip(0))
    found = study.cell(site, crossed, "crossed")
    following = study.ids[:, 1:].ravel()
    shares = [np.isin(following, tokens).mean() for tokens in CLASSES]
    # None of these tokens ever follows its firings.
    np.testing.assert_allclose(
        found.column("next_token_auroc"), (1 - np.array(shares[::-1])) / 2, atol=1e-12
    )
    assert (found.column("next_token_auroc_bigram") < 0.3).all()
    assert (found.metric(AdditionGain()) < -0.1).all()
