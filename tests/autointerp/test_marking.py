from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nullsae.autointerp.examples import Examples, fuzz_marks, misplaced_marks
from nullsae.autointerp.marking import (
    BYTE_LETTERS,
    Shown,
    activation_scale,
    mark,
    window_texts,
)
from nullsae.autointerp.prompting import Notation
from nullsae.corpus.token_text import token_text
from nullsae.report.text import TokenText

SPECIAL = "<|endoftext|>"
METASPACE_WORDS = ("▁the", "▁caf", "s", "▁", "▁▁", "\ufffd", "é")


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """Trained on words, an accent and an emoji; other characters are split into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the café of the house 🙂 là-bas 🙂"] * 4, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def metaspace() -> Tokenizer:
    """Like Llama's: spaces are letters, unknown text is bytes, and decoding takes several steps."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *METASPACE_WORDS]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def ids_of(tokenizer: Tokenizer, *names: str) -> np.ndarray:
    found = [tokenizer.token_to_id(name) for name in names]
    assert None not in found
    return np.array(found)


def texts_of(shown: Shown) -> list[str]:
    return [shown.text[a:b] for a, b in shown.spans]


# --- the text of a window ---------------------------------------------------------------------


@given(text=st.text() | st.text("the café🙂là👩‍🔬 한"))
@settings(deadline=None)
def test_spans_equal_the_offsets_of_the_tokenizer(byte_level: Tokenizer, text: str) -> None:
    encoding = byte_level.encode(text)
    (shown,) = window_texts(byte_level, [np.array(encoding.ids, dtype=np.int64)])
    assert shown.text == text
    assert list(shown.spans) == encoding.offsets


@given(st.lists(st.integers(0, 280), max_size=24))
@settings(deadline=None)
def test_tokens_in_any_order_read_as_the_tokenizer_decodes_them(
    byte_level: Tokenizer, ids: list[int]
) -> None:
    (shown,) = window_texts(byte_level, [np.array(ids, dtype=np.int64)])
    assert shown.text == byte_level.decode(ids, skip_special_tokens=False)
    reached = 0
    for start, stop in shown.spans:
        # Right after the previous one, or on its last character; empty without a character.
        assert reached - 1 <= start <= reached
        assert start < stop
        assert stop >= reached
        reached = stop
    assert reached == len(shown.text)


@given(st.lists(st.integers(1, 263), max_size=24))
@settings(deadline=None)
def test_bytes_among_words_read_as_the_tokenizer_decodes_them(
    metaspace: Tokenizer, ids: list[int]
) -> None:
    """Such a decoder replaces a whole run of bytes if one of them is wrong."""
    (shown,) = window_texts(metaspace, [np.array(ids, dtype=np.int64)])
    decoded = metaspace.decode(ids, skip_special_tokens=False)
    names = [metaspace.id_to_token(i) or "" for i in ids]
    # The decoder strips one leading space.
    assert shown.text in (decoded, " " + decoded)
    if names and names[0].startswith("▁"):
        assert shown.text == " " + decoded
    reached = 0
    for (start, stop), name in zip(shown.spans, names, strict=True):
        assert reached - 1 <= start <= reached
        assert start < stop
        reached = stop
        if name in METASPACE_WORDS:
            assert shown.text[start:stop] == name.replace("▁", " ")
    assert reached == len(shown.text)


def test_a_split_character_is_shared_by_its_tokens(byte_level: Tokenizer) -> None:
    letter = {byte: letter for letter, byte in BYTE_LETTERS.items()}
    euro = [letter[byte] for byte in "€".encode()]
    ids = ids_of(byte_level, "the", *euro, SPECIAL, "Ġthe", *euro[:2])
    (whole, second) = window_texts(byte_level, [ids, ids[2:]])
    assert whole.text == f"the€{SPECIAL} the\ufffd"
    assert texts_of(whole) == ["the", "€", "€", "€", SPECIAL, " the", "\ufffd", "\ufffd"]
    # A window may start in the middle of a character.
    assert second.text == f"\ufffd\ufffd{SPECIAL} the\ufffd"
    assert texts_of(second) == ["\ufffd", "\ufffd", SPECIAL, " the", "\ufffd", "\ufffd"]


def test_the_leading_space_of_a_window_is_kept(metaspace: Tokenizer) -> None:
    accent = ("<0xC3>", "<0xA9>")
    (good, bad, bare) = window_texts(
        metaspace,
        [
            ids_of(metaspace, "▁the", "▁caf", *accent, "s", "▁▁", "é"),
            ids_of(metaspace, "▁the", *accent[:1], "▁caf", *accent, "s"),
            ids_of(metaspace, "s", "▁the"),
        ],
    )
    assert good.text == " the cafés  é"
    assert texts_of(good) == [" the", " caf", "é", "é", "s", "  ", "é"]
    assert bad.text == " the\ufffd cafés"
    assert texts_of(bad) == [" the", "\ufffd", " caf", "é", "é", "s"]
    assert bare.text == "s the"


def test_words_joined_by_a_decoder_are_shown_joined() -> None:
    vocab = {"[UNK]": 0, "un": 1, "##ing": 2, "do": 3, ".": 4}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    (shown,) = window_texts(tokenizer, np.array([[1, 2, 3, 4]]))
    assert shown.text == " uning do."
    assert texts_of(shown) == [" un", "ing", " do", "."]


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_words_have_their_space_one_by_one_as_in_a_window(kind: str) -> None:
    """So that the page does not join the words of a window."""
    vocab = {"[UNK]": 0, "un": 1, "##ing": 2, "do": 3, ".": 4}
    tokenizer = Tokenizer(getattr(models, kind)(vocab, unk_token="[UNK]"))
    if kind == "WordPiece":
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    ids = [1, 2, 3, 4, 1, 0, 3]
    (shown,) = window_texts(tokenizer, np.array([ids]))
    assert [token_text(tokenizer, token) for token in ids] == texts_of(shown)
    assert TokenText(tokenizer).run(ids) == shown.text


def test_an_id_without_a_token_has_an_empty_span(byte_level: Tokenizer) -> None:
    ids = np.array([9999, *ids_of(byte_level, "the"), 9999, *ids_of(byte_level, "Ã", "©"), 9999])
    (shown,) = window_texts(byte_level, ids[None])
    assert shown.text == "theé"
    assert shown.spans == ((0, 0), (0, 3), (3, 3), (3, 4), (3, 4), (4, 4))
    assert mark(shown, np.ones(6, dtype=bool)) == "<<theé>>"
    assert mark(shown, np.array([True, False, True, False, False, True])) == "theé"
    assert window_texts(byte_level, []) == []


# --- marks ------------------------------------------------------------------------------------

WORDS = Shown("a <b c>", ((0, 1), (1, 4), (4, 6), (6, 7)))


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ([0, 0, 0, 0], "a <b c>"),
        ([1, 0, 0, 0], "<<a>> <b c>"),
        ([0, 1, 1, 0], "a<< <b c>>>"),
        ([1, 0, 1, 1], "<<a>> <b<< c>>>"),
        ([1, 1, 1, 1], "<<a <b c>>>"),
    ],
)
def test_marks_equal_those_set_by_hand_and_code_is_unchanged(
    marked: list[int], expected: str
) -> None:
    assert mark(WORDS, np.array(marked, dtype=bool)) == expected


def test_a_shared_character_is_marked_entirely_and_once() -> None:
    shown = Shown("a€b", ((0, 1), (1, 2), (1, 2), (2, 3)))
    assert mark(shown, np.array([0, 1, 0, 0], dtype=bool)) == "a<<€>>b"
    assert mark(shown, np.array([0, 0, 1, 0], dtype=bool)) == "a<<€>>b"
    assert mark(shown, np.array([0, 1, 1, 0], dtype=bool)) == "a<<€>>b"
    assert mark(shown, np.array([1, 0, 1, 1], dtype=bool)) == "<<a€b>>"


PIECES = ["a", " ", "<", ">", "[", "]", "{", "}", "<<", "]]", "<mark1>", "</text>", "< /TEXT >"]


@given(words=st.lists(st.sampled_from(PIECES), max_size=10), data=st.data())
@settings(deadline=None)
def test_marks_and_delimiters_are_never_confused_with_the_text(
    words: list[str], data: st.DataObject
) -> None:
    bounds = np.concatenate([[0], np.cumsum([len(word) for word in words], dtype=np.int64)])
    spans = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    shown = Shown("".join(words), tuple(spans))
    flags = [data.draw(st.booleans()) for _ in words]
    marked = np.array(flags, dtype=bool)
    notation = Notation.of([(shown, marked)])
    left, right = notation.left, notation.right
    whole = notation.window(shown, marked)
    found = whole.removeprefix(notation.opening).removesuffix(notation.closing)
    assert len(found) == len(whole) - len(notation.opening) - len(notation.closing)
    tag = notation.opening.strip("<>")
    assert not re.search(rf"<\s*/?\s*{tag}\s*>", found, re.IGNORECASE)
    if not any(flags):
        assert found == shown.text
        return
    # A reader who knows only the two marks finds the marks of every character again.
    within, seen, letters = False, [], []
    for part in re.split(f"({re.escape(left)}|{re.escape(right)})", found):
        if part in (left, right):
            assert within == (part == right)
            within = not within
        else:
            letters += list(part)
            seen += [within] * len(part)
    assert not within
    assert "".join(letters) == shown.text
    assert seen == [flag for flag, word in zip(flags, words, strict=True) for _ in word]


@pytest.mark.parametrize(
    ("words", "marked", "expected"),
    [
        (["the ", "cat"], [0, 1], "<text>the <<cat>></text>"),
        (["if a ", "<", " b"], [1, 0, 0], "<text><<if a >>< b</text>"),
        (["std::cout << ", "x"], [0, 1], "<text>std::cout << [[x]]</text>"),
        (["a<", "b", ">c"], [0, 1, 0], "<text>a<[[b]]>c</text>"),
        (["m[[0]] << ", "x"], [0, 1], "<text>m[[0]] << {{x}}</text>"),
        (["{{a}} [[b]] << ", "x"], [0, 1], "<text>{{a}} [[b]] << <mark1>x</mark1></text>"),
        (["end</text>", " 1"], [0, 1], "<text2>end</text><< 1>></text2>"),
        (["<TEXT2>", "</ text"], [0, 1], "<text3><TEXT2>[[</ text]]</text3>"),
    ],
)
def test_signs_give_way_to_the_text(words: list[str], marked: list[int], expected: str) -> None:
    ends = np.cumsum([len(word) for word in words]).tolist()
    shown = Shown("".join(words), tuple(zip([0, *ends[:-1]], ends, strict=True)))
    flags = np.array(marked, dtype=bool)
    assert Notation.of([(shown, flags)]).window(shown, flags) == expected


# --- strengths --------------------------------------------------------------------------------


def test_the_scale_from_0_to_10_equals_one_by_hand() -> None:
    values = np.array([0, 1e-30, 0.5, 0.75, 1, 2.5, 2.625, 4.75, 5, 6], dtype=np.float32)
    assert activation_scale(values, 5.0).tolist() == [0, 1, 1, 2, 2, 5, 6, 10, 10, 10]
    assert activation_scale(np.zeros(3), 0.0).tolist() == [0, 0, 0]


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20))
def test_strengths_from_0_to_10_keep_the_order_of_activations(values: list[float]) -> None:
    activations = np.array(values, dtype=np.float32)
    scaled = activation_scale(activations, float(activations.max()))
    assert ((scaled > 0) == (activations > 0)).all()
    assert scaled.max() == (10 if activations.max() > 0 else 0)
    assert (np.diff(scaled[np.argsort(activations)]) >= 0).all()


# --- misplaced marks --------------------------------------------------------------------------


def examples(
    activations: list[list[float]], n_marked: list[int], latents: list[int] | None = None
) -> Examples:
    """Return windows whose strongest `n_marked` tokens are marked."""
    n = len(activations)
    marked = [
        np.isin(np.arange(len(row)), np.argsort(row)[::-1][:size])
        for row, size in zip(activations, n_marked, strict=True)
    ]
    active = np.array([max(row) > 0 for row in activations])
    flat = np.concatenate([np.array(row, dtype=np.float32) for row in activations])
    return Examples(
        latent=np.array(latents or [0] * n),
        window=np.arange(n),
        document=np.zeros(n, dtype=np.int64),
        active=active,
        silent_kind=pa.nulls(n, pa.string()),
        quantile=pa.nulls(n, pa.int64()),
        starts=np.cumsum([0, *(len(row) for row in activations)]),
        tokens=np.zeros(len(flat), dtype=np.int64),
        activations=flat,
        frequencies=np.full(len(flat), 1 / 64, dtype=np.float32),
        skipped=np.zeros(len(flat), dtype=bool),
        marked=np.concatenate(marked),
    )


@given(st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_marks_are_only_on_tokens_that_may_fire(seed: int) -> None:
    """Such as BOS at the start of a window: a mark there would reveal that it is silent."""
    rng = np.random.default_rng(seed)
    rows = [[0.0, 0.9, 0.0, 0.7, 0.0]] + [[0.0] * 5] * 4 + [[0.0, 0.3, 0.0, 0.0, 0.0]]
    skipped = rng.random(5 * len(rows)) < 0.4
    case = replace(examples(rows, [0] * len(rows)), skipped=skipped)
    active = np.repeat(case.active, 5)
    for marked in (fuzz_marks(case, 0.3, seed, "fuzz_marks"), misplaced_marks(case, seed)):
        silent = case.activations <= 0
        assert not (marked & silent & skipped).any()
    marked = fuzz_marks(case, 0.3, seed, "fuzz_marks")
    able = np.add.reduceat(~skipped, case.starts[:-1])
    n_marked = np.add.reduceat(marked, case.starts[:-1])
    for i in np.flatnonzero(~case.active):
        assert n_marked[i] in {min(1, able[i]), min(2, able[i])}
    assert (marked & active).sum() == 3


@given(st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_misplaced_marks_are_on_silent_tokens_as_many_as_true_marks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(rng.random(int(n)) * (rng.random(int(n)) < 0.6)).tolist() for n in [5, 9, 1, 7, 8]]
    sizes = [min(len(row), int(rng.integers(1, 6))) for row in rows]
    case = examples(rows, sizes)
    wrong = misplaced_marks(case, seed, "trained", 0)
    assert wrong.shape == case.activations.shape
    assert not (wrong & (case.activations > 0)).any()
    for i, row in enumerate(rows):
        n_silent = sum(value == 0 for value in row)
        drawn = int(wrong[case.starts[i] : case.starts[i + 1]].sum())
        expected = min(sizes[i], n_silent) if max(row) > 0 else 0
        assert drawn == expected
    np.testing.assert_array_equal(wrong, misplaced_marks(case, seed, "trained", 0))


def test_misplaced_marks_are_at_other_positions_in_other_windows() -> None:
    """In delphi, the generator restarts for each window."""
    row = [0.0] * 15 + [1.0]
    case = examples([row] * 300, [3] * 300, latents=[0] * 150 + [1] * 150)
    wrong = misplaced_marks(case, 0, "trained").reshape(300, 16)
    assert len({tuple(flags) for flags in wrong.tolist()}) > 150
    # Uniform over the 15 silent positions: 300 x 3 / 15 = 60 each, with standard deviation 6.9.
    assert np.abs(wrong[:, :15].sum(axis=0) - 60).max() < 35
    other = misplaced_marks(case, 1, "trained").reshape(300, 16)
    assert (wrong != other).any()
    # A window's marks do not depend on other windows.
    alone = misplaced_marks(case.take(np.array([7])), 0, "trained")
    np.testing.assert_array_equal(alone, wrong[7])
