"""Requests to the scripted server, and its expected replies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripted_server import detection

from nullsae.autointerp.llm.client import ask_all
from nullsae.autointerp.llm.messages import Reply, Request, Usage
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm

# Settings that allow only a plain question as a probe.
PLAIN: dict[str, Any] = {"structured_output": "never", "logprobs": "never"}
N_PLAIN_PROBES = 2
N_PROBES = 4


def question(i: int, *, logprobs: bool = False) -> Request:
    windows = "\n".join(f"Window {j}: item {i} of {j}" for j in range(1, 4))
    messages = ({"role": "system", "content": "Judge."}, {"role": "user", "content": windows})
    return Request(messages, 100, logprobs=logprobs)


def expected(i: int) -> str:
    return detection(question(i).messages[-1]["content"], {})


def ask(
    url: str,
    n: int | Sequence[int],
    root: Path,
    *,
    logprobs: bool = False,
    endpoint: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[list[Reply | None], Usage]:
    """Ask n questions, or those with the given numbers."""
    numbers = range(n) if isinstance(n, int) else n
    settings = {"concurrency": 8, "timeout_seconds": 20.0} | settings
    found = Endpoint(
        **({"model": "m", "base_url": url} | (PLAIN if endpoint is None else endpoint))
    )
    return ask_all(
        found,
        Llm(**settings),
        lambda model: [model.ask(question(i, logprobs=logprobs)) for i in numbers],
        root=root,
    )


def contents(replies: list[Reply | None]) -> list[str | None]:
    return [None if reply is None else reply.content for reply in replies]


if __name__ == "__main__":
    # A separate job, to be killed: settings of the endpoint and of asking, root, number.
    endpoint_, settings_, root_, n_ = sys.argv[1:]
    replies_, usage_ = ask_all(
        Endpoint.model_validate_json(endpoint_),
        Llm.model_validate_json(settings_),
        lambda model: [model.ask(question(i)) for i in range(int(n_))],
        root=Path(root_),
    )
    print(json.dumps(contents(replies_)), usage_.calls)
