from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.corpus.documents import SplitName, split_of_digest, text_digest
from nullsae.corpus.reading import Reader

texts = st.lists(st.text(), max_size=30)


def split_of(text: str, eval_share: float) -> SplitName:
    return split_of_digest(text_digest(text), eval_share)


@settings(max_examples=40, deadline=None)
@given(texts, texts, st.floats(0.01, 0.99), st.randoms(use_true_random=False))
def test_adding_or_reordering_documents_changes_no_split(
    before: list[str], added: list[str], share: float, shuffler: random.Random
) -> None:
    more = before + added
    shuffler.shuffle(more)
    first = {document.text: document.split for document in Reader(before, share)}
    second = {document.text: document.split for document in Reader(more, share)}
    assert first.keys() <= second.keys()
    assert all(second[text] == split for text, split in first.items())
    assert all(split == split_of(text, share) for text, split in second.items())


@settings(max_examples=40, deadline=None)
@given(texts, st.floats(0.01, 0.98), st.floats(0.001, 0.01))
def test_a_larger_eval_share_removes_no_document_from_eval(
    documents: list[str], share: float, more: float
) -> None:
    for text in documents:
        if split_of(text, share) == "eval":
            assert split_of(text, share + more) == "eval"


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_eval_gets_its_share_of_many_documents(share: float) -> None:
    n = 20_000
    n_eval = sum(split_of(f"document {i}", share) == "eval" for i in range(n))
    assert abs(n_eval - n * share) < 5 * (n * share * (1 - share)) ** 0.5


def test_the_hash_that_splits_documents_does_not_change() -> None:
    # BLAKE2b-128 of these texts, computed once with coreutils-compatible `b2sum -l 128`.
    assert text_digest("").hex() == "cae66941d9efbd404e4d88758ea67670"
    assert text_digest("abc").hex() == "cf4ab791c62b8d2b2109c90275287816"
    assert split_of("abc", 0xCF4AB791C62B8D2C / 2**64) == "eval"
    assert split_of("abc", 0xCF4AB791C62B0000 / 2**64) == "sae_train"


def test_empty_and_repeated_documents_are_left_out_and_counted() -> None:
    reader = Reader(["a", "", " \n\t", "b", "a"], 0.5)
    assert [document.text for document in reader] == ["a", "b"]
    counts = reader.counts
    assert (counts.n_read, counts.n_empty, counts.n_repeated) == (5, 2, 1)
    assert sum(counts.n_kept.values()) == 2


def test_the_digest_of_a_source_does_not_depend_on_order_but_on_content() -> None:
    def digest(documents: list[str]) -> str:
        reader = Reader(documents, 0.5)
        list(reader)
        return reader.digest()

    assert digest(["a", "b", "c"]) == digest(["c", "a", "b", "a"])
    assert digest(["a", "b"]) != digest(["a", "b", "c"])
