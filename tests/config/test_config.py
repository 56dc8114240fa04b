from __future__ import annotations

import copy
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nullsae.config.endpoints import Endpoint
from nullsae.config.model_files import is_local
from nullsae.config.parse import config_schema, parse_config, parse_section, resolve_subjects
from nullsae.config.sites import site_layer
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.jobs.saes import TrainSaeParams
from refusing import refused
from small_chain import tiny_model

STUDY: dict[str, Any] = {
    "corpora": {
        "text": {
            "source": {"kind": "builtin"},
            "tokenizer": {"kind": "train"},
            "context_tokens": 64,
            "sae_train_tokens": 10_000,
            "eval_tokens": 1_000,
        }
    },
    "subjects": {
        "small": {
            "corpus": "text",
            "source": {"kind": "train", "d_model": 64},
            "sites": ["resid_post.1"],
        }
    },
    "variants": ["trained", "step0"],
    "activations": {"sae_train_tokens": 5_000},
    "saes": {"topk": {"n_latents": 256, "k": 8}},
    "explainers": {"lexical": {"kind": "lexical"}, "swapped": {"kind": "swapped", "of": "lexical"}},
    "scorers": {"fuzzing": {"kind": "fuzzing"}},
}
DROP = object()


def changed(key: str, value: Any) -> dict[str, Any]:
    """Return the study with one key set, or dropped."""
    study = copy.deepcopy(STUDY)
    section: Any = study
    *path, last = key.split("/")
    for part in path:
        section = section.setdefault(part, {})
    if value is DROP:
        del section[last]
    else:
        section[last] = value
    return study


def refusal(data: Any) -> str:
    """Return the lines about mistakes."""
    with pytest.raises(UserError) as caught:
        parse_config(data)
    return str(caught.value)


MISTAKES: list[tuple[str, Any, str]] = [
    # unknown and missing keys
    ("seeed", 1, "seeed: unknown key; did you mean 'seed'?"),
    ("saes/topk/n_latent", 1, "saes.topk.n_latent: unknown key; did you mean 'n_latents'?"),
    ("saes/topk/zzz", 1, "saes.topk.zzz: unknown key"),
    (
        "subjects/small/source/n_layer",
        3,
        "subjects.small.source.n_layer: unknown key; did you mean 'n_layers'?",
    ),
    (
        "subjects/small/source/revision",
        "main",
        "subjects.small.source.revision: unknown key",  # a key of the other kind
    ),
    ("subjects/small/corpus", DROP, "subjects.small.corpus: missing"),
    ("activations", DROP, "activations: missing"),
    ("corpora/text/source", {}, "corpora.text.source: kind: missing"),
    (
        "subjects/small/source/kind",
        "trian",
        "subjects.small.source: kind: 'trian' is not one of train, pretrained, gguf; "
        "did you mean 'train'?",
    ),
    # types and ranges
    ("saes/topk/k", "16", "saes.topk.k: '16' is text, not a number"),
    (
        "saes/topk/lr",
        "2e-3",
        "saes.topk.lr: '2e-3' is text, not a number; YAML reads 2e-3 as text, write 2.0e-3",
    ),
    ("saes/topk/lr", -1.0, "saes.topk.lr: -1.0: input should be greater than 0"),
    ("compute/threads", 1.5, "compute.threads: 1.5: input should be a valid integer"),
    ("compute/threads", True, "compute.threads: True: input should be a valid integer"),
    ("statistics/confidence", 95, "statistics.confidence: 95: input should be less than 1"),
    ("saes", None, "saes: None: input should be an object"),
    ("compute/device", "gpu", "compute.device: 'gpu' is not one of auto, cpu, mps, cuda, cuda:N"),
    (
        "activations/dtype",
        "fp16",
        "activations.dtype: 'fp16' is not one of float32, bfloat16, float16",
    ),
    (
        "variants",
        ["trained", "rerandomised"],
        "variants.1: 'rerandomised' is not one of trained, retrained, step0, fresh_init, "
        "rerandomized, rerandomized_keep_embeddings, permuted_weights, spectrum_matched, cascade, "
        "permuted_embeddings, rotated_embeddings, noise_embeddings, gaussian; "
        "did you mean 'rerandomized'?",
    ),
    (
        "saes/topk/dictionary",
        "frozen_decodr",
        "saes.topk.dictionary: 'frozen_decodr' is not one of learned, frozen_decoder, "
        "soft_frozen_decoder, frozen_encoder, token_lookup, pca, identity, rotated, "
        "rotated_whitened, rate_matched_random, given; "
        "did you mean 'frozen_decoder'?",
    ),
    (
        "saes/topk",
        {"dictionary": "pca", "n_latents": 512},
        "saes.topk: dictionary 'pca' has its own width: drop n_latents and expansion_factor",
    ),
    (
        "saes/topk",
        {"dictionary": "token_lookup", "k": 16},
        "saes.topk: k 16 does not fit dictionary 'token_lookup', which has one latent per token: "
        "give k 1 or leave it out",
    ),
    (
        "saes/topk",
        {"n_components": 8, "n_latents": 64},
        "saes.topk: n_components is for dictionary pca only",
    ),
    (
        "saes/topk",
        {"pretrained": "a/b", "dictionary": "pca"},
        "saes.topk: pretrained does not go with dictionary 'pca'",
    ),
    (
        "saes/topk",
        {"pretrained": "a/b", "n_latents": 64},
        "saes.topk: a pretrained SAE has its own width: drop n_latents and expansion_factor",
    ),
    # names
    (
        "saes/a b",
        {"k": 1, "n_latents": 2},
        "saes: 'a b' is not a name; use letters, digits, '_', '.', '-': it becomes a folder",
    ),
    (
        "subjects/small/sites",
        ["mlp.1"],
        "subjects.small.sites: 'mlp.1' is not a site; "
        "write embed, or one of resid_pre, hook_z, attn_out, resid_mid, mlp_in, mlp_post, mlp_out, "
        "resid_post with a block: "
        "resid_post.3, resid_post.-1 (the last), resid_post.* (all), resid_post.0..8 (both ends) "
        "or resid_post.0..-1..4 (every fourth)",
    ),
    (
        "subjects/small/sites",
        ["resid_post.01"],
        "subjects.small.sites: 'resid_post.01' is not a site; "
        "write embed, or one of resid_pre, hook_z, attn_out, resid_mid, mlp_in, mlp_post, mlp_out, "
        "resid_post with a block: "
        "resid_post.3, resid_post.-1 (the last), resid_post.* (all), resid_post.0..8 (both ends) "
        "or resid_post.0..-1..4 (every fourth)",
    ),
    (
        "subjects/small/sites",
        ["resid_post.1", "resid_post.1"],
        "subjects.small.sites: 'resid_post.1' is named twice",
    ),
    ("variants", ["trained", "trained"], "variants: 'trained' is named twice"),
    ("variants", [], "variants: is empty; give at least 1"),
    ("variants", {"trained"}, "variants: a value of type set; write a list"),
    ("draws", 10**9, "draws: 1000000000: input should be less than or equal to 1000"),
    ("saes/topk/pretrained", 7, "saes.topk.pretrained: 7: input should be an object"),
    (
        "saes/topk/seeds",
        [-1],
        "saes.topk.seeds.0: -1: input should be greater than or equal to 0",  # and no more
    ),
    (
        "saes/" + "a" * 101,
        {"k": 1, "n_latents": 2},
        "saes: 'aaaaaaaaaaaaaaaaaaaa...' has 101 characters; use at most 100: it becomes a folder",
    ),
    (
        "report/title",
        "a\udcff",  # a byte of a command line that is not UTF-8
        "report.title: not text: it has a byte that is not UTF-8, or half of a surrogate pair",
    ),
    ("report/title", b"hello", "report.title: a value of type bytes; write text"),
    ("saes/topk/seeds", [0, 1, 0], "saes.topk.seeds: '0' is named twice"),
    # what does not fit together
    ("variants", ["step0"], "variants: 'trained' is missing; every contrast is against it"),
    (
        "subjects/small/corpus",
        "txt",
        "subjects.small.corpus: 'txt' is not one of corpora (text)",
    ),
    (
        "subjects/small/source/n_heads",
        5,
        "subjects.small.source: d_model 64 over n_heads 5 is not an even whole number",
    ),
    ("saes/topk/expansion_factor", 4, "saes.topk: give either n_latents or expansion_factor"),
    ("saes/topk/n_latents", DROP, "saes.topk: give either n_latents or expansion_factor"),
    (
        "saes/topk/k",
        257,
        "saes.topk: k 257 is larger than n_latents 256; k is the number of latents kept per "
        "token, at most n_latents",
    ),
    (
        "activations/sae_train_tokens",
        10_001,
        "activations.sae_train_tokens: 10001 is more than corpora.text.sae_train_tokens 10000",
    ),
    (
        "latents/window_tokens",
        65,
        "latents.window_tokens: 65 is more than corpora.text.context_tokens 64",
    ),
    (
        "explainers/swapped/of",
        "swapped",
        "explainers.swapped.of: 'swapped' is not an explainer that writes explanations",
    ),
    (
        "subjects/small/source",
        {"kind": "pretrained", "path": "a/b"},
        "subjects.small.source.step0_revision: missing, but variants names step0; give the "
        "revision of the untrained weights, or step0_path, or use fresh_init instead of step0",
    ),
    (
        "explainers/gpt",
        {"kind": "openai", "model": "m", "base_url": "https://a.org/v1?key=s3cr3t"},
        "explainers.gpt.base_url: its query has 'key', and a config must not contain secrets; put "
        "it into an environment variable and name that in api_key_env or headers_env",
    ),
    (
        "explainers/gpt",
        {"kind": "openai", "model": "m", "headers_env": {"api-key": "s3cr3t-0123"}},
        "explainers.gpt.headers_env: api-key: not the name of an environment variable, such as "
        "AZURE_OPENAI_API_KEY; put the header's value into that variable",
    ),
    (
        "explainers/gpt",
        {"kind": "openai", "model": "m", "headers_env": {"api key": "A_KEY"}},
        "explainers.gpt.headers_env: 'api key' is not the name of a header, such as api-key",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "line"), MISTAKES, ids=lambda v: "DROP" if v is DROP else str(v)[:40]
)
def test_a_mistake_is_refused_with_a_line_that_names_it(key: str, value: Any, line: str) -> None:
    assert refusal(changed(key, value)) == f"config: {line}"


def test_the_default_key_is_not_sent_next_to_the_users_own_headers() -> None:
    def key_of(**endpoint: Any) -> str | None:
        study = changed("explainers/gpt", {"kind": "openai", "model": "m", **endpoint})
        found = parse_config(study).explainers["gpt"].endpoint
        assert found is not None
        # Params that are written and read again agree.
        assert (
            Endpoint.model_validate_json(
                found.model_dump_json(include=set(Endpoint.model_fields))
            ).api_key_env
            == found.api_key_env
        )
        return found.api_key_env

    azure = {"base_url": "https://a.org/openai/deployments/m?api-version=1"}
    headers = {"headers_env": {"api-key": "A_KEY"}}
    assert key_of(**azure) == "OPENAI_API_KEY"
    assert key_of(**azure, **headers) is None
    assert key_of(**azure, **headers, api_key_env="B_KEY") == "B_KEY"


def test_the_study_of_these_tests_is_valid() -> None:
    config = parse_config(STUDY)
    assert config.saes["topk"].width(64) == 256
    assert config.variants == ("trained", "step0")


def test_all_of_several_mistakes_are_reported() -> None:
    study = changed("seeed", 1)
    study["saes"]["topk"]["k"] = 0
    assert sorted(refusal(study).splitlines()) == [
        "config: saes.topk.k: 0: input should be greater than 0",
        "config: seeed: unknown key; did you mean 'seed'?",
    ]


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_file_that_is_not_a_mapping_is_refused(data: Any) -> None:
    assert refusal(data) == f"config: {data!r}: input should be an object"


def test_a_bare_date_of_yaml_is_read_as_text() -> None:
    source = {"kind": "pretrained", "path": "a/b", "step0_revision": datetime.date(2024, 1, 31)}
    found = parse_config(changed("subjects/small/source", source)).subjects["small"].source
    assert getattr(found, "step0_revision", None) == "2024-01-31"


def test_an_entry_set_to_null_is_removed() -> None:
    config = parse_config(changed("saes/other", None))
    assert list(config.saes) == ["topk"]
    empty = "saes: is empty; give at least 1"
    assert refusal(changed("saes/topk", None)) == f"config: {empty}"


def test_a_suggestion_comes_from_the_same_section() -> None:
    """Params suggest keys of their own model, not of the config."""
    message = r"(?m)^--params: activation_key: unknown key; did you mean 'activations_key'\?$"
    with pytest.raises(UserError, match=message):
        parse_section(TrainSaeParams, {"activation_key": ""}, where="--params")


def test_the_config_cannot_be_changed_after_its_check() -> None:
    config = parse_config(STUDY)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_the_merged_config_reads_back_the_same() -> None:
    config = parse_config(STUDY)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    assert parse_config(yaml.safe_load(text)) == config


def test_the_default_study_is_valid() -> None:
    root = Path(__file__).parents[2]
    config = parse_config(yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8")))
    resolve_subjects(config)
    assert "trained" in config.variants


def test_the_schema_has_every_section_and_lets_no_unknown_keys_through() -> None:
    schema = json.loads(config_schema())
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name


def test_draws_multiply_only_random_variants() -> None:
    study = changed("draws", 3)
    config = parse_config(study)
    assert config.draws_of("trained", "small") == config.draws_of("step0", "small") == range(1)
    for variant in ("rerandomized", "noise_embeddings", "retrained"):
        assert config.draws_of(variant, "small") == range(3)


def test_site_names_lead_to_their_blocks() -> None:
    assert [site_layer(s) for s in ("resid_post.0", "resid_post.1", "resid_post.10")] == [0, 1, 10]


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("gpt2", False),
        ("a/b", False),
        ("./a", True),
        ("/a/b", True),
        ("~/a", True),
        ("a/b/c", True),
    ],
)
def test_a_folder_is_told_from_a_hub_id(path: str, local: bool) -> None:
    assert is_local(path) == local


def subject_at(path: Path, **keys: Any) -> Config:
    study = changed("subjects/small/source", {"kind": "pretrained", "path": str(path)})
    study["variants"] = ["trained"]
    study["subjects"]["small"] |= keys
    return parse_config(study)


def test_a_local_model_is_looked_at_before_the_study(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve_subjects(subject_at(tmp_path))
    assert str(caught.value) == (
        f"config: subjects.small.source.path: '{tmp_path}' holds no config.json; give a local "
        f"model folder or a hub id such as EleutherAI/pythia-70m"
    )
    for kind in ("gpt2", "llama"):  # n_layer and num_hidden_layers
        tiny_model(kind).config.save_pretrained(tmp_path)
        resolve_subjects(subject_at(tmp_path, sites=["resid_post.2"]))
        said = refused(resolve_subjects, subject_at(tmp_path, sites=["resid_post.3"]))
        assert said == (
            "config: subjects.small.sites: resid_post.3 is beyond the last block; the subject "
            "has 3 blocks, 0 to 2"
        )


def test_k_beyond_an_expansion_is_refused() -> None:
    study = changed("saes/topk", {"k": 129, "expansion_factor": 2})
    assert refused(resolve_subjects, parse_config(study)) == (
        "config: saes.topk.k: 129 is larger than the number of latents that can be active at "
        "once, 128, at 64 dimensions"
    )
    # Only one of plus and minus a direction is active.
    for k, dictionary in ((64, "pca"), (64, "identity")):
        resolve_subjects(parse_config(changed("saes/topk", {"k": k, "dictionary": dictionary})))
        study = changed("saes/topk", {"k": k + 1, "dictionary": dictionary})
        with pytest.raises(UserError, match="active at once, 64, at 64"):
            resolve_subjects(parse_config(study))


def test_scorers_judge_explanations_of_their_own_side() -> None:
    """A placebo has the side of the explanations that it exchanges."""
    study = changed("explainers/promoted", {"kind": "promoted"})
    study["explainers"]["other"] = {"kind": "swapped", "of": "promoted"}
    study["scorers"]["continuation"] = {"kind": "continuation"}
    assert parse_config(study).scored_pairs() == [
        *(("lexical", "fuzzing"), ("swapped", "fuzzing")),
        *(("promoted", "continuation"), ("other", "continuation")),
    ]


def test_what_was_made_elsewhere_is_judged_there_unless_a_judge_is_named() -> None:
    """Token statistics are judged on the windows of such scores, but others' texts are not."""
    study = changed("explainers/theirs", {"kind": "import", "path": "a/{site}"})
    study["explainers"]["swap"] = {"kind": "swapped", "of": "theirs"}
    study["scorers"]["given"] = {"kind": "import", "of": "theirs", "path": "b/{site}"}
    formula = [("lexical", "fuzzing"), ("lexical", "given")]
    formula += [("swapped", "fuzzing"), ("swapped", "given")]
    assert parse_config(study).scored_pairs() == [*formula, ("theirs", "given")]
    study["scorers"]["fuzzing"]["judge"] = {"model": "m", "api_key_env": None}
    asked = [("theirs", "fuzzing"), ("theirs", "given"), ("swap", "fuzzing")]
    assert parse_config(study).scored_pairs() == [*formula, *asked]
    study["scorers"]["given"]["of"] = "lexical"
    with pytest.raises(UserError, match=r"given\.of: 'lexical' is not an explainer of kind import"):
        parse_config(study)


def test_a_scorer_without_explanations_of_its_side_is_refused() -> None:
    said = refused(parse_config, changed("scorers/next", {"kind": "continuation"}))
    assert said == (
        "config: scorers.next: kind continuation judges explanations of the output side, but no "
        "explainer writes any"
    )
