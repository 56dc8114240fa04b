"""Time explaining and judging over HTTP, per request and against the counted limit.

    python benchmarks/scoring.py [--latency-seconds 0.05] [--concurrency 100] [--faults]

50 latents have one explanation each, and 100 windows each for detection and for fuzzing, five per
question. That makes 2,050 requests to the tests' scripted server, a separate process that answers
after a fixed time. The limit is requests x latency / concurrency. Everything between the tables
`windows` and `scores` counts: texts of windows, prompts, keys, the cache, reading answers, metrics.
Then the same runs again, entirely from the cache. With `--faults`, one request in 20 and one in 5
fail in each way, and what was lost is counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.explainers.language_model import OpenAIExplainer
from nullsae.autointerp.llm.client import ask_all
from nullsae.autointerp.llm.messages import Request, object_schema
from nullsae.autointerp.llm.session import Session
from nullsae.autointerp.marking import window_texts
from nullsae.autointerp.prompting import load_prompt
from nullsae.autointerp.score import score_latents
from nullsae.autointerp.scorers.asking import FRAME_TOKENS
from nullsae.autointerp.scorers.asking import WINDOW_TOKENS as WINDOW_ANSWER_TOKENS
from nullsae.autointerp.scorers.detection import DetectionScorer
from nullsae.autointerp.scorers.fuzzing import FuzzingScorer
from nullsae.config.corpora import BuiltinSource
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.corpus.sources import documents
from nullsae.corpus.token_text import read_tokenizer
from nullsae.jobs.autointerp import ExplainLatentsParams, ScoreLatentsParams
from nullsae.jobs.keys import CellKeys
from nullsae.tables import cell_schema, read_table, write_table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "autointerp"))
from scripted_server import ScriptedServer

N_REQUESTS = 2050
N_LATENTS, N_EXPLAINING, N_SCORING = 50, 40, 50
WINDOW_TOKENS = 32
KEYS = CellKeys(subject="s", variant="trained", draw=0, site="resid_post.0", sae="topk", seed=0)
FAULTS = {
    "429": {"kind": "status", "status": 429},
    "429, come back in 0.2 s": {"kind": "status", "status": 429, "retry_after": "0.2"},
    "500": {"kind": "status", "status": 500},
    "dropped": {"kind": "drop"},
    "cut in its JSON": {"kind": "cut"},
    "empty": {"kind": "empty"},
}


def tokenizer_and_text(folder: Path) -> tuple[Path, np.ndarray]:
    """Train a byte-level BPE on Python's help topics; return it and their tokens."""
    texts = list(itertools.islice(documents(BuiltinSource(kind="builtin", name="stdlib")), 80))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json", np.concatenate([tokenizer.encode(t).ids for t in texts])


def write_windows(folder: Path, tokens: np.ndarray) -> Path:
    """Write windows of 50 latents that fire on two or three tokens of an active window."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for latent in range(N_LATENTS):
        for pool, n in (("explain", N_EXPLAINING), ("score", N_SCORING)):
            for i in range(2 * n):
                start = int(generator.integers(0, len(tokens) - WINDOW_TOKENS))
                activations = np.zeros(WINDOW_TOKENS, np.float32)
                active = i < n
                if active:
                    at = generator.choice(WINDOW_TOKENS, 3, replace=False)
                    activations[at] = generator.exponential(size=3)
                rows.append(
                    {
                        "latent": latent,
                        "window": len(rows),
                        "pool": pool,
                        "active": active,
                        "silent_kind": None if active else "random",
                        "quantile": i * 10 // n if active else None,
                        "document": 0,
                        "start": start,
                        "token_ids": tokens[start : start + WINDOW_TOKENS],
                        "activations": activations,
                        "skipped": [False] * WINDOW_TOKENS,
                        "token_frequencies": [1.0] * WINDOW_TOKENS,
                    }
                )
    write_table(folder / "windows.parquet", rows, cell_schema("windows"))
    return folder / "windows.parquet"


class Timed(Session):
    """Sums up the time between the first request of a job and its last answer."""

    seconds = 0.0

    def all(self, *arguments: Any) -> list[Any]:
        """Ask, and add the time."""
        started = time.perf_counter()
        try:
            return super().all(*arguments)
        finally:
            self.seconds += time.perf_counter() - started


def run(folder: Path, server: ScriptedServer, settings: Llm, tokenizer: Path) -> dict[str, float]:
    """Explain and judge; return wall and CPU seconds of this process, and what is missing."""
    windows = folder / "windows.parquet"
    endpoint: dict[str, Any] = {"model": "m", "base_url": server.url, "api_key_env": None}
    session = Timed(lambda: settings, root=folder)
    wall, cpu = time.perf_counter(), time.process_time()
    explainer = OpenAIExplainer(kind="openai", **endpoint)
    explain_latents(
        ExplainLatentsParams(seed=0, keys=KEYS, explainer=explainer),
        windows,
        tokenizer,
        folder / "explanations.parquet",
        None,
        session,
    )
    for scorer in (DetectionScorer(kind="detection"), FuzzingScorer(kind="fuzzing")):
        score_latents(
            ScoreLatentsParams(seed=0, keys=KEYS, scorer=scorer, judge=Endpoint(**endpoint)),
            windows=windows,
            explanations=folder / "explanations.parquet",
            tokenizer=tokenizer,
            predictions=folder / f"{scorer.kind}.predictions.parquet",
            scores=folder / f"{scorer.kind}.parquet",
            session=session,
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    failed = sum(
        sum(read_table(folder / f"{kind}.parquet", cell_schema("scores"))["n_failed"].to_pylist())
        for kind in ("detection", "fuzzing")
    )
    return {"wall": wall, "cpu": cpu, "failed": failed, "asking": session.seconds}


def ask_only(
    folder: Path, server: ScriptedServer, settings: Llm, tokenizer: Path
) -> tuple[float, float]:
    """Send the same number of prepared questions in one queue; return wall and CPU seconds.

    The endpoint's abilities are known from the run before.
    """
    prompt = load_prompt("detection")
    table = read_table(folder / "windows.parquet", cell_schema("windows"))
    texts = [
        shown.text
        for shown in window_texts(read_tokenizer(tokenizer), table["token_ids"].to_pylist())
    ]
    requests = [
        Request(
            prompt.messages(explanation=f"words of kind {i}", windows=texts[5 * i : 5 * i + 5]),
            FRAME_TOKENS + 5 * WINDOW_ANSWER_TOKENS,
            object_schema({str(i): [0, 1] for i in range(1, 6)}),
            logprobs=True,
        )
        for i in range(N_REQUESTS)
    ]
    endpoint = Endpoint(model="m", base_url=server.url, api_key_env=None)
    wall, cpu = time.perf_counter(), time.process_time()
    replies, usage = ask_all(
        endpoint, settings, lambda model: [model.ask(request) for request in requests], root=folder
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(replies) == usage.calls == N_REQUESTS
    return wall, cpu


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-seconds", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-logprobs", action="store_true")
    parser.add_argument("--faults", action="store_true")
    options = parser.parse_args()
    settings = Llm(concurrency=options.concurrency)
    with tempfile.TemporaryDirectory() as name, ScriptedServer() as server:
        folder = Path(name)
        tokenizer, tokens = tokenizer_and_text(folder)
        write_windows(folder, tokens)
        server.set(latency_seconds=options.latency_seconds)
        if options.no_logprobs:
            server.set(logprobs="ignored")
        run(folder, server, settings, tokenizer)  # imports
        cache = folder / settings.cache

        def fresh(act: Callable[[], dict[str, float]]) -> tuple[dict[str, float], dict[str, Any]]:
            for file in cache.parent.glob("*"):
                file.unlink()
            server.reset()
            return act(), server.stats()

        for _ in range(options.repeats):
            found, stats = fresh(lambda: run(folder, server, settings, tokenizer))
            n = stats["requests"]
            limit = n * options.latency_seconds / options.concurrency
            print(
                f"{n} requests: {found['wall']:.2f} s, {found['wall'] / limit:.2f} of the limit "
                f"({limit:.2f} s), of which asking {found['asking']:.2f} s; "
                f"CPU {1e3 * found['cpu'] / n:.2f} ms a request; "
                f"in flight at most {stats['peak_in_flight']}"
            )
            wall, cpu = ask_only(folder, server, settings, tokenizer)
            limit = N_REQUESTS * options.latency_seconds / options.concurrency
            print(
                f"  {N_REQUESTS} in one queue: {wall:.2f} s, {wall / limit:.2f} of the limit "
                f"({limit:.2f} s); CPU {1e3 * cpu / N_REQUESTS:.2f} ms a request"
            )
            again = run(folder, server, settings, tokenizer)
            print(f"  again, from the cache: {again['wall']:.2f} s, CPU {again['cpu']:.2f} s")
        if options.faults:
            for (kind, fault), every in itertools.product(FAULTS.items(), (20, 5)):
                server.set(faults=[{**fault, "every": every, "after": 20}])
                found, stats = fresh(lambda: run(folder, server, settings, tokenizer))
                print(
                    f"{kind}, one in {every}: {found['wall']:.1f} s, {found['failed']} of "
                    f"{2 * 2 * N_SCORING * N_LATENTS} predictions lost, "
                    f"{stats['repeated_answered']} answers asked for twice; "
                    f"{json.dumps(stats['kinds'])}"
                )


if __name__ == "__main__":
    main()
