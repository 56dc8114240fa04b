from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_latents_collect import settings
from test_latents_statistics import firings_of

from nullsae.activations.capture import cache_activations
from nullsae.core.randomness import numpy_generator
from nullsae.latents.causal_effects import COLUMNS, INJECTION, LEAST_PLACES, N_FIRINGS
from nullsae.latents.next_token import Successors
from nullsae.latents.places import firing_places
from nullsae.latents.split import Split
from nullsae.sae.files import load_sae
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model
from run_stages import collected
from small_chain import (
    CONTEXT,
    CPU,
    Chain,
    all_rows,
    capture_params,
    cell,
    model_params,
    write_sae,
)

SITE = "resid_post.1"
Rows = list[dict[str, Any]]


def tables_of(
    chain: Chain,
    sae: Path,
    folder: Path,
    *,
    model: Path | None,
    activations: Path | None = None,
    **keys: Any,
) -> tuple[Rows, dict[str, Any]]:
    """Return sampled rows of `latents`, and `coverage`."""
    found = collected(
        folder,
        **{"latents": settings(**keys), "sae": sae, "model": model, "tokens": chain.eval_tokens},
        activations=activations or chain.eval_activations,
    )
    for row in found["latents"]:
        if not row["sampled"]:
            assert row[N_FIRINGS] == 0
            assert all(row[name] is None for name in COLUMNS)
    return [row for row in found["latents"] if row["sampled"]], found["coverage"][0]


@pytest.fixture(scope="module")
def of_chain(
    chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Rows, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("causal")
    return tables_of(chain, tiny_sae, folder, model=chain.recipe, causal_places=60)


def test_each_sampled_latent_has_its_effects_and_two_placebos(
    of_chain: tuple[Rows, dict[str, Any]],
) -> None:
    rows, coverage = of_chain
    assert coverage["no_causal_effects"] is None
    assert len(rows) >= 5
    for row in rows:
        assert row[N_FIRINGS] >= LEAST_PLACES
        assert all(row[name] is not None for name in COLUMNS)
        for kl in ("ablation_kl_nats", "addition_kl_nats"):
            assert len({row[kl], row[f"{kl}_swapped"], row[f"{kl}_random"]}) == 3
            assert min(row[kl], row[f"{kl}_swapped"], row[f"{kl}_random"]) > 0


def test_effects_are_recomputed_from_shards_weights_and_tokens(
    chain: Chain, tiny_sae: Path, of_chain: tuple[Rows, dict[str, Any]]
) -> None:
    """Places are as drawn; the effects there are computed by hooks and whole passes."""
    sae, _ = load_sae(tiny_sae)
    x, _ = all_rows(chain.eval_activations, SITE)
    top = ((x - sae.b_dec) @ sae.w_enc.T + sae.b_enc).topk(sae.k, dim=1)
    codes = torch.zeros(len(x), sae.n_latents).scatter(1, top.indices, top.values.relu())
    split = Split.open(chain.eval_tokens)
    latents = np.array([row["latent"] for row in of_chain[0]])
    order = numpy_generator(0, "causal_contexts").permutation(split.n_tokens // CONTEXT)
    places = firing_places(
        *(firings_of(codes.numpy()), latents, Successors.of(split).pair, split, order, 60),
        partial(numpy_generator, 0, "ablated_firings", *cell(SITE).parts()),
    )
    model = load_subject(chain.recipe, CPU).model
    ids = torch.from_numpy(split.ids.reshape(-1, CONTEXT)).long()

    def log_p(position: np.ndarray, taken: torch.Tensor) -> np.ndarray:
        context, t = np.divmod(position, CONTEXT)

        def take_away(_m: Any, _a: Any, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[range(len(t)), t] -= taken
            return x

        handle = model.gpt_neox.layers[1].register_forward_hook(take_away)
        logits = model(input_ids=ids[context]).logits[range(len(t)), t].double()
        handle.remove()
        return np.asarray(logits.log_softmax(dim=1))

    for index, row in enumerate(of_chain[0][:6]):
        position = places.position[places.of == index]
        value = codes[position, row["latent"]]
        assert bool((value > 0).all())
        taken = value[:, None] * sae.w_dec[row["latent"]]
        clean, edited = log_p(position, 0 * taken), log_p(position, taken)
        kl = (np.exp(clean) * (clean - edited)).sum(axis=1)
        ce = (clean - edited)[range(len(kl)), split.ids[position + 1]]
        assert row[N_FIRINGS] == len(kl)
        assert row["ablation_kl_nats"] == pytest.approx(np.mean(kl), rel=1e-3)
        assert row["ablation_ce_nats"] == pytest.approx(np.mean(ce), rel=1e-3, abs=1e-5)


def test_two_runs_have_the_same_effects(
    chain: Chain, tiny_sae: Path, of_chain: tuple[Rows, dict[str, Any]], tmp_path: Path
) -> None:
    assert tables_of(chain, tiny_sae, tmp_path, model=chain.recipe, causal_places=60) == of_chain


@pytest.mark.parametrize(
    ("keys", "with_model", "reason"),
    [
        ({}, False, "no model"),
        ({"causal_places": 0}, True, "latents.causal_places is 0"),
        ({"min_firings": 10_000}, True, "no latent is sampled"),
    ],
)
def test_where_there_are_no_effects_a_reason_says_why(
    chain: Chain,
    tiny_sae: Path,
    keys: dict[str, Any],
    with_model: bool,
    reason: str,
    tmp_path: Path,
) -> None:
    model = chain.recipe if with_model else None
    rows, coverage = tables_of(chain, tiny_sae, tmp_path, model=model, **keys)
    assert coverage["no_causal_effects"] == reason
    assert all(row[name] is None for row in rows for name in COLUMNS)


def test_the_only_sampled_latent_has_no_other_as_its_placebo(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    (row,), _ = tables_of(chain, tiny_sae, tmp_path, model=chain.recipe, n_sampled=1)
    for name in COLUMNS:
        assert (row[name] is None) == name.endswith("_swapped")


def test_a_latent_with_too_few_contexts_has_no_effects(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    least = {"min_firings": 1, "min_pool_windows": 1, "n_sampled": 48}
    rows, _ = tables_of(chain, tiny_sae, tmp_path, model=chain.recipe, **least)
    few = [row for row in rows if row[N_FIRINGS] < LEAST_PLACES]
    assert 0 < len(few) < len(rows)
    assert all(row["ablation_kl_nats"] is None for row in few)
    assert all(row["ablation_kl_nats"] is not None for row in rows if row not in few)


def test_a_dictionary_of_tokens_is_reached_by_its_tokens_and_by_no_others(
    chain: Chain, tmp_path: Path
) -> None:
    from nullsae.sae.dictionaries.token_lookup import token_lookup
    from nullsae.sae.token_means import fit_token_means

    x, position = all_rows(chain.train_activations, SITE)
    ids = load_file(chain.train_tokens.with_name("tokens.safetensors"))["input_ids"].reshape(-1)
    pairs = [(x, torch.from_numpy(ids[position].astype(np.int64)))]
    sae = token_lookup(*fit_token_means(pairs, 96, x.shape[1]))
    written = write_sae(sae, tmp_path / "sae", site=SITE, dictionary="token_lookup")
    rows, _ = tables_of(chain, written, tmp_path, model=chain.recipe, causal_places=60)
    assert len(rows) >= 3
    for row in rows:
        assert row["token_injection_rate"] == 1
        assert row["token_injection_rate_swapped"] == 0


def test_a_model_that_sees_noise_is_reached_by_no_token(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    noise, captured = tmp_path / "noise", tmp_path / "eval"
    randomize_model(
        model_params(None, "noise_embeddings", embedding_noise_std=1.0),
        trained=chain.recipe,
        eval_tokens=chain.eval_tokens,
        output=noise,
    )
    cache_activations(
        capture_params(sites=(SITE,)),
        split="eval",
        model=noise / "recipe.json",
        tokens=chain.eval_tokens,
        output=captured,
    )
    rows, _ = tables_of(
        chain,
        tiny_sae,
        tmp_path,
        model=noise / "recipe.json",
        activations=captured / "manifest.json",
        causal_places=60,
    )
    assert len(rows) >= 3
    assert all(row[name] == 0 for row in rows for name in INJECTION)
    assert all(row["ablation_kl_nats"] > 0 for row in rows)


def test_rates_of_written_tokens_are_near_those_of_writing_them_everywhere(
    chain: Chain, tiny_sae: Path, of_chain: tuple[Rows, dict[str, Any]]
) -> None:
    """By whole passes over the silent windows, each of a latent's peak tokens at each place."""
    sae, _ = load_sae(tiny_sae)
    subject = load_subject(chain.recipe, CPU)
    corpus = load_file(chain.eval_tokens.with_name("tokens.safetensors"))
    ids, document = (corpus[name] for name in ("input_ids", "document_id"))
    n, context = ids.shape
    whole = (document.reshape(n, -1, 4) == document.reshape(n, -1, 4)[:, :, :1]).all(axis=2)

    def codes(tokens: np.ndarray) -> np.ndarray:
        x = subject.activations(
            torch.from_numpy(tokens), split="eval", contexts=range(len(tokens)), sites=[SITE]
        )[SITE].flatten(0, 1)
        top = ((x - sae.b_dec) @ sae.w_enc.T + sae.b_enc).topk(sae.k, dim=1)
        dense = torch.zeros(len(x), sae.n_latents).scatter(1, top.indices, top.values.relu())
        return np.asarray(dense.reshape(*tokens.shape, -1))

    plain, differences = codes(ids), []
    everywhere = np.arange(context)
    for row in of_chain[0][:4]:
        own = plain[:, :, row["latent"]]
        sums = np.bincount(ids.reshape(-1), own.reshape(-1), 96)
        peak = [v for v in np.argsort(-sums, kind="stable")[:5] if sums[v] > 0]
        firings = np.array([(own[ids == v] > 0).sum() for v in peak])
        rates = firings / np.array([(ids == v).sum() for v in peak])
        shares = firings / firings.sum()
        quiet = (whole & (own.reshape(n, -1, 4) == 0).all(axis=2)).repeat(4, axis=1)
        reached = np.zeros(len(peak))
        for i, v in enumerate(peak):
            written = np.tile(ids[:, None], (1, context, 1))
            written[:, everywhere, everywhere] = v
            found = codes(written.reshape(-1, context)).reshape(n, context, context, -1)
            reached[i] = (found[:, everywhere, everywhere, row["latent"]][quiet] > 0).mean()
        wanted = shares @ reached / (shares @ rates)
        differences.append(row["token_injection_rate"] - wanted)
    # Each is of 60 draws, and the rate may be small.
    assert max(np.abs(differences)) < 0.3
    assert abs(np.mean(differences)) < 0.1
