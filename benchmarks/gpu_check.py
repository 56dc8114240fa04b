"""The parts of `benchmarks/gpu_check.sh`, which describes them; run that script."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[1]
# Seconds of each part on a GPU, with what earlier parts leave; less than 8 minutes in total.
LIMITS = {"tests": 140, "steps": 180, "metric": 35, "study": 120}
# On a CPU nothing is measured, and the machine may be busy.
CPU_SECONDS = 3600
NEEDED = {
    "tests": ("pytest", "transformers", "safetensors", "pyarrow", "pydantic"),
    "steps": ("pydantic",),
    "metric": ("pydantic",),
    "study": ("snakemake", "transformers", "pyarrow", "altair", "vl_convert", "typer"),
}
STEPS = {
    "cuda": ["--shapes", "pythia-70m", "pythia-1b", "pythia-6.9b", "--tokens", "8192"],
    "cpu": ["--shapes", "tiny", "--tokens", "512", "--steps", "2"],
}
METRIC = {"cuda": [], "cpu": ["--latents", "512", "--vocab", "2000", "--tokens", "8192"]}
# Verbs whose jobs compute on `compute.device`.
ON_DEVICE = ("cache_activations", "train_sae", "evaluate_sae", "collect_latents")
Found = dict[str, Any]


class PartError(Exception):
    """A part failed; the text says how."""


def run(name: str, command: list[str], folder: Path, limit: float, **environment: str) -> None:
    """Run a command in its own process group, for at most `limit` seconds; log to NAME.log.

    Raises:
        PartError: the command failed; the text says how it ended.
    """
    log = folder / f"{name}.log"
    with log.open("w") as out:
        print("$", shlex.join(command), file=out, flush=True)
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise PartError(f"stopped after {limit:.0f} s; see {log.name}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status:
        raise PartError(f"exit status {status}; see {log.name}")


def tests(folder: Path, args: argparse.Namespace, found: Found) -> None:
    """Run `tests/device` on the device."""
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "tests/device", f"--junitxml={report}"]
    try:
        run(
            *("tests", [*command, "-p", "no:cacheprovider"], folder, args.limit),
            NULLSAE_TEST_DEVICE=args.device,
        )
    finally:
        cases = [*ElementTree.parse(report).iter("testcase")] if report.is_file() else []
        failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
        skipped = [c for c in cases if c.find("skipped") is not None]
        found["passed"] = len(cases) - len(failed) - len(skipped)
        found["failed"] = [case.get("name") for case in failed]
        found["skipped"] = [case.get("name") for case in skipped]
    if not found["passed"] or skipped:
        raise PartError(f"{found['passed']} tests passed, {len(skipped)} were skipped")


def steps(folder: Path, args: argparse.Namespace, found: Found) -> None:
    """Run `gpu_train_step.py`; return its rows."""
    rows = folder / "steps.json"
    command = [str(args.peers_python), "benchmarks/gpu_train_step.py", "--device", args.device]
    command += [*STEPS[args.device], "--rounds", "2", "--json", str(rows)]
    try:
        run("steps", command, folder, args.limit)
    finally:
        found["rows"] = json.loads(rows.read_text()) if rows.is_file() else []
    if not found["rows"]:
        raise PartError("nothing was measured; see steps.log")
    if not any(row["what"].startswith("sparsify") for row in found["rows"]):
        found["note"] = "sparsify is not installed: not compared"


def metric(folder: Path, args: argparse.Namespace, found: Found) -> None:
    """Run `next_token.py`; return its figures."""
    figures = folder / "metric.json"
    command = [sys.executable, "benchmarks/next_token.py", "--device", args.device]
    run("metric", [*command, *METRIC[args.device], "--json", str(figures)], folder, args.limit)
    found |= json.loads(figures.read_text())
    if abs(found["mean_auroc"] - 0.5) > 0.01:
        raise PartError(f"random rows have a mean AUROC of {found['mean_auroc']:.4f}, not 0.5")


def config_of(device: str, text: Path) -> dict[str, Any]:
    """Return the config of a small study of that text, smaller still on a CPU."""
    n = 4 if device == "cuda" else 1
    return {
        "seed": 0,
        "compute": {"threads": 1, "device": device},
        "corpora": {
            "docs": {
                "source": {"kind": "files", "paths": [str(text)]},
                "tokenizer": {"kind": "train", "vocab_size": 512},
                "context_tokens": 64,
                "sae_train_tokens": n * 32_768,
                "eval_tokens": n * 4_096,
            }
        },
        "subjects": {
            "small": {
                "corpus": "docs",
                # Enough steps to pass its gate, which is to beat token frequencies.
                "source": {
                    **{"kind": "train", "n_layers": 2, "d_model": 32, "n_heads": 2},
                    "steps": 150,
                },
                "sites": ["resid_post.0"],
            }
        },
        "variants": ["trained", "rerandomized"],
        "activations": {"sae_train_tokens": n * 16_384, "shard_tokens": n * 8_192},
        "saes": {"topk": {"k": 8, "n_latents": n * 64, "batch_tokens": 512, "seeds": [0]}},
        "evaluation": {"fidelity_tokens": n * 512, "gaussian_floors": False},
        "latents": {
            **{"n_sampled": n * 2, "min_firings": 20, "min_pool_windows": 4, "window_tokens": 16},
            "causal_places": n,
        },
        "explainers": {"lexical": {"kind": "lexical"}},
        "scorers": {"detection": {"kind": "detection"}},
        "statistics": {"n_resamples": 200},
        "report": {"title": "GPU check", "figure_formats": ["png"]},
    }


def study(folder: Path, args: argparse.Namespace, found: Found) -> None:
    """Run a small study with Snakemake; return where its jobs computed, and the outcome."""
    import yaml

    where = folder / "study"
    shutil.rmtree(where, ignore_errors=True)
    (where / "bin").mkdir(parents=True)
    # The rules call nullsae by name, which need not be installed.
    command = where / "bin/nullsae"
    start = "from nullsae.cli.main import main; main()"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{start}" "$@"\n')
    command.chmod(0o755)
    # The repository's own text: reading Python's documentation would take longer than all else.
    text = where / "text.jsonl"
    files = [*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("src/**/*.py")]
    text.write_text("".join(json.dumps({"text": f.read_text()}) + "\n" for f in sorted(files)))
    config = config_of(args.device, text)
    (where / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    path = os.pathsep.join([str(where / "bin"), str(Path(sys.executable).parent)])
    run(
        "study",
        [
            *(sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile")),
            *("--directory", str(where), "--cores", str(os.cpu_count()), "--resources", "gpu=1"),
            *("--workflow-profile", str(REPOSITORY / "profiles/default"), "--quiet", "host"),
        ],
        folder,
        args.limit,
        PATH=f"{path}{os.pathsep}{os.environ['PATH']}",
    )
    import pyarrow.parquet as pq

    made = pq.read_table(where / "results/benchmarks/provenance.parquet").to_pylist()
    used = Counter((row["verb"], row["device_kind"]) for row in made)
    found["jobs"] = {f"{verb} on {kind}": n for (verb, kind), n in sorted(used.items())}
    tables = where / "results/tables"
    rows = pq.read_table(tables / "reconstruction.parquet").to_pylist()
    found["explained_variance"] = {row["variant"]: row["explained_variance"] for row in rows}
    found["verdicts"] = pq.read_table(tables / "verdicts.parquet").num_rows
    elsewhere = sorted(
        f"{verb} on {kind}" for verb, kind in used if verb in ON_DEVICE and kind != args.device
    )
    if elsewhere or not any(verb in ON_DEVICE for verb, _ in used):
        raise PartError(f"jobs computed elsewhere: {', '.join(elsewhere) or 'all'}")
    if not found["verdicts"]:
        raise PartError("the study has no verdict")


def seconds_for(parts: list[str], at: int, taken: float) -> float:
    """Return the most seconds of a part: its own, and those that the parts before it left."""
    return sum(LIMITS[name] for name in parts[: at + 1]) - taken


def lacking(name: str, device: str) -> list[str]:
    """List what a part needs and this machine lacks."""
    found = [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]
    if device == "cuda" and importlib.util.find_spec("triton"):
        # Triton compiles its launcher where it runs.
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            found.append("a C compiler (gcc)")
        if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file():
            found.append("Python.h (python3-dev)")
    return found


def machine(device: str) -> Found:
    """Describe the machine."""
    found: Found = {"device": device, "torch": torch.__version__, "python": sys.version.split()[0]}
    found |= {"host_cpus": os.cpu_count(), "cuda": torch.version.cuda, "name": platform.processor()}
    if device == "cuda" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"name": card.name, "memory_gib": round(card.total_memory / 2**30, 1)}
        found["gpus"] = torch.cuda.device_count()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        if shutil.which(query[0]):
            told = subprocess.run(query, capture_output=True, text=True, check=False)
            found["driver"] = told.stdout.strip().partition("\n")[0]
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    commit = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    if shutil.which("git"):
        told = subprocess.run(commit, capture_output=True, text=True, check=False)
        found["commit"] = told.stdout.strip() or None
    return found


def markdown(result: Found) -> str:
    """Format a result as a table and a list of figures."""
    on = result["machine"]
    head = ", ".join(f"{name} {on[name]}" for name in on if on[name])
    lines = ["# GPU check", "", head, "", "| Part | Result | Seconds |", "|---|---|---|"]
    for name, part in result["parts"].items():
        lines.append(f"| {name} | {part['result']} | {part['seconds']:.0f} |")
    lines.append("")
    of_tests = result["parts"].get("tests", {})
    if "passed" in of_tests:
        failed = ", ".join(of_tests["failed"]) or "none"
        lines.append(f"Tests: {of_tests['passed']} passed; failed: {failed}.")
    rows = result["parts"].get("steps", {}).get("rows", [])
    if timed := [row for row in rows if row["kind"] == "step"]:
        lines += ["", "| Shape | Tokens | | ms | tokens/s | product | GiB | formula | ratio |"]
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for row in timed:
            cells = ["out of memory", *[""] * 5]
            if row["ms"] is not None:
                ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
                cells = [f"{row['ms']:.2f}", f"{row['tokens_per_second']:,.0f}"]
                cells += [f"{row['product_share']:.0%}", f"{row['peak_gib']:.1f}"]
                cells += [f"{row['formula_gib']:.1f}" if "formula_gib" in row else "", ratio]
            start = [row["shape"], f"{row['tokens']:,}", row["what"]]
            lines.append(f"| {' | '.join([*start, *cells])} |")
    if products := [row for row in rows if row["kind"] == "product"]:
        lines += ["", "| Shape | Tokens | Sparse product | ms | PyTorch, ms | bytes, ms |"]
        lines.append("|---|---|---|---|---|---|")
        for row in products:
            cells = [f"{row[name]:.3f}" for name in ("ms", "pytorch_ms", "bytes_ms")]
            start = [row["shape"], f"{row['tokens']:,}", row["what"]]
            lines.append(f"| {' | '.join([*start, *cells])} |")
    if "latents_per_second" in (timed := result["parts"].get("metric", {})):
        sizes = ", ".join(f"{timed[name]:,} {name}" for name in ("latents", "vocab", "tokens"))
        rate = f"{timed['seconds']:.1f} s, {timed['latents_per_second']:,.0f} latents per second"
        lines += ["", f"Next-token AUROC, {sizes}: {rate}."]
    if jobs := result["parts"].get("study", {}).get("jobs"):
        lines += ["", "Study: " + "; ".join(f"{n} x {job}" for job, n in jobs.items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the parts, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=REPOSITORY / "build/gpu_check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--peers-python", type=Path, default=Path(sys.executable))
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_check: PyTorch sees no CUDA device here; --device cpu runs with tiny shapes")
    # When stopped from outside, it stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result: Found = {"machine": machine(args.device), "parts": {}}
    begun = time.monotonic()
    parts: dict[str, Callable[[Path, argparse.Namespace, Found], None]] = {
        "tests": tests,
        "steps": steps,
        "metric": metric,
        "study": study,
    }
    for at, name in enumerate(args.parts):
        found: Found = {}
        start = time.monotonic()
        seconds = seconds_for(args.parts, at, start - begun)
        args.limit = seconds if args.device == "cuda" else CPU_SECONDS
        try:
            if missing := lacking(name, args.device):
                raise PartError(f"not run: {', '.join(missing)} not installed")
            parts[name](folder, args, found)
            found["result"] = "passed" + (f" ({found['note']})" if "note" in found else "")
        except PartError as error:
            found["result"] = f"FAILED: {error}"
        found["seconds"] = time.monotonic() - start
        result["parts"][name] = found
        result["seconds"] = time.monotonic() - begun
        print(f"{name}: {found['result']} ({found['seconds']:.0f} s)", flush=True)
    (folder / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "gpu_check.md").write_text(markdown(result))
    print(markdown(result))
    sys.exit(any(part["result"].startswith("FAILED") for part in result["parts"].values()))


if __name__ == "__main__":
    main()
