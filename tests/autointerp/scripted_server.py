"""An OpenAI-compatible chat server that answers, fails and counts as scripted.

    python scripted_server.py --port 0 '{"latency_seconds": 0.05, "faults": [{"kind": "drop"}]}'

Prints `ready <port>`. Besides /v1/chat/completions: GET /health, GET /stats, POST /options (JSON,
changes some of the options), POST /reset (zeroes the counts).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import hashlib
import importlib
import json
import math
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from scripted_batches import Batches

WINDOW = re.compile(r"^Window (\d+):(.*)$", re.MULTILINE)
TOLD = re.compile(r"answer with the word (\w+) and nothing else")


@dataclass
class Options:
    latency_seconds: float = 0.0
    answers: str = "detection"
    """A function of `ANSWERS`, or `module:function`; gets the last message and the whole body."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """Each with `kind` (status, hang, drop, cut, no_choices, html, empty, refusal, filtered,
    no_logprobs, body: `text` as given, bomb: `megabytes` of spaces, packed, drip: a byte now and
    then), `every` (the last of every n requests; default 1: all), `after` (spare this many
    requests), `until` (stop at this one); `status`, `retry_after` and `message` for the kind
    status. The first match applies."""
    hang_seconds: float = 30.0
    json_schema: str = "supported"
    """Or refused, ignored."""
    logprobs: str = "supported"
    """Or refused, ignored."""
    logprobs_with_schema: bool = True
    max_top_logprobs: int = 20
    refused_fields: list[str] = field(default_factory=list)
    ignored_fields: list[str] = field(default_factory=list)
    no_system_role: dict[str, Any] | None = None
    """`status` and `message` of the response to a request with a system message."""
    drops_system: bool = False
    """System messages never reach the answering function."""
    obeys: bool = True
    """An instruction to answer with a given word is obeyed."""
    max_in_flight: int = 0
    """Further requests get a 429."""
    retry_after: str | None = None
    """Of those 429s."""
    key: str | None = None
    """Any other key gets a 401 that repeats it."""
    key_variable: str | None = None
    """The environment variable that holds `key`."""
    models: list[str] = field(default_factory=list)
    """Any other model gets a 404."""
    max_characters: int = 0
    """Longer messages get a 400 about the context."""
    ready_after_seconds: float = 0.0
    """Before that, /health returns 503."""
    exit_status: int | None = None
    """End at once with this status, printing why."""
    child: bool = False
    """Start a sleeping process."""
    pids: str | None = None
    """File for the process ids of the server and its child."""
    certificate: str | None = None
    """PEM file with key and certificate; if given, the server speaks TLS."""
    reasoning_tokens: int = 0
    """Spent before the first word of an answer."""
    cut_as: str = "length"
    """The finish reason of a truncated answer; "400" refuses one that would be empty."""
    most_tokens: int = 0
    """A larger token limit gets a 400."""
    forbidden: dict[str, list[Any]] = field(default_factory=dict)
    """Status and message for requests with a field."""
    usage: Any = None
    """Replaces the honest token counts, if not None; `none` leaves them out."""
    echo: str | None = None
    """Repeat the key that was sent, in each answer and error, by a function of `ECHOES`."""
    header: dict[str, str] = field(default_factory=dict)
    """Requests without this header get a 401."""
    batch_seconds: float = 0.0
    """Duration of a batch."""
    batch_outcome: str = "completed"
    """Or failed, expired, cancelled."""
    batch_spared: int = 0
    """How many lines are answered even if the outcome is not completed."""
    batch_drops: int = 0
    """This many batches are created without a response."""
    batch_busy: int = 0
    """This many batches are rejected with a 503."""
    batch_lines: dict[str, list[Any]] = field(default_factory=dict)
    """Status and message for lines by the end of their last message, only the first time."""


def detection(text: str, body: dict[str, Any]) -> str:
    """Return 0 or 1 for each window, by a hash of its text."""
    found = WINDOW.findall(text)
    if not found:
        return _by_schema(body) or f"words of kind {_hash(text)[:6]}"
    return json.dumps({number: int(_hash(line.strip())[0], 16) % 2 for number, line in found})


def explanation(text: str, body: dict[str, Any]) -> str:
    return f"words of kind {_hash(text)[:6]}"


def echo(text: str, body: dict[str, Any]) -> str:
    return text


def numbers(text: str, body: dict[str, Any]) -> str:
    """Return a long answer to any question, unless there is a schema."""
    return _by_schema(body) or " ".join(str(n) for n in range(1, 201))


ANSWERS = {f.__name__: f for f in (detection, explanation, echo, numbers)}


ECHOES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "escapes": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "percent": lambda key: "".join(f"%{ord(c):02X}" for c in key),
    "entities": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "case": str.swapcase,
    "base64": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(),
    "unseen": "\u200b".join,
    "twice": lambda key: "".join(f"%25{ord(c):02X}" for c in key),
}


async def drip(request: web.Request) -> web.StreamResponse:
    """Yield a byte of white space every tenth of a second, forever."""
    response = web.StreamResponse()
    await response.prepare(request)
    while not _has_left(request):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _by_schema(body: dict[str, Any]) -> str:
    """Return the first value that the schema of a request allows."""
    if "response_format" not in body:
        return ""
    return json.dumps(_first(body["response_format"]["json_schema"]["schema"]))


def _first(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: _first(inner) for name, inner in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [_first(schema["items"])] * int(schema.get("minItems", 0))
    return {"integer": 0, "number": 0.5, "boolean": True}.get(schema.get("type", ""), "words")


def logprobs_of(content: str, n: int) -> dict[str, Any]:
    """Return digits and the text between them as tokens; 0 and 1 each have probability 0.9."""
    tokens = []
    for text in re.findall(r"\d|[^\d]+", content):
        top = [_token(text, 0.9)]
        if text in "01":
            top.append(_token("1" if text == "0" else "0", 0.1 - 1e-6))
        top += [_token(f"x{i}", 1e-7 / (i + 1)) for i in range(n - len(top))]
        tokens.append({**top[0], "top_logprobs": top[:n]})
    return {"content": tokens}


def _token(text: str, probability: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(probability), "bytes": list(text.encode())}


class Script:
    """The server's state."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.started = time.monotonic()
        self.in_flight = 0
        self.batches = Batches(self)
        self.reset()

    def reset(self) -> None:
        self.requests = 0
        self.peak_in_flight = 0
        self.bodies: set[str] = set()
        self.answered: set[str] = set()
        self.repeated_answered = 0
        self.kinds: Counter[str] = Counter()
        self.authorization: Counter[str] = Counter()
        self.times: list[float] = []
        self.paths: Counter[str] = Counter()
        self.limits: Counter[int] = Counter()
        self.batches.reset()

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "bodies": len(self.bodies),
            "answered": len(self.answered),
            "repeated_answered": self.repeated_answered,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "kinds": dict(self.kinds),
            "authorization": dict(self.authorization),
            "times": self.times,
            "paths": dict(self.paths),
            "limits": {str(limit): n for limit, n in sorted(self.limits.items())},
            **self.batches.stats(),
        }

    def fault(self) -> dict[str, Any] | None:
        n = self.requests
        for fault in self.options.faults:
            within = fault.get("after", 0) < n < fault.get("until", math.inf)
            if within and (n - fault.get("after", 0)) % fault.get("every", 1) == 0:
                return fault
        return None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        self.requests += 1
        self.paths[str(request.rel_url)] += 1
        self.limits[limit_of(body) or 0] += 1
        self.times.append(time.time())
        key = hashlib.sha256(raw).hexdigest()
        self.bodies.add(key)
        self.repeated_answered += key in self.answered
        self.authorization["sent" if "Authorization" in request.headers else "none"] += 1
        fault = self.fault()
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            return await self.respond(request, body, key, fault)
        finally:
            self.in_flight -= 1

    async def respond(
        self, request: web.Request, body: dict[str, Any], key: str, fault: dict[str, Any] | None
    ) -> web.StreamResponse:
        o = self.options
        kind = fault["kind"] if fault else "answer"
        if o.max_in_flight and self.in_flight > o.max_in_flight:
            self.kinds["429"] += 1
            return _error(429, "too many at once", retry_after=o.retry_after)
        if kind == "hang":
            self.kinds["hang"] += 1
            until = time.monotonic() + o.hang_seconds
            while time.monotonic() < until and not _has_left(request):
                await asyncio.sleep(0.02)
            return _error(500, "hung")
        await asyncio.sleep(o.latency_seconds)
        if _has_left(request):
            self.kinds["left"] += 1
            return _error(500, "nobody is there any more")
        refusal = self.unknown(request) or self.refusal(body)
        if refusal is not None:
            self.kinds[str(refusal.status)] += 1
            return refusal
        self.kinds[kind if kind != "status" else str(fault["status"] if fault else "")] += 1
        if fault is not None and kind == "status":
            message = fault.get("message", "as told")
            return _error(fault["status"], message, retry_after=fault.get("retry_after"))
        if kind == "drop":
            assert request.transport is not None
            request.transport.abort()
            return _error(500, "dropped")
        if kind == "html":
            return web.Response(text="<html>hello</html>", content_type="text/html")
        if kind == "body":
            return web.Response(
                text=fault["text"] if fault else "", content_type="application/json"
            )
        if kind == "bomb":
            body_ = gzip.compress(b" " * (int(fault["megabytes"] if fault else 0) << 20))
            return web.Response(body=body_, headers={"Content-Encoding": "gzip"})
        if kind == "drip":
            return await drip(request)
        if kind == "filtered":
            return _error(400, "not allowed", code="content_filter")
        answer = self.answer(body, kind)
        if o.echo is not None:
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            answer["choices"][0]["message"]["content"] = f"You sent {ECHOES[o.echo](sent)} to me"
        if o.usage is not None:
            answer["usage"] = o.usage
            if o.usage == "none":
                del answer["usage"]
        text = json.dumps(answer)
        if kind == "cut":
            return web.Response(text=text[: len(text) // 2], content_type="application/json")
        if kind != "no_choices":
            self.answered.add(key)
        return web.Response(text=text, content_type="application/json")

    def unknown(self, request: web.Request) -> web.Response | None:
        o = self.options
        for name, value in o.header.items():
            if request.headers.get(name) != value:
                said = f"Access denied due to invalid key {request.headers.get(name)}"
                return _error(401, said)
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if o.key is not None and sent != o.key:
            shown = ECHOES[o.echo or "plain"](sent)
            return _error(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")
        return None

    def refusal(self, body: dict[str, Any]) -> web.Response | None:
        o = self.options
        if o.models and body["model"] not in o.models:
            message = f"The model `{body['model']}` does not exist"
            return _error(404, message, code="model_not_found")
        if o.no_system_role and any(m["role"] == "system" for m in body["messages"]):
            return _error(o.no_system_role["status"], o.no_system_role["message"])
        for name, (status, message) in o.forbidden.items():
            if name in body:
                return _error(status, message)
        if o.cut_as == "400" and (limit_of(body) or math.inf) <= o.reasoning_tokens:
            message = "Could not finish the message because max_tokens or model output limit was "
            return _error(400, message + "reached. Please try again with higher max_tokens.")
        if o.most_tokens and (limit_of(body) or 0) > o.most_tokens:
            message = f"max_tokens is too large; the model has at most {o.most_tokens}"
            return _error(400, message)
        for name in o.refused_fields:
            if name in body:
                return _error(400, f"Unsupported parameter: '{name}' is not supported")
        if "response_format" in body and o.json_schema == "refused":
            return _error(400, "response_format is not supported")
        if body.get("logprobs"):
            if o.logprobs == "refused" or body["top_logprobs"] > o.max_top_logprobs:
                return _error(400, f"top_logprobs must be at most {o.max_top_logprobs}")
            if "response_format" in body and not o.logprobs_with_schema:
                return _error(400, "logprobs cannot be combined with response_format")
        characters = sum(len(message["content"]) for message in body["messages"])
        if o.max_characters and characters > o.max_characters:
            message = f"maximum context length is {o.max_characters}, however you requested more"
            return _error(400, message, code="context_length_exceeded")
        return None

    def answer(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        o = self.options
        body = {name: value for name, value in body.items() if name not in o.ignored_fields}
        if o.json_schema == "ignored":
            body.pop("response_format", None)
        if o.drops_system:
            seen = [message for message in body["messages"] if message["role"] != "system"]
            body["messages"] = seen
        content = "" if kind in ("empty", "refusal") else self.said(body)
        limit = max((limit_of(body) or math.inf) - o.reasoning_tokens, 0)
        n_tokens = int(min(len(content) // 4 + 1, limit))
        cut = len(content) > 4 * n_tokens
        content = content[: 4 * n_tokens]
        n_tokens = int(min(o.reasoning_tokens + n_tokens, limit_of(body) or math.inf))
        message: dict[str, Any] = {"role": "assistant", "content": content or None}
        if kind == "refusal":
            message["refusal"] = "I cannot say."
        choice: dict[str, Any] = {"index": 0, "message": message}
        choice["finish_reason"] = o.cut_as if cut else "stop"
        if body.get("logprobs") and o.logprobs == "supported" and kind != "no_logprobs" and content:
            choice["logprobs"] = logprobs_of(content, body["top_logprobs"])
        n_prompt = sum(len(message["content"]) for message in body["messages"]) // 4 + 1
        return {
            "id": "chat",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [] if kind == "no_choices" else [choice],
            "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_tokens},
        }

    def said(self, body: dict[str, Any]) -> str:
        for message in body["messages"]:
            if self.options.obeys and (found := TOLD.search(message["content"])):
                return found[1]
        return _function(self.options.answers)(last(body), body)


def limit_of(body: dict[str, Any]) -> int | None:
    return body.get("max_completion_tokens") or body.get("max_tokens")


def last(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def _function(name: str) -> Callable[[str, dict[str, Any]], str]:
    if ":" not in name:
        return ANSWERS[name]
    module, _, function = name.partition(":")
    found: Callable[[str, dict[str, Any]], str] = getattr(importlib.import_module(module), function)
    return found


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _error(
    status: int, message: str, *, code: str | None = None, retry_after: str | None = None
) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    value = {"error": {"message": message, "type": "scripted", "code": code}}
    return web.json_response(value, status=status, headers=headers)


async def serve(port: int, options: Options) -> None:
    script = Script(options)

    async def health(_: web.Request) -> web.Response:
        ready = time.monotonic() - script.started >= options.ready_after_seconds
        return web.Response(status=200 if ready else 503)

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(script.stats())

    async def change(request: web.Request) -> web.Response:
        for name, value in (await request.json()).items():
            assert hasattr(options, name), name
            setattr(options, name, value)
        return web.Response()

    async def reset(_: web.Request) -> web.Response:
        script.reset()
        return web.Response()

    app = web.Application(client_max_size=1 << 26)
    for path in ("/v1", "/openai/deployments/{name}"):
        app.router.add_post(f"{path}/chat/completions", script.chat)
    script.batches.add_routes(app.router)
    app.router.add_get("/health", health)
    app.router.add_get("/stats", stats)
    app.router.add_post("/options", change)
    app.router.add_post("/reset", reset)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = None
    if options.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096, ssl_context=context)
    await site.start()
    print("ready", runner.addresses[0][1], flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    # Do not wait for hanging requests.
    os._exit(0)


class ScriptedServer:
    """The server as a separate process; a context manager."""

    def __init__(self, **options: Any) -> None:
        unknown = set(options) - {f.name for f in fields(Options)}
        assert not unknown, unknown
        command = [sys.executable, __file__, "--port", "0", json.dumps(options)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        assert words[:1] == ["ready"], words
        self.port = int(words[1])
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.root}/stats", timeout=30) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def set(self, **options: Any) -> None:
        self._post("/options", options)

    def reset(self) -> None:
        self._post("/reset", {})

    def _post(self, path: str, value: Any) -> None:
        data = json.dumps(value).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.root + path, data, headers)
        urllib.request.urlopen(request, timeout=30).close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("options", nargs="?", default="{}")
    arguments = parser.parse_args()
    options = Options(**json.loads(arguments.options))
    if options.key_variable is not None:
        options.key = os.environ[options.key_variable]
    if options.exit_status is not None:
        print("the model file is missing", file=sys.stderr)
        sys.exit(options.exit_status)
    child = None
    if options.child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if options.pids is not None:
        Path(options.pids).write_text(f"{os.getpid()} {child.pid if child else ''}\n")
    asyncio.run(serve(arguments.port, options))


if __name__ == "__main__":
    main()
