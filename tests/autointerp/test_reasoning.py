"""Reasoning in replies, in any notation, complete or not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.autointerp.reasoning import answer_alone

THOUGHTS = [
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("<THINK>", "</Think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<think type='long'>", "</think >"),
    ("<|think|>", "<|/think|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|thinking_start|>", "<|thinking_end|>"),
    ("Here is my thought process: ", "Here is my response: "),
    ("<antThinking>", "</antThinking>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
    ("<|think|>", "<|end|><|begin|>assistant<|content|>"),
]
DRAFT = 'Explanation: rivers? {"1": 0}, [1, 0]. Window 1: no.\n\nIt\'s a "draft" of it'
ANSWER = '{"1": 1, "2": 0}'


def alone(content: str) -> str:
    found = answer_alone(content)
    assert len(found) == len(content)
    assert all(one in (" ", other) for one, other in zip(found, content, strict=True))
    return found.strip()


@pytest.mark.parametrize(("opening", "closing"), THOUGHTS)
def test_the_answer_is_what_follows_the_thought(opening: str, closing: str) -> None:
    assert alone(opening + DRAFT + closing + ANSWER) == ANSWER
    # The template had opened it, or an opening tag is repeated.
    assert alone(DRAFT + closing + ANSWER) == ANSWER
    assert alone(opening + "\n" + opening + DRAFT + closing + ANSWER) == ANSWER
    # A thought inside another.
    assert alone(f"{opening}a\n{opening}{DRAFT}{closing}{DRAFT}{closing}{ANSWER}") == ANSWER
    # A second thought, and a second answer.
    assert alone(f"{opening}a{closing}{DRAFT}\n{opening}b{closing}{ANSWER}") == ANSWER
    assert alone(f"a{closing}{DRAFT}\n{closing}{ANSWER}") == ANSWER


@pytest.mark.parametrize(("opening", "closing"), THOUGHTS)
def test_a_truncated_thought_has_no_answer(opening: str, closing: str) -> None:
    assert alone(opening + DRAFT) == ""
    assert alone(f"Sure. {opening}{DRAFT}") == ""
    assert alone(f"{opening}a{closing}{DRAFT}\n{opening}{DRAFT}") == ""
    assert alone(opening + DRAFT + closing) == ""
    assert alone(DRAFT + closing) == ""


FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (f"<|channel|>analysis<|message|>{DRAFT}<|end|>{FINAL}{ANSWER}<|return|>", ANSWER),
        (f"<|channel|>analysis{DRAFT}<|channel|>final{ANSWER}", ANSWER),
        (f"{DRAFT}<|end|>{FINAL}{ANSWER}", ANSWER),
        (f"<|channel|>final <|constrain|>json<|message|>{ANSWER}<|end|>", ANSWER),
        (f"<|channel|>final<|message|>{DRAFT}<|end|>{FINAL}{ANSWER}", ANSWER),
        (f"<|channel|>analysis<|message|>{DRAFT}<|end|><|channel|>commentary<|message|>x", ""),
        (f"<|channel|>analysis<|message|>{DRAFT}", ""),
        (f"analysisWe see. {DRAFT}assistantfinal{ANSWER}", ANSWER),
        (f"analysisWe see. {DRAFT}", ""),
        ("analysis of poems and plays", "analysis of poems and plays"),
    ],
)
def test_the_last_final_channel_is_the_answer(content: str, answer: str) -> None:
    assert alone(content) == answer


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (f"<think>a</think><answer>{ANSWER}</answer>", ANSWER),
        (f"<answer>{DRAFT}</answer> No: <answer>{ANSWER}</answer>", ANSWER),
        (f"<think>a</think>\n{ANSWER}</answer>", ANSWER),
        (f"<|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>", ANSWER),
        (f"<|begin_of_solution|>{ANSWER}<|end_of_solution|>", ANSWER),
        (f"{ANSWER}<|im_end|>", ANSWER),
        (f"<s>{ANSWER}</s>", ANSWER),
        (f"<think>a</think>\n{ANSWER}\n</think>", ANSWER),
    ],
)
def test_an_answer_has_no_marker_around_it(content: str, answer: str) -> None:
    assert alone(content) == answer


@pytest.mark.parametrize(
    "further",
    [
        "<|im_end|>\n<|im_start|>user\nNext\n<|im_start|>assistant\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<end_of_turn>\n<start_of_turn>user\nNext<end_of_turn>\n<start_of_turn>model\n",
        "</s> [INST] Next [/INST] ",
        "<|end|>\n<|user|>\nNext<|end|>\n<|assistant|>\n",
        "<turn|>\n<|turn>user\nNext<turn|>\n<|turn>model\n",
        "<\uff5cend▁of▁sentence\uff5c><\uff5cUser\uff5c>Next<\uff5cAssistant\uff5c>",
        "assistant\n\n",
        "\n\nUser: Next\n\nAssistant: ",
        "\n\n**Human:** Next\n\n**AI:** ",
        "\n\n### Instruction:\nNext\n\n### Response:\n",
        "\n\n### User: Next\n\n### Assistant: ",
    ],
)
def test_the_first_of_several_turns_is_the_answer(further: str) -> None:
    assert alone(ANSWER + further + DRAFT) == ANSWER
    assert alone(f"<think>{DRAFT}</think>{ANSWER}{further}{DRAFT}") == ANSWER
    if further.startswith("<"):  # special tokens, which the thought of this turn cannot contain
        assert alone(f"<think>{DRAFT}</think>{ANSWER}{further}<think>a</think>{DRAFT}") == ANSWER
    assert alone(f"{DRAFT}</think>{ANSWER}{further}{DRAFT}") == ANSWER
    # A thought whose opening tag is in the prompt may contain turns.
    assert alone(f"{DRAFT}{further}{DRAFT}</think>{ANSWER}") == ANSWER
    assert alone(f"<think>{DRAFT}{further}{DRAFT}</think>{ANSWER}") == ANSWER
    assert alone(f"<think>{DRAFT}{further}{DRAFT}") == ""


@pytest.mark.parametrize(
    "answer",
    [
        "Explanation: turns, as in <|im_end|><|im_start|>user and `</s><s>`",
        'Explanation: tags such as "<think>" and "</think>" in logs.',
        "Explanation: the tag `</think>` at its end",
        "Explanation: the tag “[/THINK]” in transcripts",
        "Explanation: markup such as '<think>' in HTML",
        'Explanation: what stands in `<think>a</think>` or "<answer>b</answer>"',
        '{"explanation": "the tag </think>, and [THINK]"}',
        "Explanation: the tag </think> that ends a thought",
        "Explanation: tags, <think> among them, in logs",
        "Explanation: the end of a text, such as <|endoftext|>",
        "Explanation: <b> and <i> in HTML, [1] in references",
    ],
)
@pytest.mark.parametrize(
    "thought", ["", "<think>a\nb</think>\n", "<think>'</think>' ends it</think>"]
)
def test_a_tag_mentioned_in_an_answer_ends_no_thought(answer: str, thought: str) -> None:
    assert alone(thought + answer) == answer


@settings(deadline=None)
@given(st.lists(st.sampled_from([*(t for pair in THOUGHTS for t in pair), '"', "`", "\n", "a"])))
def test_no_text_breaks_the_reader_of_thoughts(parts: list[str]) -> None:
    alone("".join(parts))


def test_a_long_reply_is_read_in_time() -> None:
    for part in (
        "<think>",
        "</think>",
        '"<think>"',
        "<",
        "[THINK]\n",
        "<|channel|>final",
        "a</s><s>",
        "</s><s>",
        "\nUser:",
        "aassistant\n\n",
        "\n",
    ):
        alone(part * 20_000 if len(part) == 1 else part * 2_000)
