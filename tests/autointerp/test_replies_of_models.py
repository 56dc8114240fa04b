"""Answers in the styles of many models: read correctly or left out, never misread."""

from __future__ import annotations

import pytest

from nullsae.autointerp.explanation_text import explanation
from nullsae.autointerp.labels import labels
from nullsae.autointerp.llm.messages import Reply
from nullsae.autointerp.replies import choice


def found(content: str, n: int) -> dict[int, int]:
    return {number: label for number, (label, _) in labels(content, n).items()}


def chosen(content: str) -> int | None:
    said = choice(Reply(content, (), "stop"), 5)
    return None if said is None else next(n for n in said if said[n].probability == 0)


@pytest.mark.parametrize(
    "content",
    [
        "{\u201c1\u201d: 0, \u201c2\u201d: 1}",
        "\uff5b\uff11\uff1a\uff10\uff0c\uff12\uff1a\uff11\uff5d",
        "\u0661: \u0660\n\u0662: \u0661",
        "\u06f1: \u06f0\n\u06f2: \u06f1",
        "\u7a97\u53e31\uff1a0\n\u7a97\u53e32\uff1a1",
        "Fen\u00eatre 1 : 0, Fen\u00eatre 2 : 1",
        "***1***: _no_\n__Window 2__ \u2014 **Yes**",
        "1: No \u274c\n2: Yes \u2705",
        "1: \u274c\n2: \u2705",
        "- **Window 1:** \u274c\n- **Window 2:** \u2714\ufe0f",
        "| Window | Active |\n|---|---|\n| 1 | \u274c |\n| 2 | \u2705 |",
        "Fen\u00eatre 1 : non\nFen\u00eatre 2 : oui",
        "\u7a97\u53e31\uff1a\u5426\n\u7a97\u53e32\uff1a\u662f",
        '{"1": "nein", "2": "ja"}',
        '{"Window 1": "Not active", "Window 2": "Active"}',
        "Window 1: inactive\nWindow 2: active",
        "Window 1: Not Active (0)\nWindow 2: Active (1)",
        "Window 1: so the answer is 0.\nWindow 2: two mugs, so the answer is 1.",
        "\\boxed{0, 1}",
    ],
)
def test_signs_of_any_script_are_read(content: str) -> None:
    assert found(content, 2) == {1: 0, 2: 1}


@pytest.mark.parametrize(
    "content",
    [
        '<|python_tag|>{"name": "answer", "parameters": {"1": 0, "2": 1}}<|eom_id|>',
        '<tool_call>\n{"name": "f", "arguments": {"1": "0", "2": "1"}}\n</tool_call>',
        '{"name":"f","arguments":"{\\"1\\": 0, \\"2\\": 1}"}',
        "<function=f>\n<parameter=1>\n0\n</parameter>\n<parameter=2>\n1\n</parameter>\n</function>",
        '[TOOL_CALLS][{"name": "answer", "arguments": {"1": 0, "2": 1}}]',
        '<window id="1">0</window>\n<window id="2">1</window>',
        '<window id="1"><active>0</active></window><window id="2"><active>1</active></window>',
        "<answers><window_1>no</window_1><window_2>yes</window_2></answers>",
        "<w><number>1</number><active>0</active></w><w><number>2</number><active>1</active></w>",
        '<window number="1" active="0"/>\n<window number="2" active="1"/>',
        "- window: 1\n  active: 0\n- window: 2\n  active: 1",
        "1:\n  active: 0\n  reason: no cup\n2:\n  active: 1\n  reason: a mug",
        "1.\n   - 0\n2.\n   - 1",
        "window=1 active=0\nwindow=2 active=1",
        '{"1": [0, "no cup"], "2": [1, "a mug"]}',
        '{"1": 0.0, "2": 1.0}',
        '{\n"1": 0, // no: it\'s 1: train\n"2": 1 /* "3": 0 */\n}',
        "{\n1: 0,  # ratio 2: 0\n2: 1,  # a mug\n}",
        '[{"window": 1, "text": "a", "active": false}, {"window": 2, "text": "b", "active": true}]',
        '**Final Answer**\n\\boxed{\\{"1": 0, "2": 1\\}}',
        "Here are my steps:\n1: 1\n[BEGIN FINAL RESPONSE]\n1: 0\n2: 1\n[END FINAL RESPONSE]",
        "| # | Window | Label |\n|---|---|---|\n| 1 | 2 | 1 |\n| 2 | 1 | 0 |",
    ],
)
def test_calls_of_tools_xml_and_yaml_are_read(content: str) -> None:
    assert found(content, 2) == {1: 0, 2: 1}


@pytest.mark.parametrize(
    ("content", "n", "kept"),
    [
        ("1-3: no\n4: yes", 4, {1: 0, 2: 0, 3: 0, 4: 1}),
        ("Windows 1 to 3: 0\nWindow 4: 1", 4, {1: 0, 2: 0, 3: 0, 4: 1}),
        ("Windows 1, 2 and 4 are 0; window 3 is 1", 4, {1: 0, 2: 0, 3: 1, 4: 0}),
        ("For windows 1 - 4: 0, 1, 1, 0", 4, {1: 0, 2: 1, 3: 1, 4: 0}),
        ("Windows 1-4: 1, 0, 0", 4, {}),
        ("Answers (4): 0, 1, 1, 1", 4, {}),
        ('As JSON, like the example:\n{"1": 0, "2": 1}', 2, {1: 0, 2: 1}),
        ("Windows 2 and 4: 1. All others: 0.", 4, {1: 0, 2: 1, 3: 0, 4: 1}),
        ("2: yes\nThe rest: no", 3, {1: 0, 2: 1, 3: 0}),
        ('{"2": 1, "others": 0}', 3, {1: 0, 2: 1, 3: 0}),
        ("1: yes\nThe rest: not sure", 3, {1: 1}),
        ("Window 1: the train left \u2192 0\nWindow 2: two mugs \u2192 1", 2, {1: 0, 2: 1}),
        ("1. No vessels. Answer: 0\n2. Two mugs. Answer: 1", 2, {1: 0, 2: 1}),
        ("1. I look for cups - no\n2. Then for mugs - yes\n\n1: 1\n2: 0", 2, {1: 1, 2: 0}),
        ("Yes, it mentions mugs.", 1, {1: 1}),
        ('{"active": 0}', 1, {1: 0}),
        ("Yes or no? The answer is 0", 1, {}),
    ],
)
def test_windows_may_be_answered_together_or_at_the_end_of_a_line(
    content: str, n: int, kept: dict[int, int]
) -> None:
    assert found(content, n) == kept


@pytest.mark.parametrize(
    "beside",
    [
        "\n\nWindow 3 quotes John 3:1, not vessels.",
        "\n\nStep 1: no. Step 2: yes.",
        "\n\n(0 = no, 1 = yes)",
        '\n\nLegend: {"0": "no", "1": "yes"}',
        '\n\nThis follows the format {"1": 0, "2": 1, ...}.',
        '\n\nFor example, {"1": 0} would mean that window 1 has no cup.',
        "\n\nWindow 1 is about trains instead of cups.",
        '\n\nMy first guess was {"1": 0, "2": 1, "3": 1}.',
        "\n\n(Initial draft: 1: 0, 2: 1, 3: 1)",
        "\n\nAn example of another answer:\n1: 0\n2: 1\n3: 1",
    ],
)
def test_text_next_to_an_answer_does_not_change_it(beside: str) -> None:
    for answer in ('{"1": 1, "2": 0, "3": 0}', "1: 1\n2: 0\n3: 0"):
        if "{" not in beside or "{" in answer or "..." in beside:
            assert found(answer + beside, 3) == {1: 1, 2: 0, 3: 0}


@pytest.mark.parametrize(
    ("content", "n", "kept"),
    [
        ("1: 0\n2: 0 (the home side won 2:1)\n3: 1", 3, {1: 0, 2: 0, 3: 1}),
        ("1. Yes - a cup\n2. No - the score was 1:0\n3. Yes", 3, {1: 1, 2: 0, 3: 1}),
        ("Window 1: no\nWindow 2: no, as John 3:1 has none\nWindow 3: no", 3, {1: 0, 2: 0, 3: 0}),
        ("3: yes, as in 1 and 2: yes", 3, {3: 1}),
        ("0 = no, 1 = yes\n\n1: 0\n2: 0\n3: 1", 3, {1: 0, 2: 0, 3: 1}),
        ("1: 0; 2: 1; total: 1 active", 2, {1: 0, 2: 1}),
        ("1: yes (mugs), 2: no (trains), 3: yes", 3, {1: 1, 2: 0, 3: 1}),
        ("1: 0, 2: 2, 3: 1", 3, {1: 0}),
        ("1 = 0, 2 = 2 and 3 = 1", 3, {1: 0}),
        ("2: active, 1: inactive", 2, {1: 0, 2: 1}),
        ("Window 1: 10\nWindow 2: 1", 2, {2: 1}),
        ('{"answer": {"1": 0, "2": 1}, "confidence": {"1": 1, "2": 0.8}}', 2, {1: 0, 2: 1}),
        (
            '[{"window": 1, "status": "inactive"}, {"window": 2, "status": "active"}]',
            2,
            {1: 0, 2: 1},
        ),
    ],
)
def test_numbers_in_reasons_are_not_answers(content: str, n: int, kept: dict[int, int]) -> None:
    assert found(content, n) == kept


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ('{"1": 0, "2": 1}\n\nCorrection: window 2 should be 0.', {1: 0}),
        ('{"1": 0, "2": 1}\n\nWait, window 2: 0', {1: 0, 2: 0}),
        ('{"1": 0, "2": 1, "corrected": {"2": 0}}', {1: 0, 2: 0}),
        ("1: no, wait, yes\n2: 1", {2: 1}),
        ("1: 0... actually 1\n2: 1", {2: 1}),
        ("1: No \u2014 on second thought, yes\n2: no", {2: 0}),
        ('[{"id": 1, "label": 0}, {"id": 1, "label": 1}, {"id": 2, "label": 0}]', {2: 0}),
        ("1: 0 (changed from 1)\n2: 1", {1: 0, 2: 1}),
        ('{"1": 0, "2": 1}\n\nAlternatively: {"1": 0, "2": 0}', {1: 0}),
        ('Option A: {"1": 0, "2": 1}\nOption B: {"1": 1, "2": 0}', {}),
        ('{"1": 0, "2": 1}\n\nOr, read strictly:\n1: 0\n2: 0', {1: 0}),
        ('{"1": 1, "2": 1} was my first answer; the final one is {"1": 0, "2": 1}', {1: 0, 2: 1}),
        ("Labels: [0, 1]\nConfidences: [1, 1]", {1: 0, 2: 1}),
        ('{"1": 0, "2": 1}\n\nOops, I mixed up windows 1 and 2.', {}),
        ('{"1": 0, "2": 1}\n\nActually, 2 should be 0.', {1: 0}),
        ('{"1": 0, "2": 1}\n\nThat was wrong for window 2.', {1: 0}),
    ],
)
def test_withdrawn_labels_do_not_count(content: str, kept: dict[int, int]) -> None:
    assert found(content, 2) == kept


@pytest.mark.parametrize(
    ("content", "n"),
    [
        ('{"active_windows": [0, 1]}', 2),
        ('{"active_indices": [1, 0]}', 2),
        ('{"matches": [0]}', 1),
        ('{"1": 0, "2": 1, ...}', 2),
        ("Please give the windows. For example:\n1: 0\n2: 1", 2),
        ('Example output: {"1": 0, "2": 1}', 2),
        ('The format should be {"1": 0, "2": 1, "3": 0, "4": 1}.', 5),
        ("All windows except window 2: 0", 2),
        ("Active: no, since it is rare", 1),
    ],
)
def test_lists_of_windows_and_templates_are_not_labels(content: str, n: int) -> None:
    assert found(content, n) == {}


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ("The intruder among the 5 windows is window 3.", 3),
        ("The intruder is 3, because the other 4 windows mark cups.", 3),
        ("3 is the intruder, and not 2.", 3),
        ("The intruder has 3 marks.\n\nWindows 1 and 2 fit.", None),
        ('{"intruder": 3}\n\nWindow 1: <text>a <<cup>></text>\n{"intruder": 1}', 3),
        ("The intruder (out of 5) is 3", None),
        ("Intruder: none (closest: 2)", None),
        ("Answer: no intruder among the 5 windows", None),
        ("Intruder (1-5): 3", None),
        ('[{"window": 3, "intruder": true}, {"window": 4, "intruder": false}]', None),
        ("The intruder is the window that has no cup in 4 words: 3", None),
        ("The intruder is 2. Wait, no: it is 3.", None),
        ('{"intruder": 2}\n\nCorrection: the intruder is window 3.', None),
        ("The intruder is 3. Actually a law is marked there.", 3),
        ("The odd one out of the set is 3", 3),
        ("The most likely intruder is 3", 3),
        ("I think the intruder would be window number 3.", 3),
        ('{"intruder": \u0663}', 3),
        ("\u7b54\u6848\uff1a3", 3),
        ("\\boxed{\\text{Window } 3}", 3),
        ('{"name": "answer", "parameters": {"intruder": 3}}', 3),
        ('{"name": "f", "arguments": "{\\"intruder\\": 3}"}', 3),
        ('{"intruder": {"window": 3, "reason": "2 are alike"}}', 3),
        ('{"intruder": 3, "window": 3}', 3),
        ('{"intruder": 3, "answer": 4}', None),
        ('{"intruder": -3}', None),
        ('{"intruder": 2}\nOops, I meant window 3.', None),
        ('{"intruder": 2} is wrong. The intruder is window 3.', None),
        ('{"intruder": 3} (my first guess was {"intruder": 2})', 3),
        ('Example: {"intruder": 3}', None),
        ('{"intruder": 2}\nAlternatively: {"intruder": 3}', None),
        ('In the requested format: {"intruder": 3}', 3),
        ("The marks in window 3 do not fit.", 3),
        ("Window 3 fits best.", None),
        ("I need 3 more windows.", None),
        ("This is attempt 3", None),
        ("3 marks", None),
        ("3 - a law", 3),
        ("Der Eindringling ist Fenster 3.", 3),
    ],
)
def test_a_number_beside_the_word_intruder_may_count_something_else(
    content: str, number: int | None
) -> None:
    assert chosen(content) == number


@pytest.mark.parametrize(
    "content",
    [
        "rivers?\n[BEGIN FINAL RESPONSE]\nExplanation: words for food\n[END FINAL RESPONSE]",
        "<final_explanation>words for food</final_explanation>",
        "Here it is.\n\n<label>words for food</label>",
        "Explanation: words for food\nConfidence: 0.9",
        "**Explanation:** words for food\n**Reasoning:** they are marked",
        "Explanation: words for food\n---\nLet me know if you need more.",
        "words for food\n\nLet me know if you'd like more detail!",
        'Here is the JSON:\n```json\n{"explanation": "words for food"}\n```',
        '[{"latent": 1, "explanation": "words for food"}]',
        'Explanation: {"explanation": "words for food"}',
        '<tool_call>\n{"name": "f", "arguments": {"explanation": "words for food"}}\n</tool_call>',
        '{"name": "f", "arguments": "{\\"explanation\\": \\"words for food\\"}"}',
        '{"initial_explanation": "rivers", "final_explanation": "words for food"}',
        '{"explanation": "rivers"}\nBetter:\n{"explanation": "words for food"}',
        "explanation: |\n  words for food",
        "explanation: >-\n  words for food",
        "Explanation: \u00abwords for food\u00bb",
        "Explanation: \u201ewords for food\u201c",
        "\u8aac\u660e\uff1a\u300cwords for food\u300d",
        '"Explanation: words for food"',
        "Explanation 1: words for food",
        "Explanation (final): words for food",
        "Explanation for latent 12: words for food",
        "Explanation \u2014 words for food",
        '```python\nexplanation = "words for food"\n```',
        "A\u00e7\u0131klama: words for food",
        "Explanation: *words* for **food**",
        "Explanation: words for <<food>>",
        '{"explanation": ["words for food"]}',
        "Explanation: words for food\n\nWindow 1: <text>a <<pot>></text>\nExplanation: pots",
        "```text\nwords for food\n```",
        "Looking at the tokens: bread.\n\n**Pattern:** words for food",
        '{"pattern": "words for food"}',
        "So the explanation would be: words for food",
        "Explanation: words for food\n(Confidence: high)",
        "Explanation: words for food\nTop tokens: bread",
        "$\\boxed{\\text{words for food}}$",
        "Explanation: \\text{words for food}",
    ],
)
def test_an_explanation_is_stripped_of_its_surroundings(content: str) -> None:
    assert explanation(Reply(content, (), "stop")) == "words for food"


@pytest.mark.parametrize(
    "text",
    [
        '{"text": ...} objects in JSON logs',
        'code such as {"text": "a"} in JSON',
        "| as a column separator",
        "> at the start of a quoted line",
        "# before a heading",
        "the <label> element in HTML forms, as in <label>Name</label>",
        '"and" or "or"',
        'phrases of hope, such as "I hope this helps"',
        "Words for food. Notes: also drinks.",
        "`self.` in methods, and __init__",
        "the products a*b and *p, or **kwargs",
        "shifts such as x << 2 and x >> 2",
        "I don't see any pattern in these windows.",
        "Please provide, please share and other polite requests",
    ],
)
def test_signs_that_an_explanation_mentions_stay(text: str) -> None:
    assert explanation(Reply(f"Explanation: {text}", (), "stop")) == text


@pytest.mark.parametrize(
    "content",
    [
        "Please provide the windows.",
        "Could you share the windows again?",
        "As an AI language model, I cannot see what is active.",
        "I do not see the windows.",
        "Explanation: I don't have enough text to tell.",
        "Explanation: unknown",
        "[insert explanation]",
    ],
)
def test_a_question_or_a_placeholder_is_no_explanation(content: str) -> None:
    assert explanation(Reply(content, (), "stop")) is None
