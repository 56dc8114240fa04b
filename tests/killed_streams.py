"""A program that reads texts from a hub: what it downloads before it is killed, and after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tiny_hub import TinyHub

WORDS = [f"word{i}" for i in range(300)]
STREAM = {"kind": "hub", "path": "some/text", "streaming": True}
KILLED_AT, NEVER = 12_000, 10**9


def save_words(folder: Path) -> Path:
    """A tokenizer that knows nothing but the words."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, "</s>", "<unk>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    return folder


def downloads_of_two_runs(
    program: str, corpus: dict[str, Any], files: dict[str, str], place: Path, home: Path
) -> tuple[set[str], set[str]]:
    """The files of a stream that a killed run fetched, and those that the next one did.

    The program gets a folder, a corpus as JSON, and the number of tokens or texts at which it kills
    itself. The first files of the stream come again, for its columns and those since a checkpoint.
    """
    hub = TinyHub()
    hub.add("datasets", STREAM["path"], {name: text.encode() for name, text in files.items()})
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint}
    fetched = []
    try:
        for at in (KILLED_AT, NEVER):
            command = [sys.executable, "-c", program, str(place), json.dumps(corpus), str(at)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == (-signal.SIGKILL if at < NEVER else 0), done.stderr
            fetched.append({path.rsplit("/", 1)[-1] for path in hub.downloaded()} & files.keys())
            hub.requests.clear()
    finally:
        hub.stop()
    first, second = fetched
    assert len(first) > 6
    assert first & second <= {min(files), *sorted(first)[-3:]}
    return first, second
