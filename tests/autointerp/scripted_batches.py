"""The batch API of the scripted server: /v1/files and /v1/batches."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from scripted_server import Script


class Batches:
    """Files and batches in memory; each line is answered when its batch ends."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.files: dict[str, bytes] = {}
        self.made: dict[str, dict[str, Any]] = {}
        self.reset()

    def reset(self) -> None:
        self.answered: set[str] = set()
        self.n_lines = self.n_repeated = self.n_deleted = 0
        self.refused_once: set[tuple[str, str]] = set()
        self.made.clear()
        self.files.clear()

    def stats(self) -> dict[str, Any]:
        return {
            "batches": len(self.made),
            "batch_lines": self.n_lines,
            "batch_repeated": self.n_repeated,
            "files_left": sum(map(bool, self.files.values())),
        }

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/files", self.upload)
        router.add_get("/v1/files/{id}/content", self.content)
        router.add_delete("/v1/files/{id}", self.delete)
        router.add_post("/v1/batches", self.create)
        router.add_get("/v1/batches", self.list)
        router.add_get("/v1/batches/{id}", self.retrieve)

    async def upload(self, request: web.Request) -> web.Response:
        if (refusal := self.script.unknown(request)) is not None:
            return refusal
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()  # type: ignore[union-attr]
        size = len(self.files[name])
        return web.json_response(
            {
                "id": name,
                "object": "file",
                "bytes": size,
                "created_at": 0,
                "purpose": "batch",
                "filename": "x",
                "status": "processed",
            }
        )

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    async def delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.files:
            return web.json_response({"error": {"message": "No such file"}}, status=404)
        self.n_deleted += 1
        # The name stays taken.
        self.files[name] = b""
        return web.json_response({"id": name, "object": "file", "deleted": True})

    async def create(self, request: web.Request) -> web.Response:
        if (refusal := self.script.unknown(request)) is not None:
            return refusal
        if self.script.options.batch_busy > 0:
            self.script.options.batch_busy -= 1
            return web.json_response({"error": {"message": "busy"}}, status=503)
        asked = await request.json()
        assert asked["endpoint"] == "/v1/chat/completions"
        batch = f"batch-{len(self.made)}"
        self.made[batch] = {
            "id": batch,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "metadata": asked.get("metadata"),
            "created_at": int(time.time()),
            "status": "in_progress",
            "due": time.monotonic() + self.script.options.batch_seconds,
        }
        if self.script.options.batch_drops > 0:
            self.script.options.batch_drops -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(self._seen(batch))

    async def list(self, request: web.Request) -> web.Response:
        data = [self._seen(batch) for batch in reversed(self.made)]
        return web.json_response({"object": "list", "data": data, "has_more": False})

    async def retrieve(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.made:
            value = {"error": {"message": f"No batch found with id '{name}'"}}
            return web.json_response(value, status=404)
        return web.json_response(self._seen(name))

    def _seen(self, name: str) -> dict[str, Any]:
        batch = self.made[name]
        if batch["status"] == "in_progress" and time.monotonic() >= batch["due"]:
            self._end(batch)
        return {key: value for key, value in batch.items() if key != "due"}

    def _end(self, batch: dict[str, Any]) -> None:
        o = self.script.options
        batch["status"] = o.batch_outcome
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        if o.batch_outcome == "failed":
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            batch["errors"] = {"object": "list", "data": [error]}
            return
        done, failed = [], []
        for i, line in enumerate(lines):
            body, name = line["body"], line["custom_id"]
            assert (line["method"], line["url"]) == ("POST", batch["endpoint"])
            out: dict[str, Any] = {"id": f"line-{i}", "custom_id": name}
            if o.batch_outcome != "completed" and i >= o.batch_spared:
                error = {"code": f"batch_{o.batch_outcome}", "message": "not executed in time"}
                failed.append({**out, "response": None, "error": error})
                continue
            status, value = self._answer(body, name)
            response = {"status_code": status, "request_id": "r", "body": value}
            (done if status == 200 else failed).append({**out, "response": response, "error": None})
        # In another order than requested.
        for kind, found in (("output", done[::-1]), ("error", failed)):
            if found:
                file = batch[f"{kind}_file_id"] = f"file-{len(self.files)}"
                self.files[file] = "".join(json.dumps(one) + "\n" for one in found).encode()

    def _answer(self, body: dict[str, Any], name: str) -> tuple[int, dict[str, Any]]:
        content = str(body["messages"][-1]["content"])
        for end, (status, message) in self.script.options.batch_lines.items():
            if content.endswith(end) and (name, end) not in self.refused_once:
                self.refused_once.add((name, end))
                return status, {"error": {"message": message}}
        refusal = self.script.refusal(body)
        if refusal is not None:
            return refusal.status, json.loads(refusal.text or "{}")
        self.n_lines += 1
        self.n_repeated += name in self.answered
        self.answered.add(name)
        return 200, self.script.answer(body, "answer")
