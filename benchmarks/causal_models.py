"""Try every causal language model of the installed transformers, tiny and random.

    python benchmarks/causal_models.py [--only gpt2,llama] [--seconds 60] [--keep FILE]

Each class is built with small sizes, saved, and goes through `randomize_model` as subjects do. The
outcomes are

    right      it was accepted, and the rows at `resid_post` are those of `output_hidden_states`
    refused    one line says why
    traceback  a defect of nullsae
    wrong      it was accepted with other rows: a defect, too
    not built  this script found no small config for the class, which says nothing about nullsae

With `--keep`, outcomes are saved as they come, and a run after a kill takes them from the file;
classes that were not built are tried again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

VOCAB, CONTEXT, WIDTH, LAYERS = 96, 16, 32, 2
MOST_PARAMETERS = 20_000_000
# Names of sizes in configs, and the small value of each.
SMALL = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), VOCAB),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("embedding_size", "attention_hidden_size", "lru_width"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "rope_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "mamba_d_state", "state_size"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "ffn_hidden_size"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "n_groups", "topk_group", "n_shared_experts"), 1),
    "first_k_dense_replace": 1,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("max_target_positions", "max_sequence_length", "seq_length"), 64),
    **dict.fromkeys(("sliding_window", "attention_window_size", "local_attention"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
}


def small_values(kind: type[Any], skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return small sizes for a config class by its field names, except those in `skip`."""
    from transformers import PreTrainedConfig

    plain, names = kind(), {field.name for field in dataclasses.fields(kind)} - skip
    # The class's own name for a size that has a usual name.
    usual = {own: SMALL[name] for name, own in kind.attribute_map.items() if name in SMALL}
    found: dict[str, Any] = {name: (SMALL | usual)[name] for name in names & {*SMALL, *usual}}
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        found["num_key_value_heads"] = SMALL["num_attention_heads"]  # latent attention shares none
    if "expand" in names and {"num_heads", "head_dim"} <= found.keys():
        found["head_dim"] = plain.expand * WIDTH // found["num_heads"]  # of Mamba 2
    lists = {}
    for name in names:
        value = getattr(plain, name, None) if name not in found else None
        if isinstance(value, PreTrainedConfig):
            found[name] = small_values(type(value), skip)
        elif name.endswith("_heads") and isinstance(value, int):
            found[name] = 4
        elif isinstance(value, list | tuple) and len(value) > LAYERS:
            lists[name] = value
    # One entry per layer: enough layers for each kind to occur.
    n_layers = plain.get_text_config(decoder=True).num_hidden_layers
    lists = {name: value for name, value in lists.items() if len(value) == n_layers}
    n = max([LAYERS, *(_until_all_kinds(value) for value in lists.values())])
    found |= {name: [*value[:n]] for name, value in lists.items()}
    layers = ("num_hidden_layers", kind.attribute_map.get("num_hidden_layers"))
    return found | {name: n for name in layers if name in found}


def _until_all_kinds(value: Any) -> int:
    """Return the number of leading entries that contain every kind; 8 at most."""
    kinds = [repr(entry) for entry in value]
    return min(8, max(map(kinds.index, kinds)) + 1)


def small_configs(kind: type[Any]) -> Iterator[Any]:
    """Return small configs, the smallest first; raise what the class raises if it takes none.

    If the class has several parts, use the text part alone.
    """
    text = type(kind().get_text_config(decoder=True))
    n_layers = frozenset(("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    heads = frozenset(name for name in SMALL if "head" in name or "rank" in name)
    errors = []
    for own in dict.fromkeys((text, kind)):
        for skip in (frozenset[str](), n_layers, heads, n_layers | heads):
            try:
                yield own(**small_values(own, skip))
            except Exception as error:  # whatever a class raises for sizes it was not meant for
                errors.append(error)
    raise errors[0] if errors else ValueError("no config of small sizes was built")


def small_model(kind: type[Any]) -> Any:
    """Return a tiny random model that reads tokens; raise the first error if none does."""
    import torch
    from transformers import AutoModelForCausalLM

    first: Exception | None = None
    configs = small_configs(kind)
    while True:
        try:
            config = next(configs)
        except Exception as error:
            raise first or error from None
        try:
            with torch.device("meta"):
                sketch = AutoModelForCausalLM.from_config(config)
            n = sum(parameter.numel() for parameter in sketch.parameters())
            if n > MOST_PARAMETERS:
                raise ValueError(f"{n:,} parameters with the smallest sizes known here")
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.copy_(torch.randn(parameter.shape) * 0.2)
                model.eval()(input_ids=torch.arange(1, 9)[None], use_cache=False)
            return model
        except Exception as error:
            first = first or error


def corpus(folder: Path) -> Path:
    """Write a split of random tokens; return its manifest."""
    import numpy as np
    from safetensors.numpy import save_file

    from nullsae.core.files import checksum, write_json

    folder.mkdir()
    ids = np.random.default_rng(0).integers(1, VOCAB, (16, CONTEXT)).astype(np.int32)
    document = np.repeat(np.arange(16, dtype=np.int32), CONTEXT).reshape(ids.shape)
    save_file({"input_ids": ids, "document_id": document}, folder / "tokens.safetensors")
    losses = {"unigram_loss_nats": 1e9, "bigram_loss_nats": 1e9}
    sums = {"tokens_checksum": checksum(folder / "tokens.safetensors"), "vocab_size": VOCAB}
    write_json(folder / "manifest.json", {**losses, **sums})
    return folder / "manifest.json"


def look(kind: type[Any]) -> tuple[str, str]:
    """Return the outcome for one config class, and the message."""
    import torch

    from nullsae.config.compute import Compute
    from nullsae.config.subjects import PretrainedSource
    from nullsae.core.errors import UserError
    from nullsae.corpus.store import load_tokens
    from nullsae.jobs.keys import ModelKeys
    from nullsae.jobs.subjects import RandomizeModelParams
    from nullsae.subjects.loading import load_subject
    from nullsae.subjects.publish import randomize_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model = small_model(kind)
    except Exception as error:  # whatever a class raises for sizes it was not meant for
        return "not built", f"{type(error).__name__}: {error}"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        heldout = corpus(root / "tokens")
        try:
            model.save_pretrained(root / "model")
        except Exception as error:
            return "not built", f"{type(error).__name__}: {error}"
        params = RandomizeModelParams(
            seed=0,
            keys=ModelKeys(subject="tiny", variant="trained", draw=0),
            source=PretrainedSource(kind="pretrained", path=str(root / "model")),
            compute=Compute(threads=1, device="cpu"),
        )
        try:
            randomize_model(params, trained=None, eval_tokens=heldout, output=root / "trained")
        except UserError as error:
            return "refused", str(error).replace(str(root), "")
        subject = load_subject(root / "trained/recipe.json", torch.device("cpu"))
        ids = torch.from_numpy(load_tokens(heldout).input_ids[:3])
        sites = [f"resid_post.{layer}" for layer in range(len(subject.blocks))]
        found = subject.activations(ids, split="eval", contexts=range(3), sites=sites)
        with torch.inference_mode():
            states = subject.model(
                input_ids=ids.long(), use_cache=False, output_hidden_states=True
            ).hidden_states
        # In most families the last one has gone through the final norm; some leave out the first.
        at = -1
        for site in sites[:-1] if states is not None else ():
            later = enumerate(states[at + 1 :], at + 1)
            same = (i for i, x in later if torch.allclose(found[site], x, atol=1e-5))
            if (at := next(same, -1)) < 0:
                return "wrong", f"{site} is none of hidden_states, or not in order"
        return "right", f"{len(sites)} blocks"


def child(kind: type[Any], pipe: Any) -> None:
    """Try one class silently, in this process."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        os.dup2(nothing.fileno(), 1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    try:
        pipe.send(look(kind))
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(last.filename).name}:{last.lineno}"
        pipe.send(("traceback", f"{type(error).__name__}: {error} (at {at})"))


def in_a_process(kind: type[Any], fork: Any, seconds: float) -> tuple[str, str]:
    """Run `look` in a process that may crash or take too long."""
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=child, args=(kind, theirs))
    process.start()
    theirs.close()
    outcome, said = "traceback", "the process ended without a word"
    if not ours.poll(seconds):
        outcome, said = "not built", f"not done after {seconds:g} s"
        process.kill()
    else:
        with suppress(EOFError):  # it crashed
            outcome, said = ours.recv()
    process.join()
    return outcome, said


def main() -> None:
    """Try all classes; return 1 if one is wrong or a traceback."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit per class")
    parser.add_argument("--keep", type=Path, help="file of outcomes, to resume from")
    options = parser.parse_args()
    kept = options.keep.read_text().splitlines() if options.keep and options.keep.is_file() else []
    known = {name: (how, said) for name, how, said in map(json.loads, kept) if how != "not built"}
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    import nullsae.subjects.publish  # noqa: F401 - loaded once, before the forks

    only = options.only.split(",") if options.only else None
    outcomes: Counter[str] = Counter()
    fork = multiprocessing.get_context("fork")
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        if only and kind.model_type not in only:
            continue
        if kind.__name__ not in known:
            known[kind.__name__] = found = in_a_process(kind, fork, options.seconds)
            if options.keep:
                with options.keep.open("a") as file:
                    file.write(json.dumps([kind.__name__, *found]) + "\n")
        outcome, said = known[kind.__name__]
        outcomes[outcome] += 1
        first = said.strip().splitlines()[0] if said.strip() else ""
        more = " [SEVERAL LINES]" if outcome == "refused" and "\n" in said.strip() else ""
        print(f"{outcome:10} {kind.model_type:24} {first[:150]}{more}", flush=True)
    print(", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))
    raise SystemExit(1 if outcomes["wrong"] or outcomes["traceback"] else 0)


if __name__ == "__main__":
    main()
