"""Which commit of a repository a job reads, from a local hub and from its cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiny_hub import TinyHub

PROBE = """
import json, sys
from pathlib import Path
import huggingface_hub
from nullsae.core import provenance
from nullsae.corpus.hub import check_repository
for kind, path, revision in json.loads(sys.argv[1]):
    check_repository(path, kind=kind, revision=revision, where="here")
    if sys.argv[2] == "fetch" and kind == "model":
        huggingface_hub.snapshot_download(path, revision=revision)
folder = Path(sys.argv[3])
provenance.record(folder)
print(json.dumps(provenance.read(folder / provenance.FILE).revisions))
"""


def noted(folder: Path, asked: list[Any], then: str, **environment: str) -> dict[str, str]:
    """Return the recorded revisions after reading these (kind, id, revision)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(asked), then, str(folder)],
        env={**kept, **environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_the_commit_behind_a_branch_is_recorded_online_and_offline(tmp_path: Path) -> None:
    hub = TinyHub()
    try:
        model = hub.add("models", "some/model", {"config.json": b"{}"})
        other = hub.add("models", "some/other", {"config.json": b"[]"}, revision="step0")
        data = hub.add("datasets", "some/model", {"a.jsonl": b'{"text": "a"}'})
        asked = [("model", "some/model", None), ("model", "some/other", "step0")]
        place = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint}
        online = noted(tmp_path, [*asked, ("dataset", "some/model", None)], "fetch", **place)
    finally:
        hub.stop()
    models = {"model some/model": model, "model some/other": other}
    assert online == {**models, "dataset some/model": data}
    pinned, unknown = ("model", "some/pinned", "c" * 40), ("model", "some/unknown", None)
    local = ("model", str(tmp_path), None)
    last = [*asked, pinned, unknown, local]
    offline = noted(tmp_path, last, "look", **place, HF_HUB_OFFLINE="1")
    assert offline == {**models, "model some/pinned": "c" * 40}
