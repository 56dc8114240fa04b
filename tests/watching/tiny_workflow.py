"""A workflow of a few seconds, for tests of the display: real Snakemake, shells as verbs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SNAKEFILE = """
from nullsae.watching.events import record_events

onstart:
    record_events(workflow, lambda rule, cells: {"slow": 30.0}.get(rule))

rule all:
    input: "results/end/all.txt"

include: "first.smk"
include: "second.smk"
"""
# Each writes a log like nullsae's, and continues once there is a file `go`.
FIRST = r"""
rule slow:
    output: "results/slow/subject={subject}/part.txt"
    log: "results/logs/slow/subject={subject}.log"
    shell:
        "(echo 'nullsae 0.1.0, Python 3.11, torch 2.9; cpu: A CPU, 1 thread; host here';"
        " echo 'slow: 1,024 of 4,096 tokens, 51 tokens/s, 60 s left';"
        " until [ -e go ]; do sleep 0.1; done) > {log} 2>&1; touch {output}"
"""
SECOND = r"""
rule end:
    input: expand("results/slow/subject={s}/part.txt", s=["one", "two", "three"])
    output: "results/end/all.txt"
    log: "results/logs/end/subject=all.log"
    shell:
        "(echo begun; printf 'cleared \\033[2J\\n'; [ ! -e fails ]) > {log} 2>&1; touch {output}"
"""


def tiny_study(folder: Path) -> Path:
    """Write the workflow into a folder for `nullsae run`."""
    folder.mkdir()
    texts = {"Snakefile": SNAKEFILE, "first.smk": FIRST, "second.smk": SECOND, "config.yaml": ""}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def environment() -> dict[str, str]:
    """Return an environment in which `nullsae` is this checkout's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # The terminal's width is queried, not set.
    others = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**others, "PATH": path, "TERM": "xterm-256color"}
