"""Transcoders through files, evaluation and latents, against hooks and formulas by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import nullsae
from nullsae.activations.capture import cache_activations
from nullsae.config.activations import Exclude
from nullsae.config.hooks import site_of_hook
from nullsae.core.errors import UserError
from nullsae.core.files import checksum, read_json, write_json
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import load_tokens
from nullsae.sae.exchange.pretrained import read_with_origin
from nullsae.sae.files import load_sae
from nullsae.sae.transcoder import Transcoder
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model
from run_stages import evaluated
from small_chain import (
    CONTEXT,
    CPU,
    D_MODEL,
    VOCAB,
    all_rows,
    capture_params,
    cell,
    model_params,
    tokens_of,
    write_corpus,
    write_sae,
)

READ, WRITTEN, LAYER, NEURONS = "mlp_in.1", "mlp_out.1", 1, 24
N_CONTEXTS = 40


def drawn(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, "test_transcoders", name))


def opt() -> Any:
    """Return a model whose MLP is fc2(relu(fc1(x))), only two matrices."""
    config = transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        num_hidden_layers=3,
        num_attention_heads=2,
        ffn_dim=NEURONS,
        max_position_embeddings=32,
        dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = "norm" in name and name.endswith("weight")
            parameter.copy_(drawn(*parameter.shape, name=name) * 0.3 + (1.0 if gain else 0.0))
    return model.eval().requires_grad_(False)


def block_of(model: Any) -> Any:
    return model.model.decoder.layers[LAYER]


def mlp_as_transcoder(model: Any) -> Transcoder:
    """Return the MLP of a block as a transcoder with its neurons as latents."""
    first, second = block_of(model).fc1, block_of(model).fc2
    weights = (first.weight, first.bias, second.weight.t().contiguous(), second.bias)
    return Transcoder("standard", *(w.clone() for w in weights), output_site=WRITTEN)


def random_transcoder(*, skip: bool) -> Transcoder:
    return Transcoder(
        "topk",
        drawn(12, D_MODEL, name="w_enc"),
        drawn(12, name="b_enc"),
        drawn(12, D_MODEL, name="w_dec"),
        drawn(D_MODEL, name="b_dec"),
        k=3,
        output_site=WRITTEN,
        w_skip=drawn(D_MODEL, D_MODEL, name="w_skip") * 0.2 if skip else None,
    )


def by_hand(transcoder: Transcoder, x: Tensor) -> Tensor:
    """Compute a TopK transcoder's output for x [n, d_model] from dense codes."""
    pre = x @ transcoder.w_enc.t() + transcoder.b_enc
    top = pre.topk(3, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    skip = 0.0 if transcoder.w_skip is None else x @ transcoder.w_skip.t()
    return codes @ transcoder.w_dec + transcoder.b_dec + skip


@dataclass(frozen=True)
class Opt:
    """Corpora, the model, and its activations at the two sites."""

    recipe: Path
    tokens: dict[str, Path]
    activations: dict[str, Path]

    def row_of(self, sae: Path, folder: Path) -> dict[str, Any]:
        """Return the row of `reconstruction`."""
        found = evaluated(
            folder,
            **{"seed": 3, "fidelity_tokens": None, "keys": cell(READ), "activations_key": "key"},
            sae=sae,
            model=self.recipe,
            train_activations=self.activations["sae_train"],
            eval_activations=self.activations["eval"],
            train_tokens=self.tokens["sae_train"],
            eval_tokens=self.tokens["eval"],
        )
        (shape,), (row,) = found["geometry"], found["reconstruction"]
        assert shape["encoder_decoder_cosine_mean"] is None
        return row


def captured(root: Path, exclude: Exclude) -> Opt:
    opt().save_pretrained(root / "source")
    from nullsae.config.subjects import PretrainedSource

    source = PretrainedSource(kind="pretrained", path=str(root / "source"))
    tokens = {
        split: write_corpus(root / "corpus" / split, *tokens_of(N_CONTEXTS, seed=seed))
        for seed, split in enumerate(("sae_train", "eval"))
    }
    output = root / "trained"
    randomize_model(model_params(source), trained=None, eval_tokens=tokens["eval"], output=output)
    manifests = {}
    for split, own in tokens.items():
        cache_activations(
            capture_params(sites=(READ, WRITTEN), exclude=exclude),
            split=split,
            model=output / "recipe.json",
            tokens=own,
            output=root / "activations" / split,
        )
        manifests[split] = root / "activations" / split / "manifest.json"
    return Opt(output / "recipe.json", tokens, manifests)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Opt:
    return captured(tmp_path_factory.mktemp("whole"), Exclude(norm_above_median=None))


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Opt:
    """Exclude the first tokens, and those that are large at a site, which differ between sites."""
    return captured(tmp_path_factory.mktemp("cut"), Exclude(start_tokens=1, norm_above_median=1.2))


def kept_rows(study: Opt, site: str) -> Tensor:
    """Return which tokens count by the rule of one site, bool [n], computed by hand."""
    x, position = all_rows(study.activations["eval"], site)
    late = position % CONTEXT >= 1
    norms = x.norm(dim=1)
    # The lower median of the tokens after the start.
    median = norms[late].sort().values[(int(late.sum()) - 1) // 2]
    return late & (norms <= 1.2 * median)


def test_an_mlp_as_a_transcoder_explains_all_of_its_output_and_changes_no_prediction(
    whole: Opt, tmp_path: Path
) -> None:
    model = load_subject(whole.recipe, CPU).model
    sae = write_sae(mlp_as_transcoder(model), tmp_path / "sae", site=READ)
    row = whole.row_of(sae, tmp_path)
    assert row["explained_variance"] > 1 - 1e-9
    assert row["explained_variance_all_tokens"] > 1 - 1e-9
    assert row["ce_sae"] == pytest.approx(row["ce_clean"], abs=1e-5)
    assert row["kl_sae"] == pytest.approx(0.0, abs=1e-5)
    assert row["kl_zero"] > 1e-2
    x, _ = all_rows(whole.activations["eval"], READ)
    active = (block_of(model).fc1(x) > 0).sum(dim=1).double().mean()
    assert row["l0"] == pytest.approx(float(active))


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_is_measured_on_its_output_and_the_tokens_that_count_at_its_input(
    cut: Opt, tmp_path: Path, skip: bool
) -> None:
    transcoder = random_transcoder(skip=skip)
    row = cut.row_of(write_sae(transcoder, tmp_path / "sae", site=READ), tmp_path)
    kept = kept_rows(cut, READ)
    assert not torch.equal(kept, kept_rows(cut, WRITTEN))
    x, y = (all_rows(cut.activations["eval"], site)[0].double() for site in (READ, WRITTEN))
    output = by_hand(transcoder, x.float()).double()

    def explained(of: Tensor) -> float:
        error = (y[of] - output[of]).square().sum()
        return float(1 - error / (y[of] - y[of].mean(dim=0)).square().sum())

    assert row["n_tokens"] == int(kept.sum())
    assert row["explained_variance"] == pytest.approx(explained(kept), rel=1e-5)
    every = torch.ones_like(kept)
    assert row["explained_variance_all_tokens"] == pytest.approx(explained(every), rel=1e-5)
    assert row["mean_norm"] == pytest.approx(float(y[kept].norm(dim=1).mean()), rel=1e-6)
    found = F.cosine_similarity(y[kept], output[kept], dim=1).mean()
    assert row["cosine"] == pytest.approx(float(found), rel=1e-5)


def test_the_output_is_replaced_by_what_is_made_of_the_input_of_the_same_pass(
    cut: Opt, tmp_path: Path
) -> None:
    transcoder = random_transcoder(skip=True)
    row = cut.row_of(write_sae(transcoder, tmp_path / "sae", site=READ), tmp_path)
    model = load_subject(cut.recipe, CPU).model
    ids = torch.from_numpy(load_tokens(cut.tokens["eval"]).input_ids).long()
    kept, read = kept_rows(cut, READ), []
    block = block_of(model)
    handles = [
        block.fc1.register_forward_pre_hook(lambda _module, args: read.append(args[0])),
        block.fc2.register_forward_hook(
            lambda _module, _args, out: torch.where(
                kept[:, None], by_hand(transcoder, read.pop()), out
            )
        ),
    ]
    with torch.inference_mode():
        log_p = model(ids).logits[:, :-1].log_softmax(dim=-1)
    for handle in handles:
        handle.remove()
    loss = -log_p.gather(2, ids[:, 1:, None])[..., 0]
    counts = kept.reshape(ids.shape)[:, :-1]
    assert row["fidelity_tokens"] == int(counts.sum())
    assert row["ce_sae"] == pytest.approx(float(loss[counts].double().mean()), rel=1e-5)


def test_a_transcoder_comes_back_from_its_files(tmp_path: Path) -> None:
    for skip in (False, True):
        transcoder = random_transcoder(skip=skip)
        file = write_sae(transcoder, tmp_path / str(skip), site=READ)
        own = {"output_site": WRITTEN, "d_out": D_MODEL, "skip": skip}
        assert read_json(file, rebuild="")["transcoder"] == own
        loaded = load_sae(file)[0]
        assert isinstance(loaded, Transcoder)
        assert loaded.writes_at(READ) == WRITTEN
        x = drawn(20, D_MODEL, name="x")
        codes = loaded.encode(x)
        torch.testing.assert_close(loaded.decode(*codes, x), by_hand(transcoder, x))
        assert isinstance(nullsae.load_sae(str(file.parent)), Transcoder)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_of_sparsify_goes_from_what_its_module_reads_to_what_it_gives(
    tmp_path: Path, skip: bool
) -> None:
    transcoder = random_transcoder(skip=skip)
    folder = tmp_path / "layers.1.mlp"
    folder.mkdir()
    own = {"d_in": D_MODEL, "k": 3, "expansion_factor": 1, "num_latents": 12}
    write_json(folder / "cfg.json", {**own, "transcode": True, "skip_connection": skip})
    save_file(transcoder.parameters(), folder / "sae.safetensors")
    loaded = nullsae.load_sae(str(folder), READ)
    assert isinstance(loaded, nullsae.Transcoder)
    assert loaded.writes_at(READ) == WRITTEN
    x = drawn(20, D_MODEL, name="x")
    torch.testing.assert_close(loaded.decode(*loaded.encode(x), x), by_hand(transcoder, x))
    made_on = read_with_origin(str(folder), READ, where="here").made_on
    assert site_of_hook(str(made_on.hook)) == READ


def test_a_skip_connection_that_is_missing_is_named(tmp_path: Path) -> None:
    file = write_sae(random_transcoder(skip=True), tmp_path / "sae", site=READ)
    weights = file.parent / "sae.safetensors"
    save_file({n: t for n, t in load_file(weights).items() if n != "W_skip"}, weights)
    write_json(file, {**read_json(file, rebuild=""), "weights_checksum": checksum(weights)})
    with pytest.raises(UserError, match=r"W_skip is None, should be \(16, 16\)"):
        load_sae(file)
    with pytest.raises(ValueError, match="needs the encoded activations"):
        random_transcoder(skip=True).decode(*random_transcoder(skip=True).encode(torch.ones(1, 16)))


def test_latents_act_on_predictions_at_the_output_site() -> None:
    """All contexts are equal, so a latent that fires once in each has one kind of place."""
    model, transcoder = opt(), random_transcoder(skip=True)
    row = torch.from_numpy(tokens_of(1, seed=5)[0]).long()
    settings: dict[str, Any] = {"min_firings": 1, "min_pool_windows": 1, "window_tokens": 4}
    found = nullsae.collect(
        *(model, transcoder, row.repeat(N_CONTEXTS, 1)), site=READ, n_sampled=12, **settings
    )
    assert found.coverage["no_effects"] is None
    assert found.coverage["no_causal_effects"] is None
    table = found.latents.to_pandas()
    assert table.encoder_decoder_cosine.isna().all()
    read: list[Tensor] = []
    block = block_of(model)
    handle = block.fc1.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
    with torch.inference_mode():
        clean = model(row).logits[0].log_softmax(dim=-1)
    handle.remove()
    pre = read[0] @ transcoder.w_enc.t() + transcoder.b_enc
    top = pre.topk(3, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    path = model.lm_head.weight * model.model.decoder.final_layer_norm.weight
    path = path - path.mean(dim=1, keepdim=True)
    checked = 0
    for latent in np.flatnonzero(((codes > 0).sum(dim=0) == 1).numpy()).tolist():
        at = int(codes[:, latent].argmax())
        if at == CONTEXT - 1 or np.isnan(table.ablation_kl_nats[latent]):
            continue

        def without(_module: Any, _args: Any, out: Tensor, at: int = at, i: int = latent) -> Tensor:
            out = out.clone()
            out[at] -= codes[at, i] * transcoder.w_dec[i]
            return out

        handle = block.fc2.register_forward_hook(without)
        with torch.inference_mode():
            edited = model(row).logits[0].log_softmax(dim=-1)
        handle.remove()
        kl = (clean[at].exp() * (clean[at] - edited[at])).sum()
        assert table.ablation_kl_nats[latent] == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
        # The share of the text's next tokens that its row promotes less than this one.
        effects = path @ transcoder.w_dec[latent]
        following = row[0, 1:]
        own = effects[row[0, at + 1]]
        below = (effects[following] < own).double() + (effects[following] == own).double() / 2
        assert table.next_token_auroc[latent] == pytest.approx(float(below.mean()), abs=1e-6)
        checked += 1
    assert checked >= 1
