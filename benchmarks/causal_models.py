"""Every causal language model of the installed transformers, tiny and random: right, or refused.

    python benchmarks/causal_models.py [--only gpt2,llama] [--seconds 60] [--keep FILE]

Each class is built with small sizes, saved, and goes through `randomize_model` as subjects do.
`right`: it was accepted, and the rows at `resid_post` are those of `output_hidden_states`.
`refused`: one line says why. `traceback`: a defect of nullsae. `wrong`: accepted, with other rows,
a defect, too.
`not built`: this script found no small config for the class, which says nothing of nullsae.
With `--keep`, outcomes go into a file as they come, and a run after a kill takes them from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

VOCAB, CONTEXT, WIDTH, LAYERS = 96, 16, 32, 2
# Names of sizes in configs, and what each becomes where a config has it.
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
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("max_target_positions", "max_sequence_length", "seq_length"), 64),
    **dict.fromkeys(("sliding_window", "attention_window_size", "local_attention"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
}


def small_config(kind: type[Any]) -> Any:
    """A config of small sizes; raises what the class raises where it takes none."""
    plain = kind()
    text = plain.get_text_config(decoder=True)
    own = type(text)
    keys = {name: size for name, size in SMALL.items() if hasattr(text, name)}
    for name in ("layer_types", "attention_types", "block_types", "mlp_layer_types"):
        given = getattr(text, name, None)
        if isinstance(given, list | tuple) and given:
            keys[name] = list(given[:LAYERS])
    return own(**keys)


def corpus(folder: Path) -> Path:
    """A split of random tokens; returns its manifest."""
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
    """The outcome for one config class, and what was said."""
    import torch
    from transformers import AutoModelForCausalLM

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
        model = AutoModelForCausalLM.from_config(small_config(kind), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape) * 0.2)
            model.eval()(input_ids=torch.arange(1, 9)[None], use_cache=False)
    except Exception as error:  # whatever a class makes of sizes that it was not meant for
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
        # The last one has gone through the final norm in most families.
        for layer, site in enumerate(sites[:-1]):
            if states is not None and not torch.allclose(found[site], states[layer + 1], atol=1e-5):
                return "wrong", f"{site} is not hidden_states[{layer + 1}]"
        return "right", f"{len(sites)} blocks"


def child(kind: type[Any], pipe: Any) -> None:
    """One class in a process of its own, silent."""
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
    """`look`, which may crash or take too long."""
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=child, args=(kind, theirs))
    process.start()
    theirs.close()
    outcome, said = "traceback", "the process ended without a word"
    if not ours.poll(seconds):
        outcome, said = "not built", f"not done after {seconds:g} s"
        process.kill()
    else:
        with suppress(EOFError):  # it ended in a crash
            outcome, said = ours.recv()
    process.join()
    return outcome, said


def main() -> None:
    """Go through all classes; exit code 1 if one is wrong or a traceback."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", help="model types, by comma")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one class")
    parser.add_argument("--keep", type=Path, help="file of outcomes, to go on from")
    options = parser.parse_args()
    kept = options.keep.read_text().splitlines() if options.keep and options.keep.is_file() else []
    known = {name: (outcome, said) for name, outcome, said in map(json.loads, kept)}
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
