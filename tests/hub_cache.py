"""Models in a folder laid out as the cache of the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def add_revision(
    repository: Path, revision: str, commit: str, model: Any, tokenizer: Any = None
) -> Path:
    """Put a model into the hub's cache as a download does: blobs, and links to them."""
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    made = repository / "made"
    model.save_pretrained(made)
    if tokenizer is not None:
        tokenizer.save_pretrained(made)
    for file in sorted(made.iterdir()):
        blob = blobs / f"{commit[0]}-{file.name}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    made.rmdir()
    return snapshot
