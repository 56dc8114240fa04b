from __future__ import annotations

from typing import Any

import pytest

from nullsae.config.parse import parse_section
from nullsae.config.saes import Sae
from refusing import refused

MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"architecture": ["topk"]},
        "architecture: ['topk'] is not one of topk, batch_topk, matryoshka, jumprelu, gated, "
        "standard; did you mean 'topk'?",
    ),
    (
        {"architecture": "gated", "k": 32},
        "k is for architecture topk or batch_topk or matryoshka or jumprelu, not 'gated'",
    ),
    (
        {"architecture": "standard", "k": 32},
        "k is for architecture topk or batch_topk or matryoshka or jumprelu, not 'standard'",
    ),
    (
        {"l1_coefficient": 1.0},
        "l1_coefficient is for architecture gated or standard, not 'topk'",
    ),
    # Whatever its value: also the one that it has where it is not given.
    (
        {"l1_coefficient": 0.2},
        "l1_coefficient is for architecture gated or standard, not 'topk'",
    ),
    (
        {"architecture": "gated", "k": None},
        "k is for architecture topk or batch_topk or matryoshka or jumprelu, not 'gated'",
    ),
    (
        {"architecture": "batch_topk", "multi_topk": False},
        "multi_topk is for architecture topk, not 'batch_topk'",
    ),
    ({"n_components": None}, "n_components is for dictionary pca only"),
    (
        {"dictionary": "frozen_decoder", "min_decoder_cosine": 0.8},
        "min_decoder_cosine is for dictionary soft_frozen_decoder only",
    ),
    (
        {"architecture": "jumprelu", "auxk_coefficient": 0.25},
        "auxk_coefficient is for architecture topk or batch_topk or matryoshka, not 'jumprelu'",
    ),
    (
        {"architecture": "jumprellu", "bandwidth": 0.1},
        "architecture: 'jumprellu' is not one of topk, batch_topk, matryoshka, jumprelu, gated, "
        "standard; did you mean 'jumprelu'?",
    ),
    (
        {"architecture": "standard", "initial_threshold": 0.5},
        "initial_threshold is for architecture jumprelu, not 'standard'",
    ),
    (
        {"architecture": "batch_topk", "multi_topk": True},
        "multi_topk is for architecture topk, not 'batch_topk'",
    ),
    (
        {"architecture": "jumprelu", "auxk_k": 3},
        "auxk_k is for architecture topk or batch_topk or matryoshka, not 'jumprelu'",
    ),
    (
        {"architecture": "matryoshka", "prefix_shares": [0.5, 0.25, 1.0]},
        "prefix_shares: [0.5, 0.25, 1.0] must rise, and end at 1",
    ),
    (
        {"architecture": "matryoshka", "prefix_shares": [0.5]},
        "prefix_shares: [0.5] must rise, and end at 1",
    ),
    *(
        (
            {"architecture": architecture, "dictionary": "frozen_encoder"},
            "dictionary 'frozen_encoder' needs an architecture whose k is kept without learning "
            f"(topk, batch_topk, matryoshka), not '{architecture}'",
        )
        for architecture in ("jumprelu", "gated", "standard")
    ),
    (
        {"from": "topk"},
        "from is for dictionary rotated or rotated_whitened or rate_matched_random or given only",
    ),
    (
        {"dictionary": "rotated", "from": "topk"},
        "dictionary 'rotated' has its own width: drop n_latents and expansion_factor",
    ),
    (
        {"dictionary": "rotated", "n_latents": None},
        "from: missing; name the SAE of saes that dictionary 'rotated' is made from",
    ),
    (
        {"dictionary": "rotated", "from": "topk", "n_latents": None, "k": 8},
        "k: dictionary 'rotated' is as active as the SAE that it is made from: drop k",
    ),
    (
        {"dictionary": "given", "n_latents": None},
        "dictionary 'given': from or pretrained is missing; name its SAE",
    ),
    (
        {"dictionary": "given", "n_latents": None, "from": "topk", "pretrained": "a/b"},
        "give either from or pretrained",
    ),
    (
        {"architecture": "batch_topk", "dictionary": "pca", "n_latents": None},
        "dictionary 'pca' is not trained: leave out architecture 'batch_topk'",
    ),
]


@pytest.mark.parametrize(("keys", "line"), MISTAKES, ids=lambda v: str(v)[:60])
def test_a_mistaken_recipe_is_refused_with_a_line_that_names_it(
    keys: dict[str, Any], line: str
) -> None:
    said = refused(parse_section, Sae, {"n_latents": 64, **keys}, where="saes.one")
    assert said == f"saes.one: {line}"


def test_a_narrow_sae_that_a_penalty_keeps_sparse_needs_no_k() -> None:
    """The default k of 32 is not for those that a penalty keeps sparse."""
    for architecture in ("gated", "standard"):
        assert Sae.of(architecture=architecture, n_latents=16).kept == 16
        assert Sae.of(architecture=architecture, n_latents=64).kept == 32
    with pytest.raises(ValueError, match="k 32 is larger than n_latents 16"):
        Sae.of(architecture="batch_topk", n_latents=16)


def test_a_null_is_taken_for_every_architecture_that_it_goes_with() -> None:
    every = ("topk", "batch_topk", "matryoshka", "jumprelu", "gated", "standard")
    for architecture in every:
        for dictionary in ("learned", "frozen_decoder", "soft_frozen_decoder"):
            Sae.of(architecture=architecture, dictionary=dictionary, n_latents=64)
    for architecture in every[:3]:
        Sae.of(architecture=architecture, dictionary="frozen_encoder", n_latents=64)


def test_a_key_of_the_config_and_its_field_in_params_are_one() -> None:
    given = Sae.of(**{"dictionary": "rotated", "from": "topk"})
    assert given.origin.source == "topk"
    assert Sae.model_validate_json(given.model_dump_json()) == given
