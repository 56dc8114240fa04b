"""Answers of judges: what is kept of good, odd and broken ones, and their probabilities."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.autointerp.explanation_text import explanation, repeats
from nullsae.autointerp.labels import labels
from nullsae.autointerp.llm.messages import AnswerToken, Reply
from nullsae.autointerp.replies import choice, judgements


def reply(content: str, tokens: tuple[AnswerToken, ...] = ()) -> Reply:
    return Reply(content=content, tokens=tokens, finish_reason="stop")


def found(content: str, n: int) -> dict[int, int]:
    return {number: label for number, (label, _) in labels(content, n).items()}


WHOLE = {1: 1, 2: 0, 3: 1}


@pytest.mark.parametrize(
    "content",
    [
        '{"1": 1, "2": 0, "3": 1}',
        '{"3": 1, "1": 1, "2": 0}',
        '{"1": "1", "2": "0", "3": "1"}',
        '{"1": true, "2": false, "3": true}',
        '```json\n{"1": 1,\n "2": 0,\n "3": 1}\n```',
        "1: 1\n2: 0\n3: 1",
        "1. yes\n2. no\n3. yes",
        "1) Yes, 2) No, 3) Yes",
        "Window 1: 1, Window 2: 0, Window 3: 1",
        "**Window 1**: 1\n**Window 2**: 0\n**Window 3**: 1",
        '[{"window": 1, "active": 1}, {"window": 2, "active": 0}, {"window": 3, "active": 1}]',
        "1 -> 1; 2 -> 0; 3 -> 1",
        "[1, 0, 1]",
        '{"answers": [1, 0, 1]}',
        "The answer is [1,0,1].",
        "1 0 1",
        "yes, no, yes",
        "1\uff1a1\n2\uff1a0\n3\uff1a1",
        "analysisPerhaps 1: 0.assistantfinal1: 1\n2: 0\n3: 1",
        '<think>Window 1: 0? Window 2: 1? No.</think>{"1": 1, "2": 0, "3": 1}',
    ],
)
def test_an_answer_is_read_in_any_form(content: str) -> None:
    assert found(content, 3) == WHOLE


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ('{"1": 1, "2": 0', {1: 1, 2: 0}),  # truncated
        ('{"1": 1, "3": 1}', {1: 1, 3: 1}),  # one forgotten
        ('{"1": 1, "2": 7, "3": 1}', {1: 1, 3: 1}),  # not a label
        ('{"1": 1, "2": 0.5, "3": 1}', {1: 1, 3: 1}),
        ('{"1": 1, "2": 0, "3": 1, "4": 0, "9": 1}', WHOLE),  # windows that do not exist
        ('{"1": 1, "2": 0, "3": 1, "2": 1}', {1: 1, 3: 1}),  # contradictory
        ('{"1": 1, "2": 0, "3": 1, "2": 0}', WHOLE),  # repeated
        ("[1, 0]", {}),  # it is unknown which one is missing
        ("[1, 0, 1, 1]", {}),
        ("I am sorry, I cannot say.", {}),
        ("", {}),
        ("<think>1: 1, 2: 0, 3: 1", {}),  # never reached its answer
    ],
)
def test_the_valid_parts_of_a_broken_answer_are_kept(content: str, kept: dict[int, int]) -> None:
    assert found(content, 3) == kept


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.randoms())
def test_json_in_any_order_is_read_back(answers: list[int], random: object) -> None:
    pairs = [(str(i), a) for i, a in enumerate(answers, 1)]
    random.shuffle(pairs)  # type: ignore[attr-defined]
    content = json.dumps(dict(pairs))
    assert found(content, len(answers)) == dict(enumerate(answers, 1))


@settings(deadline=None)
@given(st.text(max_size=80), st.integers(1, 5))
def test_no_text_breaks_the_parser(content: str, n: int) -> None:
    assert all(1 <= number <= n for number in found(content, n))
    choice(reply(content), n)
    explanation(reply(content))


def tokens_of(
    pieces: list[str], alternatives: dict[int, dict[str, float]]
) -> tuple[AnswerToken, ...]:
    """Return tokens with probabilities; others are certain."""
    return tuple(
        AnswerToken(
            piece,
            tuple((t, math.log(p)) for t, p in alternatives.get(i, {piece: 1.0}).items()),
        )
        for i, piece in enumerate(pieces)
    )


def test_probabilities_are_those_at_the_token_of_each_label() -> None:
    pieces = ["{", '"', "1", '":', " 1", ",", ' "', "2", '": ', "0", "}"]
    tokens = tokens_of(pieces, {4: {" 1": 0.6, " 0": 0.2, "1": 0.1}, 9: {"0": 0.75, "1": 0.25}})
    said = judgements(reply("".join(pieces), tokens), 2)
    assert said[1].probability == pytest.approx(0.7 / 0.9)
    assert said[2].probability == pytest.approx(0.25)
    assert not said[1].is_label
    assert not said[2].is_label


def test_a_label_whose_rival_is_not_among_the_likely_tokens_stays_a_label() -> None:
    pieces = ['{"1": ', "1", ', "2": ', "0", "}"]
    tokens = tokens_of(pieces, {1: {"1": 0.9, "yes": 0.05}, 3: {"{": 0.9}})
    said = judgements(reply("".join(pieces), tokens), 2)
    assert (said[1].probability, said[1].is_label) == (1.0, True)
    assert (said[2].probability, said[2].is_label) == (0.0, True)


def test_a_label_of_several_tokens_has_no_probability_of_their_first() -> None:
    pieces = ["1", ":", " Not", " active"]
    tokens = tokens_of(pieces, {2: {" Not": 0.9, " Active": 0.05, "0": 0.01}})
    (said,) = judgements(reply("".join(pieces), tokens), 1).values()
    assert (said.probability, said.is_label) == (0.0, True)
    pieces = ['{"intruder": ', "1", "2", "}"]
    tokens = tokens_of(pieces, {1: {"1": 0.9, "3": 0.1}})
    choices = choice(reply("".join(pieces), tokens), 12)
    assert choices is not None
    assert (choices[12].probability, choices[1].probability) == (0.0, 1.0)


def test_stripped_content_is_found_among_its_tokens() -> None:
    pieces = ["\n", " ", "1", ":", " ", "0"]
    tokens = tokens_of(pieces, {5: {"0": 0.8, "1": 0.2}})
    assert judgements(reply("1: 0", tokens), 1)[1].probability == pytest.approx(0.2)


def test_without_log_probabilities_labels_are_zero_and_one() -> None:
    said = judgements(reply('{"1": 1, "2": 0}'), 2)
    assert [(said[i].probability, said[i].is_label) for i in (1, 2)] == [(1.0, True), (0.0, True)]


@pytest.mark.parametrize(
    "content", ['{"intruder": 3}', "Window 3", "The intruder is window 3.", "3", "Intruder: **3**"]
)
def test_the_chosen_window_is_silent_and_the_others_are_active(content: str) -> None:
    said = choice(reply(content), 4)
    assert said is not None
    assert [said[i].probability for i in (1, 2, 3, 4)] == [1.0, 1.0, 0.0, 1.0]
    assert all(one.is_label for one in said.values())


@pytest.mark.parametrize(
    "content",
    [
        "The intruder is window 3, because windows 1 and 2 are about cups.",
        "Is it 1?\n<think>2</think>3",
        "Perhaps 1, or 2?</think>3",
        "<|channel|>analysis<|message|>The intruder is 2.<|channel|>final<|message|>3",
        "Windows 1 and 2 are about cups.\n\n**Answer: 3**",
        "The intruder might be window 2. No: the intruder is window 3.",
        '{"intruder": 1}? Rather {"intruder": 3}',
        '{"intruder": "Window 3"}',
        '{"reason": "1 and 2 are alike", "intruder": [3]}',
        "Window 3 does not belong; windows 1, 2 and 4 name cups",
        "Windows 1, 2 and 4 name cups. The answer is \\boxed{3}.",
        '```json\n{"intruder": 3}\n```\nWindows 1 and 2 are alike.',
        "Final Answer:\n\n3",
        "3\n\nWindows 1, 2 and 4 are about cups.",
        '{"answer": 3.0}',
        "window_3",
    ],
)
def test_the_window_named_last_as_the_intruder_is_chosen(content: str) -> None:
    said = choice(reply(content), 4)
    assert said is not None
    assert [n for n in said if said[n].probability == 0] == [3]


@pytest.mark.parametrize(
    "content",
    [
        *("", "none", "1 or 2", '{"intruder": 5}', "window 0", '{"intruder": 0}', "not window 2"),
        *("The intruder is 2 or 3", "It is not window 2 but 3", "<think>3", "3</think>"),
        *(
            "There is no intruder. Score 1",
            "I do not think that window 2 is the intruder. 3, then.",
        ),
        *("It's unlikely the intruder is 3", "Window 3? It cannot be that"),
        *("1, 2 and 4 fit", '{"intruder": [2, 3]}', '{"intruder": "none"}'),
    ],
)
def test_a_choice_of_no_window_or_two_is_none(content: str) -> None:
    assert choice(reply(content), 4) is None


def test_long_choices_and_explanations_are_read_in_time() -> None:
    for part in ("the intruder is not 3 ", "I do not think the answer is 3", "Sorry, I ", "x" * 50):
        choice(reply(part * 2_000), 5)
        explanation(reply(part * 2_000))


def test_the_probability_of_the_intruder_is_spread_over_the_windows() -> None:
    pieces = ['{"intruder":', " 2", "}"]
    tokens = tokens_of(pieces, {1: {" 2": 0.5, " 1": 0.2, "3": 0.1, "9": 0.1}})
    said = choice(reply("".join(pieces), tokens), 3)
    assert said is not None
    assert [said[i].probability for i in (1, 2, 3)] == pytest.approx([0.75, 0.375, 0.875])
    assert not said[1].is_label


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Explanation: words for food.", "words for food."),
        ("Let me see.\n\n[EXPLANATION]: words for food", "words for food"),
        ('**Explanation:** "words for food"', "words for food"),
        (
            "explanation: first\nExplanation:  words\n for food\n\nHope this helps!",
            "words for food",
        ),
        ("words for food", "words for food"),
        ("Some thoughts.\n\nwords for food", "words for food"),
        ("<think>Explanation: no</think>\nExplanation: words for food", "words for food"),
        ("## Explanation\n\nwords for food", "words for food"),
        ('{"explanation": "words for \\"food\\""}', 'words for "food"'),
        ('```json\n{"explanation": "words for food"}\n```', "words for food"),
        ('Explanation: the key "explanation": in JSON', 'the key "explanation": in JSON'),
        ("It is about rivers? No, food.</think>words for food", "words for food"),
        ("Explanation: rivers? No.\n</think>\n\nExplanation: words for food", "words for food"),
        ("<|channel|>analysis hm<|channel|>final Explanation: words for food", "words for food"),
        ("Explanation: words for food<|im_end|>", "words for food"),
        ("<answer>Explanation: words for food</answer>", "words for food"),
        ("[THINK]Explanation: rivers[/THINK]words for food", "words for food"),
        ("Explanation: rivers</think>", None),
        ("<think>Explanation: rivers", None),
        ("Thought: it may be rivers.\nAnswer: words for food", "words for food"),
        ("**Reasoning:** it may be rivers.\n\n**Answer:** words for food", "words for food"),
        ("Thought: it may be rivers.", None),
        ("Explanation\uff1awords for food", "words for food"),
        ("The explanation is: words for food", "words for food"),
        ("Explanation:\n- words for food", "words for food"),
        ("[interpretation]: words for food", "words for food"),
        ("<explanation>\nwords for food\n</explanation>", "words for food"),
        ('{"latent_explanation": "words for food"}', "words for food"),
        ('{"reasoning": "rivers?", "explanation": {"text": "words for food"}}', "words for food"),
        ("\\boxed{\\text{words for food}}", "words for food"),
        ("[words for food]", "words for food"),
        ("Thinking Process:\n1. rivers\n2. lakes", None),
        ("Explicaci\u00f3n: words for food", "words for food"),
        ("\u89e3\u91ca\uff1awords for food", "words for food"),
        ("I'm sorry, but I can't help with that.", None),
        ("Explanation: I am unable to determine what it fires on.", None),
        ("Explanation: \"I'm sorry, I can't\" in chats", "\"I'm sorry, I can't\" in chats"),
        (
            "Explanation: words for food<|im_end|>\n<|im_start|>user\nExplanation: x",
            "words for food",
        ),
        ('{"explanation": null}', None),
        ("Explanation: N/A", None),
        ("Explanation: <explanation>", None),
        ("[your explanation here]", None),
        ("Explanation:", None),
        ("", None),
        ("...", None),
    ],
)
def test_the_explanation_is_the_last_one_given(content: str, text: str | None) -> None:
    assert explanation(reply(content)) == text


CUT = [
    ('{"1": 0, "2": 1', "Explanation: boats on a", '{"intruder": 2'),
    ('```json\n{"1": 0, "2": 1,', "**Explanation:** boats on a", "The intruder is window 2, as"),
    ("hm</think>So: 1: 0\n2: 1\n3", "hm</think>So.\nExplanation: boats on a", "a</think>So: 2"),
    ("<think>1: 1</think>1: 0, 2: 1", "<think>a</think>Explanation: boats on a", "Window 2"),
]
THOUGHT_ONLY = [
    (
        "We see. Window 1: no. Window 2: no. But",
        "I would say\nExplanation: boats, or",
        "Is it 2? It",
    ),
    ('Try {"1": 0, "2": 0}. Now', "It may be boats, as", "Perhaps the intruder is 2, but"),
    ("<think>1: 0\n2: 1", "<think>Explanation: boats", "<think>2"),
    ("Okay, so\n1: 0\n2: 1", "boats? No,", 'So far {"intruder": 2}. Next'),
]


@pytest.mark.parametrize(("judged", "explained", "chosen"), CUT)
def test_the_answer_in_a_truncated_reply_counts(judged: str, explained: str, chosen: str) -> None:
    said = judgements(Reply(judged, (), "length"), 3)
    assert {n: one.probability for n, one in said.items() if n < 3} == {1: 0, 2: 1}
    assert explanation(Reply(explained, (), "length")) == "boats on a"
    choices = choice(Reply(chosen, (), "length"), 3)
    assert choices is not None
    assert choices[2].probability == 0


@pytest.mark.parametrize(("judged", "explained", "chosen"), THOUGHT_ONLY)
def test_a_reply_truncated_within_an_untagged_thought_has_no_answer(
    judged: str, explained: str, chosen: str
) -> None:
    assert judgements(Reply(judged, (), "length"), 3) == {}
    assert explanation(Reply(explained, (), "length")) is None
    assert choice(Reply(chosen, (), "length"), 3) is None


def test_probabilities_are_those_of_the_last_answer_not_of_a_draft() -> None:
    pieces = ["1", ":", " 0", "?", "</think>", "1", ":", " 0"]
    tokens = tokens_of(pieces, {2: {" 0": 0.55, " 1": 0.45}, 7: {" 0": 0.98, " 1": 0.02}})
    for content in ("".join(pieces), "1: 0"):  # the server keeps the thought, or removes it
        for some in (tokens, tokens[5:]):
            if len(some) == len(tokens) or content == "1: 0":
                said = judgements(reply(content, some), 1)
                assert said[1].probability == pytest.approx(0.02)


EXAMPLE = "vessels for drinks, such as cups, pots and kettles, and sometimes the drink itself."


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (EXAMPLE, True),
        (EXAMPLE.upper().replace(",", ""), True),
        ("Vessels for drinks, such as cups", True),
        ("vessels for drinks, such as cups and glasses that stand on a table", True),
        ("mostly vessels for drinks, such as cups, pots, kettles, and the drink itself", True),
        ("vessels for drinks", False),
        ("words for drinks, such as tea and coffee", False),
        ("cups", False),
        ("boats on a river, such as ferries and barges", False),
    ],
)
def test_an_explanation_with_the_words_of_an_example_repeats_it(text: str, same: bool) -> None:
    assert repeats(text, ["the word and", EXAMPLE]) is same
