from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from nullsae.autointerp.local_model import LocalJudge
from nullsae.autointerp.log_odds import Likelihood, load_likelihood_prompt, probability
from nullsae.core.randomness import torch_generator
from refusing import refused

torch.set_num_threads(1)

CPU = torch.device("cpu")
PROMPT = load_likelihood_prompt()
KNOWN_ANSWERS = Path(__file__).parents[1] / "data" / "known_answers.jsonl"
EXPLANATION = "boats on a river"
CONTEXT = 96
WINDOWS = [
    "the boat went down the river",
    " and then,\n\nthe old harbour",
    "on",
    "a river is a river is a river, and so on and on, down to the sea and the old boat",
    "he said: <|endoftext|> and the rest of it",
    "the sea",
]
# Marked characters of each window; the fourth has two marks, the third its only token.
SPANS = [[(4, 8)], [(11, 14)], [(0, 2)], [(2, 7), (13, 18)], [(9, 22)], [(4, 7)]]

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "gpt2": ("GPT2Config", {"n_positions": CONTEXT}),
    "opt": ("OPTConfig", {"ffn_dim": 32, "word_embed_proj_dim": 8, "dropout": 0.0}),
    # Attends only to the last four tokens, and squashes its logits after the head.
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "num_key_value_heads": 1, "sliding_window": 4},
    ),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 2}),
    # Has a recurrent state instead of keys and values.
    "mamba": ("MambaConfig", {"state_size": 4}),
}


def tokenizer_with_beginning() -> Tokenizer:
    """Return a byte-level BPE that trims spaces from offsets and adds a token before each text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator([" the boat and the river and the old sea"] * 4, trainer)
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
            ),
        ]
    )
    return made


TOKENIZER = tokenizer_with_beginning()


def judge_of(family: str) -> LocalJudge:
    kind, keys = FAMILIES[family]
    config = getattr(transformers, kind)(
        **{**SHAPE, **keys, "vocab_size": TOKENIZER.get_vocab_size()}
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=torch_generator(0, "test", name))
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(drawn * 0.2 + (1.0 if gain else 0.0))
    return LocalJudge(model.eval().requires_grad_(False), TOKENIZER, family, CPU)


@pytest.fixture(scope="module")
def llama() -> LocalJudge:
    return judge_of("llama")


def plain_tokens(text: str) -> list[tuple[int, int, int]]:
    """Return (id, first byte, end byte) of each token of an ASCII text, splitting special ones."""
    pieces = [text]
    if "<|endoftext|>" in text:
        start = text.index("<|endoftext|>")
        # Byte-level splitting ends words at punctuation, so these parts are tokenized separately.
        pieces = [text[: start - 1], " <|", "endoftext", "|>", text[start + 13 :]]
    found, at = [], 0
    for token in (i for piece in pieces for i in TOKENIZER.encode(piece).ids[1:]):
        length = len(TOKENIZER.decode([token], skip_special_tokens=False))
        found.append((token, at, at + length))
        at += length
    assert at == len(text)
    return found


@torch.inference_mode()
def slow_log_odds(
    judge: LocalJudge, explanation: str, text: str, spans: list[tuple[int, int]] | None
) -> float:
    """Run both full texts through the model in float64, one at a time, without a cache."""
    model = copy.deepcopy(judge.model).double()
    start = "" if text.startswith(" ") else " "
    tokens = plain_tokens(start + text)
    total = 0.0
    for sign, topic in ((1, explanation), (-1, "anything")):
        prefix = [0, *(token for token, _, _ in plain_tokens(f"Topic: {topic}\nSentence:"))]
        ids = torch.tensor([[*prefix, *(token for token, _, _ in tokens)]])
        scores = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.double(), dim=-1)
        for i, (token, a, b) in enumerate(tokens):
            marked = spans is None or any(
                set(range(a, b)) & set(range(s + len(start), e + len(start))) for s, e in spans
            )
            if marked:
                total += sign * float(scores[0, len(prefix) + i - 1, token])
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["detection", "fuzzing"])
def test_log_odds_equal_those_of_the_full_texts_in_float64(family: str, form: str) -> None:
    judge = judge_of(family)
    spans = SPANS if form == "fuzzing" else None
    expected = [
        slow_log_odds(judge, EXPLANATION, text, None if spans is None else spans[i])
        for i, text in enumerate(WINDOWS)
    ]
    found = Likelihood(judge, PROMPT, batch_windows=4).log_odds(EXPLANATION, WINDOWS, spans)
    assert found.dtype == np.float64
    assert np.abs(expected).max() > 2e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_explanation_that_spells_out_a_special_token_is_text(llama: LocalJudge) -> None:
    explanation = "the <|endoftext|> sea"
    found = Likelihood(llama, PROMPT).log_odds(explanation, WINDOWS[:1])
    expected = slow_log_odds(llama, explanation, WINDOWS[0], None)
    assert found == pytest.approx([expected], abs=1e-5)


def test_a_tokenizer_neither_adds_to_texts_nor_truncates_them(
    llama: LocalJudge,
) -> None:
    ending = Tokenizer.from_str(TOKENIZER.to_str())
    ending.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    ending.enable_truncation(5)
    ending.enable_padding(length=64)
    found = Likelihood(replace(llama, tokenizer=ending), PROMPT).log_odds(EXPLANATION, WINDOWS)
    assert np.array_equal(found, Likelihood(llama, PROMPT).log_odds(EXPLANATION, WINDOWS))


@pytest.mark.parametrize("spans", [None, SPANS])
def test_neither_batches_nor_order_change_the_log_odds(llama: LocalJudge, spans: Any) -> None:
    found = Likelihood(llama, PROMPT, 16).log_odds(EXPLANATION, WINDOWS, spans)
    order = np.array([3, 0, 5, 2, 4, 1])
    again = Likelihood(llama, PROMPT, 16).log_odds(
        EXPLANATION, [WINDOWS[i] for i in order], spans and [spans[i] for i in order]
    )
    assert np.array_equal(again, found[order])
    for batch_windows in (1, 2, 5):
        other = Likelihood(llama, PROMPT, batch_windows).log_odds(EXPLANATION, WINDOWS, spans)
        np.testing.assert_allclose(other, found, rtol=0, atol=1e-5)


def test_a_repeated_window_gets_the_same_log_odds(llama: LocalJudge) -> None:
    found = Likelihood(llama, PROMPT).log_odds(EXPLANATION, [WINDOWS[0], WINDOWS[2], WINDOWS[0]])
    assert found[0] == found[2] != found[1]


def tokens_read(judge: LocalJudge) -> tuple[list[int], Any]:
    """Return a list that collects the tokens of each forward pass until the handle is removed."""
    seen: list[int] = []
    layer: nn.Module = judge.model.get_input_embeddings()
    return seen, layer.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].numel()))


def test_the_prefix_is_read_once_and_the_neutral_side_once_per_window(llama: LocalJudge) -> None:
    likelihood = Likelihood(llama, PROMPT, batch_windows=1)
    explained = len(TOKENIZER.encode("Topic: boats on a river\nSentence:").ids)
    neutral = len(TOKENIZER.encode("Topic: anything\nSentence:").ids)
    # All but the last token of each window is read; windows of one token need no pass.
    windows = sorted(len(plain_tokens(f" {WINDOWS[i]}")) - 1 for i in (0, 3, 5))
    seen, handle = tokens_read(llama)
    try:
        likelihood.log_odds(EXPLANATION, [WINDOWS[i] for i in (0, 3, 5)])
        assert seen == [neutral, *windows, explained, *windows]
        seen.clear()
        likelihood.log_odds("old harbours", [WINDOWS[i] for i in (3, 0)])
        assert seen[1:] == [windows[1], windows[2]]
    finally:
        handle.remove()


def test_nothing_after_the_last_mark_is_read_or_counts(llama: LocalJudge) -> None:
    likelihood = Likelihood(llama, PROMPT)
    short = likelihood.log_odds(EXPLANATION, ["the boat"], [[(4, 8)]])
    seen, handle = tokens_read(llama)
    try:
        long = likelihood.log_odds(EXPLANATION, ["the boat went down the river"], [[(4, 8)]])
    finally:
        handle.remove()
    assert np.array_equal(short, long)
    n_prefix = len(TOKENIZER.encode("Topic: boats on a river\nSentence:").ids)
    assert seen == [n_prefix, len(plain_tokens(" the boat")) - 1]


def test_marks_on_spaces_and_line_breaks_count(llama: LocalJudge) -> None:
    text = "the sea \n\n boat"
    found = Likelihood(llama, PROMPT).log_odds(EXPLANATION, [text] * 2, [[(7, 8)], [(9, 10)]])
    assert np.all(found != 0)
    for value, span in zip(found, [(7, 8), (9, 10)], strict=True):
        assert value == pytest.approx(slow_log_odds(llama, EXPLANATION, text, [span]), abs=1e-5)


def test_a_window_without_scored_tokens_has_zero_log_odds(llama: LocalJudge) -> None:
    found = Likelihood(llama, PROMPT).log_odds(
        EXPLANATION, ["the boat", "", "the boat"], [[], [], [(4, 8)]]
    )
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2] != 0.0
    assert Likelihood(llama, PROMPT).log_odds(EXPLANATION, []).shape == (0,)


def test_the_neutral_text_as_an_explanation_gives_even_odds(llama: LocalJudge) -> None:
    found = Likelihood(llama, PROMPT, 4).log_odds(" anything\n", WINDOWS)
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_a_window_that_exceeds_the_context_is_reported_in_one_line(llama: LocalJudge) -> None:
    likelihood = Likelihood(llama, PROMPT)
    n_prefix = len(TOKENIZER.encode("Topic: boats on a river\nSentence:").ids)
    fits = "a" * (CONTEXT - n_prefix - 1)
    assert len(plain_tokens(f" {fits}")) == CONTEXT - n_prefix
    assert np.isfinite(likelihood.log_odds(EXPLANATION, [fits])).all()
    said = refused(likelihood.log_odds, EXPLANATION, ["on", fits + "a"])
    assert said == (
        f"config: scorers.*.model: llama reads at most {CONTEXT} tokens, but prompt and "
        f"explanation have {n_prefix} and a window has {CONTEXT - n_prefix + 1}; use a model with "
        f"a longer context, or lower latents.window_tokens"
    )


def test_an_explanation_is_used_verbatim_except_for_line_breaks() -> None:
    text = PROMPT.with_explanation("a \\1 {{ explanation }}\n and {% if %}\n")
    assert text == "Topic: a \\1 {{ explanation }} and {% if %}\nSentence:"
    assert PROMPT.neutral == "Topic: anything\nSentence:"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Topic: {{ explanation }}\n", "has two parts"),
        ("=== explained\n{{ explanation }}\n=== neutral\n", "has two parts"),
        ("first\n=== explained\n{{ explanation }}\n=== neutral\nx\n", "has two parts"),
        ("=== explained\nTopic: {{ topic }}\n=== neutral\nx\n", "must be under"),
        ("=== explained\n{{explanation}}\n=== neutral\n{{explanation}}\n", "must be under"),
        (None, "cannot be read as a prompt"),
    ],
)
def test_an_unusable_prompt_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "own.txt"
    if text is not None:
        file.write_text(text)
    line = refused(load_likelihood_prompt, str(file))
    assert line.startswith(f"{file}: ")
    assert said in line


def test_a_users_own_prompt_is_used_and_has_another_hash(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("=== explained\nAbout {{explanation}}:\n\n=== neutral\nAbout this:\n")
    prompt = load_likelihood_prompt(str(file))
    assert prompt.with_explanation("boats") == "About boats:"
    assert prompt.neutral == "About this:"
    assert len(prompt.hash) == 16
    assert prompt.hash != PROMPT.hash


def test_probabilities_are_the_logistic_function_without_overflow() -> None:
    odds = np.array([1.0, 3.0, 1 / 3, 9.0])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(probability(np.log(odds)), [1 / 2, 3 / 4, 1 / 4, 9 / 10])
        assert probability(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]


def test_the_known_answers_are_balanced_and_their_marks_are_words() -> None:
    rows = [json.loads(line) for line in KNOWN_ANSWERS.read_text().splitlines()]
    counts = Counter((row["explanation"], row["matches"]) for row in rows)
    assert len(counts) == 40
    assert set(counts.values()) == {5}
    assert len({row["sentence"] for row in rows}) == 200
    for row in rows:
        assert row["marked"]
        for start, end in row["marked"]:
            around = f" {row['sentence']} "
            assert around[start + 1 : end + 1].strip() == around[start + 1 : end + 1] != ""
            assert not around[start].isalnum(), row
            assert not around[end + 1].isalnum(), row
