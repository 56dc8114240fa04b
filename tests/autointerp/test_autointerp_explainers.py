from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from autointerp_cells import (
    cell_parts,
    explain_params,
    explained,
    explanation,
    planted_cell,
    window,
    windows_table,
    write_windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.explainers.lexical import lexical_explanations, quote_token
from nullsae.autointerp.explainers.swapped import derangement, swap_explanations
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator
from nullsae.tables import cell_schema, read_table, write_table


def explanations(path: Path) -> list[dict]:
    return read_table(path, cell_schema("explanations")).to_pylist()


def test_token_probability_is_smoothed_towards_the_base_rate(tokenizer: Tokenizer) -> None:
    table = windows_table(
        [
            window(7, 0, [10, 11, 10, 12], [2.0, 0.0, 1.0, 0.0], pool="explain"),
            window(7, 1, [10, 11, 11, 12], [0.0, 0.0, 0.0, 0.0], pool="explain"),
        ]
    )
    (row,) = lexical_explanations(table, tokenizer, 10).to_pylist()
    rate = 2 / 8
    assert row["latent"] == row["source_latent"] == 7
    assert row["base_probability"] == rate
    assert row["token_ids"] == [10, 11, 12]
    expected = [(2 + rate) / (3 + 1), (0 + rate) / (3 + 1), (0 + rate) / (2 + 1)]
    assert row["token_probabilities"] == pytest.approx(expected, rel=1e-6)


def test_scoring_windows_never_reach_the_explainer(tokenizer: Tokenizer) -> None:
    shown = [
        window(3, 0, [1, 2], [1.0, 0.0], pool="explain"),
        window(3, 1, [2, 2], [0.0, 0.0], pool="explain"),
    ]
    held_back = [window(3, 2, [9, 9], [5.0, 5.0]), window(4, 3, [9, 9], [5.0, 5.0])]
    alone = lexical_explanations(windows_table(shown), tokenizer, 10)
    both = lexical_explanations(windows_table(shown + held_back), tokenizer, 10)
    assert both.equals(alone)
    assert alone["token_ids"].to_pylist() == [[1, 2]]


def test_statistics_of_many_latents_equal_a_plain_count(tokenizer: Tokenizer) -> None:
    generator = np.random.default_rng(5)
    rows = []
    for index in range(60):
        activations = np.maximum(generator.normal(-0.7, 1, 8), 0)
        ids = generator.integers(0, 12, 8).tolist()
        rows.append(window(index % 5 * 100, index, ids, activations.tolist(), pool="explain"))
    for row in lexical_explanations(windows_table(rows), tokenizer, 3).to_pylist():
        counts: dict[int, list[int]] = {}
        for shown in (r for r in rows if r["latent"] == row["latent"]):
            for token, activation in zip(shown["token_ids"], shown["activations"], strict=True):
                seen = counts.setdefault(token, [0, 0])
                seen[0] += activation > 0
                seen[1] += 1
        rate = sum(a for a, _ in counts.values()) / sum(n for _, n in counts.values())
        assert row["base_probability"] == pytest.approx(rate, rel=1e-12)
        assert row["token_ids"] == sorted(counts)
        expected = [(counts[t][0] + rate) / (counts[t][1] + 1) for t in sorted(counts)]
        assert row["token_probabilities"] == pytest.approx(expected, rel=1e-6)


def test_text_ranks_tokens_by_activation_mass_and_pools_the_others(tokenizer: Tokenizer) -> None:
    the, of, cat = (tokenizer.encode(word).ids[0] for word in (" the", " of", "c"))
    assert tokenizer.decode([the]) == " the"
    table = windows_table(
        [
            # `cat` fires at every occurrence, but has the smallest mass.
            window(0, 0, [the, of, cat, of], [6.0, 3.0, 1.0, 0.0], pool="explain"),
            window(0, 1, [the, of, 5, 6], [0.0, 0.0, 0.0, 0.0], pool="explain"),
        ]
    )
    (row,) = lexical_explanations(table, tokenizer, 2).to_pylist()
    rate = 3 / 8
    p_the, p_of = (1 + rate) / (2 + 1), (1 + rate) / (3 + 1)
    others = (1 + rate) / (3 + 1)
    assert row["explanation"] == (
        f'fires on " the" (P {p_the:.2f}, 60% of its activation), " of" (P {p_of:.2f}, 30%); '
        f"other tokens P {others:.2f}"
    )


def test_the_text_about_a_latent_that_never_fires_makes_no_claim(tokenizer: Tokenizer) -> None:
    table = windows_table([window(0, 0, [1, 2], [0.0, 0.0], pool="explain")])
    (row,) = lexical_explanations(table, tokenizer, 2).to_pylist()
    assert row["explanation"] == "did not fire in its explaining windows"
    assert row["base_probability"] == 0
    assert row["token_probabilities"] == [0, 0]


def test_quoted_tokens_lose_no_space_newline_byte_or_special_token(tokenizer: Tokenizer) -> None:
    newline, quote = (tokenizer.encode(text).ids for text in ("\n", '"'))
    assert quote_token(tokenizer, newline[0]) == r'"\n"'
    assert quote_token(tokenizer, quote[0]) == r'"\""'
    assert quote_token(tokenizer, 0) == '"<|endoftext|>"'
    assert quote_token(tokenizer, 10_000) == "token 10000"
    first_byte, second_byte = tokenizer.encode("é").ids  # neither is a character by itself
    assert quote_token(tokenizer, first_byte) != quote_token(tokenizer, second_byte)
    assert "�" not in quote_token(tokenizer, first_byte)


def test_a_sentencepiece_token_keeps_its_leading_space() -> None:
    tokenizer = Tokenizer(models.BPE({"▁the": 0, "the": 1}, []))
    tokenizer.decoder = decoders.Metaspace()
    assert [quote_token(tokenizer, i) for i in (0, 1)] == ['" the"', '"the"']


def test_lexical_explanations_do_not_depend_on_row_order(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    rows = planted_cell(n_latents=4, n_windows=10, window_tokens=8, vocab_size=40)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    outputs = []
    for name, order in (("a", rows), ("b", shuffled)):
        source = write_windows(tmp_path / f"{name}_windows.parquet", order)
        output = tmp_path / f"{name}.parquet"
        explain_latents(explain_params(kind="lexical"), source, tokenizer_file, output, None)
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]


def test_rounding_of_activation_sums_cannot_reorder_the_text(tokenizer: Tokenizer) -> None:
    # In float64, 1e16 + 1 + 1 is 1e16 but 1 + 1 + 1e16 is not: token 5 would tie with 6 or lose.
    rows = [
        window(0, 0, [5, 6], [1.0, 2.0], pool="explain"),
        window(0, 1, [5, 6], [1.0, 1e16], pool="explain"),
        window(0, 2, [5, 7], [1e16, 0.0], pool="explain"),
    ]
    forwards = lexical_explanations(windows_table(rows), tokenizer, 2)
    assert lexical_explanations(windows_table(rows[::-1]), tokenizer, 2).equals(forwards)


@given(n=st.integers(2, 50), seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_swap_is_a_permutation_without_fixed_points(n: int, seed: int) -> None:
    image = derangement(n, np.random.default_rng(seed))
    assert sorted(image) == list(range(n))
    assert (image != np.arange(n)).all()


def test_every_partner_in_a_swap_is_equally_likely() -> None:
    n, draws = 5, 4000
    generator = np.random.default_rng(1)
    counts = np.zeros((n, n))
    for _ in range(draws):
        counts[np.arange(n), derangement(n, generator)] += 1
    off_diagonal = counts[~np.eye(n, dtype=bool)]
    # Each is binomial(4000, 1/4), with standard deviation 27.4; the bound is 5 of them.
    assert np.abs(off_diagonal - draws / (n - 1)).max() < 137


def base_table(latents: list[int]) -> pa.Table:
    return explained(
        *(
            explanation(latent, {latent: 0.5}, latent / 100, {(1, latent): 0.75}, f"about {latent}")
            for latent in latents
        )
    )


def test_swapped_rows_contain_the_whole_explanation_of_the_named_latent() -> None:
    latents = [31, 4, 15, 92, 65]
    rows = swap_explanations(base_table(latents), np.random.default_rng(0)).to_pylist()
    assert [row["latent"] for row in rows] == sorted(latents)
    assert sorted(row["source_latent"] for row in rows) == sorted(latents)
    for row in rows:
        source = row["source_latent"]
        assert source != row["latent"]
        assert row["explanation"] == f"about {source}"
        assert (row["base_probability"], row["token_ids"]) == (source / 100, [source])
        assert (row["pair_previous_ids"], row["pair_token_ids"]) == ([1], [source])


def swap_file(folder: Path, latents: list[int], name: str, seed: int = 0) -> Path:
    base, output = folder / "base.parquet", folder / f"{name}.parquet"
    write_table(base, base_table(latents), cell_schema("explanations"))
    params = explain_params(seed, kind="swapped", of="lexical")
    explain_latents(params, folder / "unread.parquet", folder / "unread.json", output, base)
    return output


def test_a_swap_depends_on_seed_and_cell_but_not_on_row_order(tmp_path: Path) -> None:
    latents = list(range(40))
    first = swap_file(tmp_path, latents, "first")
    assert first.read_bytes() == swap_file(tmp_path, latents[::-1], "again").read_bytes()
    assert first.read_bytes() != swap_file(tmp_path, latents, "other", seed=1).read_bytes()
    image = derangement(40, numpy_generator(0, "swap_explanations", *cell_parts()))
    assert [row["source_latent"] for row in explanations(first)] == image.tolist()


@pytest.mark.parametrize("latents", [[], [5]])
def test_a_swap_of_fewer_than_two_latents_writes_no_rows_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, latents: list[int]
) -> None:
    with caplog.at_level(logging.WARNING):
        output = swap_file(tmp_path, latents, "swapped")
    assert explanations(output) == []
    assert f"{len(latents)} latent(s)" in caplog.text


def test_lexical_without_latents_writes_no_rows(tmp_path: Path, tokenizer_file: Path) -> None:
    source = write_windows(tmp_path / "windows.parquet", [])
    output = tmp_path / "explanations.parquet"
    explain_latents(explain_params(kind="lexical"), source, tokenizer_file, output, None)
    assert explanations(output) == []


def test_users_mistakes_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    source = write_windows(tmp_path / "windows.parquet", [])
    output = tmp_path / "explanations.parquet"
    broken = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match=r"tokenizer\.json: the file is missing; rebuild"):
        explain_latents(explain_params(kind="lexical"), source, broken, output, None)
    broken.write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer \("):
        explain_latents(explain_params(kind="lexical"), source, broken, output, None)
    params = explain_params(kind="swapped", of="lexical")
    with pytest.raises(UserError, match="kind swapped needs the explanations of 'lexical'"):
        explain_latents(params, source, broken, output, None)
    assert not output.exists()
