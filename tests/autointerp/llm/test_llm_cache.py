from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from nullsae.autointerp.llm.cache import ReplyCache, reply_key
from nullsae.autointerp.llm.kept_replies import Kept
from nullsae.autointerp.llm.messages import AnswerToken, Reply
from nullsae.core.errors import UserError

LONG = Reply(
    "é\ufffd 1" * 200, (AnswerToken("1", (("1", -0.1), ("0", -1 / 3))), AnswerToken("", ())), "stop"
)


def kept(text: str = "yes", cost: float = 0.25) -> Kept:
    return Kept(Reply(text, (), "stop"), "m", 10, 2, cost)


@pytest.mark.parametrize("reply", [LONG, Reply("", (), "refusal")])
def test_a_reply_is_read_back_bit_for_bit(tmp_path: Path, reply: Reply) -> None:
    path = tmp_path / "new" / "replies.sqlite"
    whole = Kept(reply, "m", 10, 2, 0.125)
    cache = ReplyCache(path)
    cache.put(b"k", whole)
    assert cache.get(b"k") == whole
    cache.close()
    cache = ReplyCache(path)
    assert cache.get(b"k") == whole
    assert cache.get(b"other") is None
    assert (cache.count(), cache.total_cost_usd()) == (1, 0.125)
    cache.close()


def test_keys_depend_on_the_endpoint_and_on_every_byte_of_the_request() -> None:
    keys = {reply_key(*a) for a in (("a", b"bc"), ("ab", b"c"), ("a", b"bd"), ("a", b"bc"))}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {16}


def _write_many(path: Path, first: int, n: int) -> None:
    cache = ReplyCache(path)
    for i in range(first, first + n):
        cache.put(f"{i}".encode(), kept(f"{i}", 0.5))
    cache.close()


def test_many_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    context = multiprocessing.get_context("fork")
    # Halves overlap: every second reply is paid for by two processes.
    jobs = [context.Process(target=_write_many, args=(path, 50 * i, 100)) for i in range(6)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 6
    cache = ReplyCache(path)
    assert cache.count() == 350
    assert cache.total_cost_usd() == 6 * 100 * 0.5
    for i in range(350):
        found = cache.get(f"{i}".encode())
        assert found is not None
        assert found.reply.content == f"{i}"
    cache.close()


def test_spent_and_reserved_money_together_stay_within_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    one, other = ReplyCache(path), ReplyCache(path)
    assert one.reserve(0.5, 1.0) is None
    assert other.reserve(0.5, 1.0) is None
    assert one.reserve(0.1, 1.0) == 0.0
    one.put(b"k", kept(cost=0.2), reserved_usd=0.5)
    one.flush()
    assert other.reserve(0.3, 1.0) is None
    assert other.reserve(0.1, 1.0) == 0.2
    other.release(0.8)
    other.flush()
    assert one.reserve(0.8, 1.0) is None
    one.close()
    other.close()
    last = ReplyCache(path)
    assert last.reserve(0.8, 1.0) is None
    last.close()


def test_reservations_of_a_killed_process_count_as_spent_once(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    script = (
        "import os, sys; from pathlib import Path\n"
        "from nullsae.autointerp.llm.cache import ReplyCache\n"
        "print(ReplyCache(Path(sys.argv[1])).reserve(1.0, 1.0), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ).stdout
    assert out == "None\n"
    # Its request was in flight, and may be billed.
    one, other = ReplyCache(path), ReplyCache(path)
    assert [cache.total_cost_usd() for cache in (one, other)] == [1.0, 1.0]
    assert one.reserve(0.1, 1.0) == 1.0
    assert one.reserve(1.0, 2.0) is None
    one.close()
    other.close()


def test_money_of_a_batch_stays_reserved_until_it_is_settled(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    cache = ReplyCache(path)
    assert cache.reserve(0.9, 1.0, batch="b") is None
    cache.close()
    cache = ReplyCache(path)
    assert cache.reserve(0.2, 1.0) == 0.0
    cache.put(b"k", kept(cost=0.25))
    cache.settle("b")
    assert cache.reserve(0.7, 1.0) is None
    assert cache.reserve(0.1, 1.0) == 0.25
    cache.close()


def test_abilities_are_kept_by_endpoint(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.keep_abilities(b"k", {"top_logprobs": 5})
    assert cache.abilities(b"k") == {"top_logprobs": 5}
    assert cache.abilities(b"other") is None
    cache.close()


def filled(path: Path) -> None:
    cache = ReplyCache(path)
    for i in range(300):
        cache.put(f"{i}".encode(), Kept(LONG, "m", 1, 1, 0.0))
    cache.close()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"not a data base at all" * 100)
    with pytest.raises(UserError, match=r"replies\.sqlite: .* damaged"):
        ReplyCache(path)
    path.unlink()
    filled(path)
    whole = bytearray(path.read_bytes())
    whole[4096:] = b"\xff" * (len(whole) - 4096)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"replies\.sqlite: .* damaged"):
        ReplyCache(path).get(b"0")


def test_a_file_of_another_version_or_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match=r"replies\.sqlite: .* version 99"):
        ReplyCache(path)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE birds (name)")
    connection.close()
    with pytest.raises(UserError, match=r"other\.sqlite: not a cache of replies"):
        ReplyCache(other)
