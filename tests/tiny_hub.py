"""A hub of models and data sets on this machine, as far as its clients ask for files of one."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from pathlib import PurePath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
BRANCH = "main"


@dataclass
class TinyHub:
    """Repositories by (`models` or `datasets`, id): files by revision; a commit per revision."""

    repositories: dict[tuple[str, str], dict[str, Files]] = field(default_factory=dict)
    claimed_bytes: dict[str, int] = field(default_factory=dict)
    """Size that the hub states for each file of a repository of this id, whatever it is."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request, as they came."""
    tokens: set[str] = field(default_factory=set)
    """What clients identified themselves with."""
    busy: set[str] = field(default_factory=set)
    """Ids of repositories whose files are answered by an error that repeats the token."""

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, kind: str, name: str, files: Files, revision: str = BRANCH) -> str:
        """Add or replace a revision; returns its commit."""
        self.repositories.setdefault((kind, name), {})[revision] = files
        return commit_of(files)

    def downloaded(self) -> set[str]:
        """Ids, revisions and names of all files whose content was asked for."""
        asked = (request.removeprefix("GET /") for request in self.requests)
        return {path for path in asked if "/resolve/" in path and not path.startswith("HEAD")}

    def stop(self) -> None:
        """Nobody listens there any more."""
        self.server.shutdown()
        self.server.server_close()


def commit_of(files: Files) -> str:
    """40 hex digits that name these files."""
    listed = sorted((name, hashlib.sha1(content).hexdigest()) for name, content in files.items())
    return hashlib.sha1(json.dumps(listed).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: TinyHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        asked = json.loads(body) if body.startswith("{") else parse_qs(body)
        self._route([unquote(path) for path in asked.get("paths", [])])

    def do_GET(self) -> None:
        self._route([])

    def _route(self, asked: list[str]) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:], parse_qs(url.query), asked)
        elif "resolve" in parts:
            at = parts.index("resolve")
            kind = "datasets" if parts[0] == "datasets" else "models"
            self._file(kind, "/".join(parts[at - 2 : at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self._send(404, b"")

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, Files] | None:
        """The commit and files of a revision, or None after an answer that says what is wrong."""
        revisions = self.hub.repositories.get((kind, name))
        if revisions is None:
            self._send(401, b'{"error": "no such repository"}', {"X-Error-Code": "RepoNotFound"})
            return None
        for known, files in revisions.items():
            if revision in (known, commit_of(files)):
                return commit_of(files), files
        self._send(404, b'{"error": "no such revision"}', {"X-Error-Code": "RevisionNotFound"})
        return None

    def _api(self, kind: str, name: str, rest: list[str], query: Any, asked: list[str]) -> None:
        action = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else BRANCH
        found = self._find(kind, name, revision)
        if found is None:
            return
        commit, files = found
        if action == "revision":
            described = [self._describe(name, path, content) for path, content in files.items()]
            siblings = [{"rfilename": one["path"], **one} for one in described]
            self._json({"id": name, "sha": commit, "private": False, "siblings": siblings})
        elif action in ("tree", "paths-info"):
            below = "".join(f"{part}/" for part in rest[2:])
            within = {path: content for path, content in files.items() if path.startswith(below)}
            folders = {str(f) for path in within for f in PurePath(path).parents} - {"."}
            listed = [self._describe(name, path, content) for path, content in within.items()]
            listed += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
            listed = [one for one in listed if one["path"].startswith(below)]
            if action == "paths-info":
                listed = [one for one in listed if one["path"] in asked]
            elif query.get("recursive", ["false"])[0].lower() != "true":
                listed = [one for one in listed if "/" not in one["path"].removeprefix(below)]
            if action == "tree" and not listed:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            else:
                self._json(sorted(listed, key=itemgetter("path")))
        else:
            self._send(404, b"{}")

    def _describe(self, name: str, path: str, content: bytes) -> dict[str, Any]:
        size = self.hub.claimed_bytes.get(name, len(content))
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": size, "oid": oid, "blobId": oid}

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        if name in self.hub.busy:
            said = f"busy, {self.headers.get('Authorization', '')}"
            self._send(403, json.dumps({"error": said}).encode(), {"X-Error-Message": said})
            return
        found = self._find(kind, name, revision)
        if found is None:
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        content = files[path]
        headers |= {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        span = self.headers.get("Range", "")
        if not span.startswith("bytes="):
            self._send(200, content, headers)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) if last else len(content), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass
