"""Labels in answers: read by key, or by position in a complete list, or not read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.autointerp.label_words import NEGATIVE, POSITIVE
from nullsae.autointerp.labels import labels


def found(content: str, n: int) -> dict[int, int]:
    read = labels(content, n)
    for label, place in read.values():
        assert content[place:].lower().startswith(POSITIVE if label else NEGATIVE)
    return {number: label for number, (label, _) in read.items()}


@pytest.mark.parametrize(
    ("content", "n", "kept"),
    [
        ("1|0, 2|1", 2, {1: 0, 2: 1}),
        ("1|0\n2|1", 2, {1: 0, 2: 1}),
        ("1,0\n2,1\n3,1", 3, {1: 0, 2: 1, 3: 1}),
        ("window,active\n1,0\n2,1", 2, {1: 0, 2: 1}),
        ("1;0\n2;1", 2, {1: 0, 2: 1}),
        ("1\t0\n2\t1", 2, {1: 0, 2: 1}),
        ("1 0\n2 1\n3 1", 3, {1: 0, 2: 1, 3: 1}),
        ("**Window 1:** 0\n**Window 2:** 1", 2, {1: 0, 2: 1}),
        ("- 1: yes\n- 2: no", 2, {1: 1, 2: 0}),
        ("* **1.** yes\n* **2.** no", 2, {1: 1, 2: 0}),
        ("1. 0\n2. 1", 2, {1: 0, 2: 1}),
        ("1\\. 0\n2\\. 1", 2, {1: 0, 2: 1}),
        ("| Window | Active |\n|---|---|\n| 1 | 0 |\n| 2 | 1 |", 2, {1: 0, 2: 1}),
        (
            "| Window | Text | Active |\n|:--|---|---|\n| Window 1 | bread, 1 | no |\n"
            "| Window 2 | b | **yes** |",
            2,
            {1: 0, 2: 1},
        ),
        (
            "| Window | Active | Confidence |\n|---|---|---|\n| 1 | 0 | 1 |\n| 2 | 1 | 1 |",
            2,
            {1: 0, 2: 1},
        ),
        ("| Window | 1 | 2 |\n|---|---|---|\n| Active | 1 | 0 |", 2, {1: 1, 2: 0}),
        ("| 1 | 2 |\n|---|---|\n| 1 | 0 |", 2, {1: 1, 2: 0}),
        ("Window | Answer\n--- | ---\n1 | 0\n2 | 1", 2, {1: 0, 2: 1}),
        ("1 | text a | 0\n2 | text b | 1", 2, {1: 0, 2: 1}),
        ('```json\n{"1": 0, "2": 1}\n```', 2, {1: 0, 2: 1}),
        ('{"1": true, "2": false}', 2, {1: 1, 2: 0}),
        ("{1: 0, 2: 1}", 2, {1: 0, 2: 1}),
        ("{'1': '0', '2': '1'}", 2, {1: 0, 2: 1}),
        (
            '{"1": 0, "2": 1}\n\nWindow 1 mentions trains, so 0; window 2 mentions mugs: 1.',
            2,
            {1: 0, 2: 1},
        ),
        ('{"1": 0, "2": 1}\n\nWindow 2: yes, because it names mugs.', 2, {1: 0, 2: 1}),
        ('{"final": {"1": 0, "2": 1}, "initial": {"1": 1, "2": 0}}', 2, {1: 0, 2: 1}),
        ('{"answers": {"1": 0, "2": 1}, "example": {"1": 1, "2": 0}}', 2, {1: 0, 2: 1}),
        ('{"first_guess": [1, 0], "labels": {"1": 0, "2": 1}}', 2, {1: 0, 2: 1}),
        ('{"active": {"1": 1}, "silent": {"2": 1}}', 2, {1: 1}),
        ('{"active": [2, 1], "labels": {"1": 0, "2": 1}, "inactive": [1]}', 2, {1: 0, 2: 1}),
        # Withdrawn: it is unclear which one counts.
        ("1: 0 -> 1\n2: 1", 2, {2: 1}),
        ("| Window | Active |\n|---|---|\n| 1 | 1 \u2192 0 |\n| 2 | 1 |", 2, {2: 1}),
        ("1 -> 0\n2 -> 1", 2, {1: 0, 2: 1}),
        ('1: "1: 1, 2: 0" -> 0', 1, {1: 0}),
        ('{"1": 0, "2": 1}\n\nWindow 2: No mugs but cups.', 2, {1: 0, 2: 1}),
        ('{"1": 0, "2": 1}\nI am sure.', 2, {1: 0, 2: 1}),
        ('{"1": 0, "2": 1}\n\nWait, actually:\n{"1": 1, "2": 0}', 2, {1: 1, 2: 0}),
        ('{"1": 0, "2": 1} {"1": 1, "2": 0}', 2, {1: 1, 2: 0}),
        ('{"1": 0}\n{"2": 1}', 2, {1: 0, 2: 1}),
        ('{"window": 1, "active": 1}\n{"window": 2, "active": 0}', 2, {1: 1, 2: 0}),
        ('{"0": 1, "1": 0}', 2, {1: 1, 2: 0}),
        ("0: 1\n1: 0\n2: 1", 3, {1: 1, 2: 0, 3: 1}),
        ("0|1, 1|0", 2, {1: 1, 2: 0}),
        ("[0,1]\n", 2, {1: 0, 2: 1}),
        ("yes\nno\nyes", 3, {1: 1, 2: 0, 3: 1}),
        ("- yes\n- no", 2, {1: 1, 2: 0}),
        ("Answers: 1, 0, 1", 3, {1: 1, 2: 0, 3: 1}),
        ("1, 0", 2, {1: 1, 2: 0}),
        ("1 0", 2, {1: 1, 2: 0}),
        ("Yes", 1, {1: 1}),
        ("**1**", 1, {1: 1}),
        ("[1]: 0", 1, {1: 0}),
        ("[1] 0", 1, {1: 0}),
        ("1: 0.5\n2: 1", 2, {2: 1}),
        ("1: 100%\n2: 1", 2, {2: 1}),
        ("Window 1: no, nothing. Window 2: no.\n\nFinal answer:\n1: 1\n2: 0", 2, {1: 1, 2: 0}),
        ("Window 2: no?\nFinal answer: 1: 1", 2, {1: 1}),
        (
            '{"reasoning": "Window 1: 0? Window 2: 0?", "answers": {"1": 1, "2": 0}}',
            2,
            {1: 1, 2: 0},
        ),
        ('{"1": {"active": 1, "reason": "x"}, "2": {"active": 0}}', 2, {1: 1, 2: 0}),
        ('[{"id": 1, "reason": "no", "label": "yes"}, {"id": 2, "label": "no"}]', 2, {1: 1, 2: 0}),
        ('[{"1": 1}, {"2": 0}]', 2, {1: 1, 2: 0}),
        ("[[1, 0], [2, 1]]", 2, {1: 0, 2: 1}),
        ("(1, 0), (2, 1)", 2, {1: 0, 2: 1}),
        ('{"windows": [2, 1], "answers": [1, 0]}', 2, {1: 0, 2: 1}),
        ('{"window_1": 1, "window_2": 0}', 2, {1: 1, 2: 0}),
        ('{"Window 1": "Yes", "Window 2": "No"}', 2, {1: 1, 2: 0}),
        ('{"w1":1,"w2":0}', 2, {1: 1, 2: 0}),
        ("1=0 2=1", 2, {1: 0, 2: 1}),
        ("1: 0 2: 1", 2, {1: 0, 2: 1}),
        ("Window 1 → no; Window 2 → yes", 2, {1: 0, 2: 1}),
        ("Window 1 - yes\nWindow 2 - no", 2, {1: 1, 2: 0}),
        ("#1: 0\n#2: 1", 2, {1: 0, 2: 1}),
        ("W1: 0\nW2: 1", 2, {1: 0, 2: 1}),
        ("window_1: yes\nwindow_2: no", 2, {1: 1, 2: 0}),
        ("Window 1: [0]\nWindow 2: [1]", 2, {1: 0, 2: 1}),
        ("Window 1, 0\nWindow 2, 1", 2, {1: 0, 2: 1}),
        ('"1","0"\n"2","1"', 2, {1: 0, 2: 1}),
        ("| `1` | `0` |\n| `2` | `1` |", 2, {1: 0, 2: 1}),
        ('"1": true,\n"2": false', 2, {1: 1, 2: 0}),
        ("Answer: 1|0, 2|1", 2, {1: 0, 2: 1}),
        ("1|0|2|1", 2, {1: 0, 2: 1}),
        ("Windows 1 and 2: yes", 2, {1: 1, 2: 1}),
        ("Window 1 \u2013 Answer: yes\nWindow 2 \u2013 Answer: no", 2, {1: 1, 2: 0}),
        ("1) 0\n2) 1", 2, {1: 0, 2: 1}),
        ("(1) 0\n(2) 1", 2, {1: 0, 2: 1}),
        ("1: `0`\n2: `1`", 2, {1: 0, 2: 1}),
        ("Window 1 is 0.\nWindow 2 is 1.", 2, {1: 0, 2: 1}),
        ("1: 0 (no cup)\n2: 1 (a mug)", 2, {1: 0, 2: 1}),
        ("1: 0 - no cup\n2: 1 \u2014 a mug", 2, {1: 0, 2: 1}),
        ('{"1": "0 - no cup", "2": "1: mug"}', 2, {1: 0, 2: 1}),
        ('{"1": -1, "2": 1}', 2, {2: 1}),
        ("thought 1: 1\n2: 1</think>1: 0\n2: 1", 2, {1: 0, 2: 1}),
        ("### Window 1\n0\n### Window 2\n1", 2, {1: 0, 2: 1}),
        ("Window 1:\n0\n\nWindow 2:\n1", 2, {1: 0, 2: 1}),
        ("**Window 1**\n- Answer: 0\n\n**Window 2**\n- Answer: 1", 2, {1: 0, 2: 1}),
        ("1: 0<br>2: 1", 2, {1: 0, 2: 1}),
        ('\\boxed{{"1": 0, "2": 1}}', 2, {1: 0, 2: 1}),
        ('{"answers": ["yes", "no"]}', 2, {1: 1, 2: 0}),
        ("1: yes, 2: no, 3: yes and 4: no", 4, {1: 1, 2: 0, 3: 1, 4: 0}),
        ('Format is {"1": 0, "2": 1, ...}.\n\n1: 1\n2: 0', 2, {1: 1, 2: 0}),
        ('{"1": 0, "2": 1', 2, {1: 0, 2: 1}),
        ('{"1": 0, "2": ', 2, {1: 0}),
        ('{"1": [0], "2": [1]}', 2, {1: 0, 2: 1}),
        ("1:1,2:0", 2, {1: 1, 2: 0}),
        ("{1:1,2:0}", 2, {1: 1, 2: 0}),
        ("1. **No**\n2. **Yes** \u2013 mugs", 2, {1: 0, 2: 1}),
        ("1. No, no cup.\n2. Yes, mugs.", 2, {1: 0, 2: 1}),
        ("1. No. It is about trains.\n2. Yes. Mugs!", 2, {1: 0, 2: 1}),
        ("Answer: 1: 0, 2: 1", 2, {1: 0, 2: 1}),
        ("Window 1: <text>has 2: 1 mug, 1: 0</text> no", 2, {1: 0}),
        (
            "Window 1: <text>a 1</text>\nAnswer: 0\nWindow 2: <text>b</text>\nAnswer: 1",
            2,
            {1: 0, 2: 1},
        ),
        ("Window 1 (a train): 0\nWindow 2 (mugs): 1", 2, {1: 0, 2: 1}),
        ("1. a train... 0\n2. two mugs... 1", 2, {1: 0, 2: 1}),
        ("1. as in window 2 \u2192 0\n2. two mugs \u2192 1", 2, {1: 0, 2: 1}),
        ('1. "return [0, 1];" - 0\n2. "mugs" - 0', 2, {1: 0, 2: 0}),
        (
            "| Window | Text | Label |\n|---|---|---|\n| 1 | if (x) { return [0, 1]; } | 1 |\n"
            "| 2 | b | 0 |",
            2,
            {1: 1, 2: 0},
        ),
        ("Windows with cups are 1, the others 0.\n\n1: 1\n2: 0", 2, {1: 1, 2: 0}),
        ("1: 0 \u2192 on reconsidering, 1\n2: 1", 2, {2: 1}),
        ("1: 0\n2: 1\n2: 0", 2, {1: 0}),
        ("1) 0 2) 1", 2, {1: 0, 2: 1}),
        ("Window 1 \u2013 0, Window 2 \u2013 1", 2, {1: 0, 2: 1}),
        ("Answers:\r\n1,0\r\n2,1\r\n3,1", 3, {1: 0, 2: 1, 3: 1}),
        ("3: 1\n2: 1\n1: 0\n\n0: 0\n1: 1\n2: 1", 3, {1: 0, 2: 1, 3: 1}),
    ],
)
def test_labels_are_read_by_their_keys(content: str, n: int, kept: dict[int, int]) -> None:
    assert found(content, n) == kept


@pytest.mark.parametrize(
    ("content", "n"),
    [
        ("| 1 | 0 | 1 |\n| 2 | 1 | 1|", 2),
        ('{"0": 1, "1": 0}', 3),
        ('{"0": 1, "1": 0, "2": 1}', 2),
        ('{"2": 1, "3": 0, "4": 1}', 3),
        ("[0,1]", 3),
        ("I think 1 of them is yes", 2),
        ("1: 1 mug\n2: 0 mugs", 2),
        *(("1: No cups are named", 1), ("1: 0.5", 1), ("1. 1 mug", 1)),
        ('{"active": [1], "inactive": [2]}', 2),
        ('{"inactive": [1]}', 1),
        ("1|1|0", 3),
        ("0|1|1|0", 4),
        ('[{"active": 0}, {"active": 1}]', 2),
        ("| bread | 0 |\n| mug | 1 |", 2),
        ("bread: 0\nmug: 1", 2),
        ("text one, 0\ntext two, 1", 2),
        ("Window 1 (0), Window 2 (1)", 2),
        ("1\n0\n2\n1", 2),
        ('{"inactive": {"1": 1, "2": 0}}', 2),
        ('{"active": [1], "silent": {"2": 1}}', 2),
    ],
)
def test_answers_without_unambiguous_keys_are_not_read(content: str, n: int) -> None:
    assert found(content, n) == {}


@pytest.mark.parametrize("form", ["{k}|{v}", "{k},{v}", "{k}: {v}", "| {k} | {v} |", "{k}. {v}"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_keys_are_one_to_n_or_exactly_zero_to_n_minus_one(form: str, first: int) -> None:
    said = [1, 0, 0, 1]
    content = "\n".join(form.format(k=k, v=v) for k, v in enumerate(said, first))
    assert found(content, 4) == ({} if first == 2 else dict(enumerate(said, 1)))


@pytest.mark.parametrize("form", ["{k}|{v}", "{k},{v}", "{k}: {v}", "| {k} | {v} |", "{k}. {v}"])
def test_an_incomplete_count_from_zero_is_not_read(form: str) -> None:
    content = "\n".join(form.format(k=k, v=v) for k, v in enumerate([1, 0, 0, 1]))
    assert found(content, 5) == {}
    assert found(content, 3) == {}


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("form", ["[{}]", '{{"answers": [{}]}}', "{}", "Answers: {}"])
def test_a_list_without_keys_counts_only_if_complete(form: str, n: int) -> None:
    content = form.format(", ".join("01"[i % 2] for i in range(n)))
    for asked in (1, 2, 3, 4, 5):
        # Without brackets, "0, 1" about one window is a row with a number.
        if (form, n, asked) != ("{}", 2, 1):
            whole = {i + 1: i % 2 for i in range(n)}
            assert found(content, asked) == (whole if asked == n else {})


DRAFTS = ("{d}</think>", "<think>{d}</think>", "[THINK]\n{d}\n[/THINK]", "{d}\n\nFinal answer:\n")
ROWS = ("{k}|{v}", "{k}: {v}", "- **Window {k}:** {v}", "{k}. {v}", '"{k}": {v},', "| {k} | {v} |")


@settings(deadline=None)
@given(
    data=st.data(),
    n=st.integers(2, 6),
    thought=st.sampled_from(DRAFTS),
    row=st.sampled_from(ROWS),
    draft_row=st.sampled_from(ROWS),
)
def test_drafts_do_not_change_what_is_read(
    data: st.DataObject, n: int, thought: str, row: str, draft_row: str
) -> None:
    bits = st.lists(st.integers(0, 1), min_size=n, max_size=n)
    answer, draft = data.draw(bits), data.draw(bits)
    kept = data.draw(st.sets(st.integers(1, n), min_size=1))
    keys = data.draw(st.permutations(sorted(kept)))
    first = "\n".join(draft_row.format(k=k, v=v) for k, v in enumerate(draft, 1))
    last = "\n".join(row.format(k=k, v=answer[k - 1]) for k in keys)
    content = thought.format(d=first) + last
    assert found(content, n) == {k: answer[k - 1] for k in sorted(kept)}


def test_long_answers_are_read_in_time() -> None:
    parts = ("1: 0 “", '1: 0 "', "1: 0 <text>", "1: 0 -> ", "1. 0 2: 1 ", '{"final": {"1": 0}, ')
    for part in ("[", '{"1":', "1: 0 ", "Window 1\n", "|1", "yes ", '"', *parts):
        found(part * (10_000 // len(part)), 5)
