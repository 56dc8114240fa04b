"""Subjects from the hub, with a folder in the layout of its cache, and never the hub itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_models import N_LAYERS, SHAPE, random_model

from hub_cache import add_revision
from nullsae.config.model_size import Shape, subject_shape
from nullsae.config.subjects import PretrainedSource
from nullsae.core.errors import UserError
from nullsae.subjects.loading import fetch
from refusing import refused

PYTHIA = "someone/pythia-tiny"
MAIN, STEP0, PICKLED = "a" * 40, "b" * 40, "c" * 40


def pythia(key: str) -> Any:
    return random_model(transformers.GPTNeoXConfig(**SHAPE), key)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    repository = folder / "models--someone--pythia-tiny"
    add_revision(repository, "main", MAIN, pythia("trained"))
    add_revision(repository, "step0", STEP0, pythia("step0"))
    pickled = add_revision(repository, "pickled", PICKLED, pythia("pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save(pythia("pickled").state_dict(), pickled / "pytorch_model.bin")
    return folder


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def source(**keys: Any) -> PretrainedSource:
    return PretrainedSource(**{"kind": "pretrained", "path": PYTHIA, **keys})


def same(model: Any, other: Any) -> bool:
    mine, others = model.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[k], others[k]) for k in mine)


@pytest.mark.usefixtures("offline")
def test_step0_is_the_revision_configured() -> None:
    pair = source(step0_revision="step0")
    assert same(fetch(pair), pythia("trained"))
    assert same(fetch(pair, variant="step0"), pythia("step0"))
    for revision in ("step0", STEP0):
        assert same(fetch(source(revision=revision)), pythia("step0"))


@pytest.mark.usefixtures("offline")
def test_a_subject_of_the_hub_is_in_the_dtype_configured() -> None:
    for dtype in ("bfloat16", "float16"):
        model = fetch(source(dtype=dtype))
        assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}


def test_the_environment_that_users_set_is_obeyed_and_a_parse_loads_no_torch(cache: Path) -> None:
    """HF_HUB_OFFLINE and HF_HUB_CACHE make it offline; each Snakemake job parses the config."""
    program = f"""
import sys
import nullsae.config.parse
from nullsae.config.subjects import PretrainedSource
from nullsae.config.model_size import subject_shape
source = PretrainedSource(kind="pretrained", path="{PYTHIA}")
for fetch in (False, True):
    print(subject_shape(source, where="here", fetch=fetch))
    heavy = {{"torch", "transformers", "huggingface_hub", "numpy", "gguf"}}
    print(*sorted(heavy & set(sys.modules)))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        *("Shape(n_layers=None, d_model=None)", ""),
        *("Shape(n_layers=3, d_model=16)", "huggingface_hub"),
    ]


def refusal(given: PretrainedSource, *, variant: str = "trained") -> str:
    return refused(fetch, given, variant=variant)


@pytest.mark.usefixtures("offline")
def test_a_revision_that_is_not_there_is_refused(cache: Path) -> None:
    ends = f"is not in the hub's cache ({cache}), and HF_HUB_OFFLINE is set; unset it, or "
    said = refusal(source(step0_revision="step9"), variant="step0")
    key = "config: subjects.*.source"
    assert said.startswith(f"{key}.step0_revision: 'step9' of {PYTHIA!r} {ends}")
    said = refusal(source(revision="v2"))
    assert said.startswith(f"{key}.revision: 'v2' of {PYTHIA!r} {ends}")
    said = refusal(source(path="someone/gone"))
    assert said.startswith(f"{key}.path: 'someone/gone' {ends}")
    said = refusal(source(path="no such: thing"))
    assert said == f"{key}.path: 'no such: thing' is neither a local folder nor a hub id"


@pytest.mark.usefixtures("offline")
def test_pickled_weights_of_the_hub_are_read_as_data() -> None:
    assert same(fetch(source(revision="pickled")), pythia("pickled"))


@pytest.mark.usefixtures("offline")
def test_the_size_of_a_cached_subject_needs_no_hub() -> None:
    assert subject_shape(source(), where="here", fetch=False) == Shape()
    assert subject_shape(source(), where="here", fetch=True) == Shape(N_LAYERS, 16)
    assert subject_shape(source(revision=STEP0), where="here", fetch=True) == Shape(N_LAYERS, 16)
    for path in ("someone/gone", "no such: thing"):
        said = refused(
            subject_shape, source(path=path), where="config: subjects.a.source", fetch=True
        )
        assert said.startswith(
            "config: subjects.a.source.path: patterns of sites need the number of blocks, but "
            f"there is no such folder, and the config.json of {path!r} is neither on the hub nor "
            "in its cache ("
        )
        assert said.endswith("; name each site instead, or give a local folder")


class Hub(BaseHTTPRequestHandler):
    """Knows one model, its revision main and its config.json."""

    config = b""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        known = "/revision/" not in self.path or self.path.endswith("/main")
        body = self.config if self.path.endswith("config.json") else b"{}"
        if self.path.startswith("/api/"):
            body = b'{"id": "someone/online", "siblings": []}'
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RevisionNotFound")
            body = b""
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"d41d8cd9"')
        self.send_header("X-Repo-Commit", MAIN)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    pythia("trained").config.save_pretrained(tmp_path / "made")
    Hub.config = (tmp_path / "made/config.json").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield monkeypatch
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_for_what_is_not_cached(
    online: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = source(path="someone/online")
    assert subject_shape(given, where="here", fetch=True) == Shape(N_LAYERS, 16)
    # The next time it comes from the cache, without the hub.
    online.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    online.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert subject_shape(given, where="here", fetch=True) == Shape(N_LAYERS, 16)
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(UserError, match="neither on the hub nor in its cache"):
        subject_shape(given, where="here", fetch=True)


@pytest.mark.usefixtures("online")
def test_a_step0_that_the_hub_does_not_have_is_reported_as_its_own_key() -> None:
    said = refusal(source(path="someone/online", step0_revision="step9"), variant="step0")
    assert said == (
        "config: subjects.*.source.step0_revision: the model 'someone/online' has no revision "
        "'step9'"
    )


def test_a_hub_that_cannot_be_reached_costs_a_few_seconds(online: pytest.MonkeyPatch) -> None:
    online.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    began = time.monotonic()
    with pytest.raises(UserError, match="neither on the hub nor in its cache"):
        subject_shape(source(path="someone/online"), where="here", fetch=True)
    assert "cannot be reached" in refusal(source(path="someone/online"))
    assert time.monotonic() - began < 5
