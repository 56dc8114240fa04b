from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import nullsae
from nullsae import tables
from nullsae.activations.capture import cache_activations
from nullsae.config.corpora import TrainedTokenizer
from nullsae.config.latents import Latents
from nullsae.corpus.store import load_tokens
from nullsae.corpus.tokenizer import train_tokenizer
from nullsae.jobs.keys import CellKeys
from nullsae.subjects.loading import load_subject
from run_stages import collected
from small_chain import (
    CONTEXT,
    CPU,
    VOCAB,
    Chain,
    capture_params,
    tiny_model,
    write_corpus,
)

SITE = "resid_post.1"
SETTINGS: dict[str, Any] = {
    **{"n_sampled": 6, "min_firings": 20, "min_pool_windows": 4, "window_tokens": 4},
    **{"causal_places": 4, "skip_start_tokens": 1},
}


@pytest.fixture(scope="module")
def ids(chain: Chain) -> torch.Tensor:
    return torch.from_numpy(load_tokens(chain.eval_tokens).input_ids)


@pytest.fixture(scope="module")
def sae(tiny_sae: Path) -> nullsae.Autoencoder:
    return nullsae.load_sae(str(tiny_sae.parent))


@pytest.fixture(scope="module")
def found(chain: Chain, sae: nullsae.Autoencoder, ids: torch.Tensor) -> Any:
    model = load_subject(chain.recipe, CPU).model
    return nullsae.collect(model, sae, ids, site=SITE, **SETTINGS)


def test_tables_equal_those_of_the_rule_on_the_same_tokens(
    found: Any, chain: Chain, tiny_sae: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    rows = np.repeat(np.arange(len(ids), dtype=np.int32)[:, None], CONTEXT, axis=1)
    tokens = write_corpus(tmp_path / "eval", ids.numpy(), rows)
    captured = tmp_path / "activations"
    cache_activations(
        capture_params(sites=(SITE,)),
        split="eval",
        model=chain.recipe,
        tokens=tokens,
        output=captured,
    )
    written = collected(
        tmp_path,
        keys=CellKeys(subject="", variant="trained", draw=0, site=SITE, sae="", seed=0),
        latents=Latents(**SETTINGS),
        sae=tiny_sae,
        activations=captured / "manifest.json",
        tokens=tokens,
        model=chain.recipe,
    )
    latents, windows = (
        pq.read_table(tmp_path / f"{name}.parquet") for name in ("latents", "windows")
    )
    assert found.windows.equals(windows)
    schema = tables.cell_schema("latents")
    assert found.latents.schema.equals(schema, check_metadata=True)
    assert found.coverage == written["coverage"][0]
    assert found.coverage["n_sampled"] == 6
    for name in latents.column_names:
        own, other = (table.column(name).to_pylist() for table in (found.latents, latents))
        assert own == other, name


def test_firings_equal_those_counted_with_hooks_and_topk(
    found: Any, chain: Chain, sae: nullsae.Autoencoder, ids: torch.Tensor
) -> None:
    model = load_subject(chain.recipe, CPU).model
    with torch.no_grad():
        states = model(ids.long(), output_hidden_states=True).hidden_states[2]
        pre = (states[:, 1:].flatten(0, 1) - sae.b_dec) @ sae.w_enc.T + sae.b_enc
        values, latents = pre.relu().topk(4, dim=1)
    counts = np.bincount(latents[values > 0].numpy(), minlength=sae.n_latents)
    table = found.latents.to_pandas()
    assert table.firings.tolist() == counts.tolist()
    assert table.next_token_auroc.notna().any()
    assert table.ablation_kl_nats.notna().any()


def test_texts_are_packed_into_whole_contexts(sae: nullsae.Autoencoder) -> None:
    texts = [f"text number {n}, of some words and {n * n} more" for n in range(80)]
    encoder = train_tokenizer(texts, TrainedTokenizer(kind="train", vocab_size=270))
    model = tiny_model("gpt_neox", vocab_size=270)
    found = nullsae.collect(
        *(model, sae, (text for text in [*texts, "half of a character: \ud800"])),
        site=SITE,
        tokenizer=encoder.tokenizer,
        context_tokens=16,
        **(SETTINGS | {"causal_places": 0}),
    )
    texts.append("half of a character: \ufffd")
    # An end-of-text token follows each document.
    n_tokens = sum(len(ids) + 1 for ids in encoder.encode(texts))
    assert found.coverage["n_tokens"] == n_tokens // 16 * 16
    window = found.windows.to_pylist()[0]
    text = encoder.tokenizer.decode(window["token_ids"])
    assert text in "<|endoftext|>".join(texts)


def test_a_base_model_has_everything_except_effects(sae: nullsae.Autoencoder) -> None:
    model = tiny_model("gpt_neox").base_model
    ids = torch.randint(VOCAB, (40, 16), generator=torch.Generator().manual_seed(0))
    found = nullsae.collect(model, sae, ids, site=SITE, **SETTINGS)
    assert found.coverage["no_effects"] == "no model"
    assert found.latents.column("next_token_auroc").null_count == sae.n_latents
    assert sum(found.latents.column("firings").to_pylist()) > 0


@pytest.mark.parametrize(
    ("texts", "keys", "said"),
    [
        (["a"], {}, "collect: tokenizer: missing; texts need the model's fast tokenizer"),
        (None, {}, "should be a list of texts, or a tensor of token ids"),
        (torch.ones(2, 16, dtype=torch.int64), {"batch_contexts": 0}, "batch_contexts: 0 is not a"),
        ("a", {}, "should be a list of texts, or a tensor of token ids"),
        (torch.ones(2, 16), {}, r"token ids are torch\.float32 \[2, 16\], should be integers"),
        (torch.full((2, 16), VOCAB), {}, f"token id {VOCAB} is beyond the subject's vocabulary"),
        (torch.ones(2, 64, dtype=torch.int64), {}, "contexts of 64 tokens, but the subject reads"),
        (torch.ones(2, 16, dtype=torch.int64), {"site": "resid_post.7"}, "beyond the last block"),
        (torch.ones(2, 16, dtype=torch.int64), {"site": "blocks.1"}, "is not a site"),
        (torch.ones(2, 16, dtype=torch.int64), {"firings": 3}, "collect: firings"),
    ],
)
def test_mismatched_arguments_are_one_line(
    texts: Any, keys: dict[str, Any], said: str, sae: nullsae.Autoencoder
) -> None:
    with pytest.raises(nullsae.UserError, match=said) as caught:
        nullsae.collect(tiny_model("gpt_neox"), sae, texts, **{"site": SITE, **keys})
    assert "\n" not in str(caught.value)


def test_a_model_in_training_mode_and_an_sae_of_another_width_are_refused(
    sae: nullsae.Autoencoder,
) -> None:
    ids = torch.ones(2, 16, dtype=torch.int64)
    somebodys: Any = object()
    with pytest.raises(nullsae.UserError, match="collect: object is not a transformers"):
        nullsae.collect(somebodys, sae, ids, site=SITE)
    with pytest.raises(nullsae.UserError, match=r"sae: object is not a nullsae\.Autoencoder; null"):
        nullsae.collect(tiny_model("gpt2"), somebodys, ids, site=SITE)
    with pytest.raises(nullsae.UserError, match=r"in training mode; call its eval\(\)"):
        nullsae.collect(tiny_model("gpt2").train(), sae, ids, site=SITE)
    with pytest.raises(nullsae.UserError, match=r"reads 16 dimensions, but resid_post\.1 has 32"):
        nullsae.collect(tiny_model("gpt2", n_embd=32), sae, ids, site=SITE)
