"""Targets of `fuzz.py`: replies of endpoints, and what is kept of them.

    python benchmarks/fuzz_replies.py --n 10000 --seed 0

Runs only these, in one process. Prints how many inputs each target took, refused or failed on, the
slowest input, and how much memory grew. Exits with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import logging
import random
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

KEY = "sk-planted-5up3rs3cr3t"
STATUSES = (200, 400, 401, 404, 429, 500, 503)
MOST_TOKENS = 200


def token(text: str, *others: str) -> dict[str, Any]:
    """Return a token with its alternatives."""
    top = [{"token": t, "logprob": -0.1 - i, "bytes": [*t.encode()]} for i, t in enumerate(others)]
    return {"token": text, "logprob": -0.1, "bytes": [*text.encode()], "top_logprobs": top}


def chat(content: Any, *tokens: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a reply of a chat endpoint."""
    message = {"role": "assistant", "content": content, "reasoning_content": "Let me see."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    if tokens:
        choice["logprobs"] = {"content": [*tokens]}
    usage = {"prompt_tokens": 50, "completion_tokens": 9}
    return {"id": "chat", "choices": [{**choice, **more}], "usage": usage}


LABELS = '{"1": 0, "2": 1}'
PIECES = ['{"', "1", '": ', "0", ', "', "2", '": ', "1", "}"]
CHATS = (
    chat(LABELS, *(token(piece, piece, "1", "0", f"it is {KEY}") for piece in PIECES)),
    chat("é1", token("\ufffd"), token("\ufffd"), token("1", "0")),
    chat([{"type": "thinking", "text": "hm"}, {"type": "text", "text": "Explanation: cups"}]),
    chat(f"Explanation: your key is {KEY}."),
    chat(None, finish_reason="length", refusal="no"),
    {"error": {"message": f"Incorrect API key: {KEY}", "type": "x", "code": "invalid_api_key"}},
    {"error": {"message": "Provider returned error", "code": 502, "metadata": {"raw": "busy"}}},
)


def use(data: bytes, status: int, retry_after: str | None = None) -> None:
    """Read an answer as a job does, and use it in every way."""
    from nullsae.autointerp.llm.answers import Answer, AttemptError, read_answer
    from nullsae.autointerp.llm.counts import counts
    from nullsae.autointerp.llm.kept_replies import Kept, packed, unpacked
    from nullsae.autointerp.llm.refusals import Asked
    from nullsae.autointerp.llm.secrets import Secrets
    from nullsae.core.errors import UserError

    secrets = Secrets({"Authorization": f"Bearer {KEY}"})
    answer = Answer(status, retry_after, secrets.blank_bytes(data))
    try:
        valid = read_answer(answer, Asked("m", "http://there/v1", "A"), secrets, MOST_TOKENS)
    except AttemptError as error:
        if secrets.is_in(str(error)) or len(str(error)) > 1000:
            raise AssertionError(f"an error with a key, or without end: {error}") from None
        raise UserError(str(error)) from None
    found = counts(valid, 1000, MOST_TOKENS)
    assert 0 <= found.prompt_tokens < 10_000
    assert 0 <= found.completion_tokens < 100_000
    assert not secrets.is_in(repr(valid.reply))
    kept = Kept(valid.reply, "m", found.prompt_tokens, found.completion_tokens, 0.1)
    assert unpacked(packed(kept)) == kept
    understand(valid.reply)


def understand(reply: Any) -> None:
    """Read a reply as each kind of answer."""
    from nullsae.autointerp.explain import MOST_CHARACTERS, explained_in_words
    from nullsae.autointerp.explanation_text import explanation, repeats
    from nullsae.autointerp.llm.endpoint import _obeys
    from nullsae.autointerp.llm.kept_replies import Kept
    from nullsae.autointerp.replies import choice, judgements

    said = [*judgements(reply, 2).values(), *(choice(reply, 5) or {}).values()]
    assert all(0 <= one.probability <= 1 for one in said)
    text = explanation(reply)
    repeats(text or "", ["the comma after an opening phrase"])
    table = explained_in_words({0: text}, "none")
    assert len(table["explanation"][0].as_py() or "") <= MOST_CHARACTERS
    _obeys(Kept(reply, "m", 1, 1, 0.0))


class Chats:
    """Answers of a chat endpoint, of any status."""

    name: ClassVar[str] = "chat"
    examples: ClassVar[tuple[bytes, ...]] = tuple(json.dumps(one).encode() for one in CHATS)

    def read(self, data: bytes, folder: Path) -> None:
        """Read it as an answer whose status depends on the data."""
        status = STATUSES[sum(data) // 8 % len(STATUSES)] if sum(data) % 8 == 0 else 200
        use(data, status, data[:40].decode("latin-1"))


class Streams:
    """Server-sent events that nobody requested."""

    name: ClassVar[str] = "stream"
    examples: ClassVar[tuple[bytes, ...]] = (
        b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n',
        b"event: error\ndata: {}\n\n: ping\n\n",
    )

    def read(self, data: bytes, folder: Path) -> None:
        """Read it as an answer."""
        use(data, 200)


class Packed:
    """Compressed answers."""

    name: ClassVar[str] = "gzip"
    examples: ClassVar[tuple[bytes, ...]] = (
        *Chats.examples,
        gzip.compress(Chats.examples[0], mtime=0),
        gzip.compress(b" " * (64 << 20), mtime=0),
        gzip.compress(b"[" * (4 << 20), mtime=0),
        gzip.compress(b"[]," * (2 << 20), mtime=0),
    )

    def read(self, data: bytes, folder: Path) -> None:
        """Unpack it piece by piece, and read it; data that is not yet gzip is packed first."""
        from nullsae.autointerp.llm.pieces import PackingError, Pieces, TooLongError, most_bytes
        from nullsae.core.errors import UserError

        if data[:2] != b"\x1f\x8b":
            data = gzip.compress(data, mtime=0)
        try:
            pieces = Pieces(("gzip", "deflate")[sum(data) % 2], most_bytes(MOST_TOKENS))
            for i in range(0, len(data), 4096):
                pieces.add(data[i : i + 4096])
            whole = pieces.whole()
        except (PackingError, TooLongError) as error:
            raise UserError(str(error)) from None
        use(whole, 200)


class BatchLines:
    """Answer files of the batch interface."""

    name: ClassVar[str] = "batch"
    examples: ClassVar[tuple[bytes, ...]] = (
        *(
            json.dumps({"custom_id": "a1", "response": {"status_code": 200, "body": one}}).encode()
            for one in CHATS
        ),
        b'{"custom_id": "a1", "response": null, "error": {"code": "expired", "message": "late"}}\n'
        b'{"custom_id": "a2", "response": {"status_code": 500, "body": {}}}\n',
    )

    def read(self, data: bytes, folder: Path) -> None:
        """Read it line by line."""
        from nullsae.autointerp.llm.answers import Answer
        from nullsae.autointerp.llm.batch_api import read_line
        from nullsae.autointerp.llm.bounded import lines_of

        async def pieces() -> AsyncIterator[bytes]:
            for i in range(0, len(data), 1000):
                yield data[i : i + 1000]

        async def all_lines() -> list[bytes]:
            return [line async for line in lines_of(pieces(), 1 << 20, 100)]

        for line in asyncio.run(all_lines()):
            found = read_line(line)
            if found is not None and isinstance(found[1], Answer):
                use(found[1].content, found[1].status)


class Words:
    """A model's words, in any form."""

    name: ClassVar[str] = "words"
    examples: ClassVar[tuple[bytes, ...]] = (
        b"<think>Window 1: 0?</think>\nWindow 1: 1\nWindow 2: 0",
        b"| Window | Active |\n|---|---|\n| 1 | yes |\n| 2 | no |",
        b'```json\n[{"window": 1, "active": 0}, [2, 1]]\n```',
        b"<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>1|0, 2|1",
        b'{"explanation": "cups \\ud83d\\ude00 and \\"mugs\\""}',
        b"Thoughts: many.\n\n**Explanation:** *cups and mugs*",
        b"The intruder is window 3, not 2. \\boxed{3}",
    )

    def read(self, data: bytes, folder: Path) -> None:
        """Read it as the content of a reply."""
        use(json.dumps(chat(data.decode("utf-8", "replace"))).encode(), 200)


class Rows:
    """Cache rows from an older version, or damaged ones."""

    name: ClassVar[str] = "cache"
    examples: ClassVar[tuple[bytes, ...]] = (
        b'["yes", "stop", []]',
        b'["10", "stop", [["1", [["1", -0.1], ["0", -2.5]]], ["0", [["0", -0.2]]]]]',
    )

    def read(self, data: bytes, folder: Path) -> None:
        """Put it into a cache and read it back; a bad row counts as missing."""
        from nullsae.autointerp.llm.cache import ReplyCache

        path = folder / "replies.sqlite"
        ReplyCache(path).close()
        connection = sqlite3.connect(path)
        text = data.decode("utf-8", "replace")
        own: Any = (data, text, zlib.compress(data))[len(data) % 3]
        row = (b"k", own, "m", sum(data) % 7, 2, 0.5)
        connection.execute("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO abilities VALUES (?, ?)", (b"k", text))
        connection.commit()
        connection.close()
        cache = ReplyCache(path)
        kept = cache.get(b"k")
        cache.abilities(b"k")
        assert cache.count() == (kept is not None)
        if kept is not None:
            understand(kept.reply)
        cache.close()


class Abilities:
    """What was found out about an endpoint, as the cache stores it."""

    name: ClassVar[str] = "abilities"
    examples: ClassVar[tuple[bytes, ...]] = (
        b'{"json_schema": true, "top_logprobs": 20, "schema_with_logprobs": true, "temperature": '
        b'true, "token_limit": "max_tokens", "system_role": false}',
    )

    def read(self, data: bytes, folder: Path) -> None:
        """Read it, and write a request that it allows."""
        from nullsae.autointerp.llm.endpoint import abilities_of, request_body
        from nullsae.autointerp.llm.messages import Request, parse_json
        from nullsae.config.endpoints import Endpoint

        try:
            found = parse_json(data)
        except ValueError:
            return
        abilities = abilities_of(found if isinstance(found, dict) else None)
        if abilities is not None:
            request = Request(({"role": "system", "content": "x"},), 5, {}, logprobs=True)
            request_body(request, Endpoint(model="m"), abilities)


def targets() -> list[Any]:
    """Return the targets of this module."""
    return [Chats(), Streams(), Packed(), BatchLines(), Words(), Rows(), Abilities()]


def main() -> int:
    """Run all inputs and print findings; return whether there were none."""
    from fuzz import GROWTH_BYTES, SECONDS, Watch, mutated

    from nullsae.core.errors import UserError

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable()
    home = Path(tempfile.mkdtemp(prefix="fuzz."))
    (home / "cwd/results").mkdir(parents=True)
    counts: Counter[str] = Counter()
    found: dict[str, str] = {}
    every, slowest = targets(), (0.0, "")
    for target in every:  # memory that libraries take to load does not count as growth
        for example in target.examples:
            folder = home / "cwd/results/input"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                target.read(example, folder)
            except UserError:
                counts[f"{target.name} refuses an example"] += 1
    watch = Watch(home)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(given.n):
        target = every[number % len(every)]
        draw = random.Random(f"{given.seed}:{target.name}:{number}")
        data = mutated(draw.choice(target.examples), draw)
        folder = watch.results / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        started, how, said = time.monotonic(), "taken", ""
        try:
            with watch:
                target.read(data, folder)
        except UserError:
            how = "refused"
        except Exception as error:  # findings are what we look for
            at = traceback.extract_tb(error.__traceback__)[-1]
            how, said = "failed", f"{type(error).__name__} {at.filename}:{at.lineno}"
            found.setdefault(said, f"{target.name} {number}: {traceback.format_exc()[-2500:]}")
        for said in watch.seen:
            found.setdefault(said, f"{target.name} {number}")
        seconds = time.monotonic() - started
        slowest = max(slowest, (seconds, f"{target.name} {number}"))
        if seconds > SECONDS:
            found.setdefault(f"slow {target.name}", f"{number}: {seconds:.0f} s")
        counts[f"{target.name} {how}"] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - began
    shutil.rmtree(home)
    for name, count in sorted(counts.items()):
        print(f"{name:30} {count}")
    print(f"slowest: {slowest[0]:.2f} s ({slowest[1]}); memory grew by {grown / 1e6:.0f} MB")
    for kind, text in found.items():
        print(f"FOUND {kind}\n{text}")
    return int(bool(found) or grown > GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
