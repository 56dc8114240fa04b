"""Feed mutated files and replies to the code that reads them, and report its mistakes.

    python benchmarks/fuzz.py                      # 10,000 inputs
    python benchmarks/fuzz.py --seed 1 --start 4000 --only index   # others, or the rest of them

A reader may accept an input or refuse it with a `UserError`. Everything else is a finding: another
exception, a message with control characters, an input that takes more than 10 s, memory that grows
by more than 500 MB, a file opened for writing outside the results folder, a program started, a
connection made, and a change of any file outside the results folder.

Targets are objects with a `name`, a tuple of valid inputs `examples` (bytes), and a method
`read(data, folder)`, which may write into the folder. The modules `fuzz_*.py` in this folder list
theirs in `targets()`. An input depends only on the seed, the target and its number, so the line of
a finding suffices to make it again. Inputs are read in a separate process, which is restarted if
one kills it. Exits with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

SECONDS, GROWTH_BYTES, REPORT_SECONDS = 10.0, 500_000_000, 30.0
HERE = Path(__file__).parent
# What no reader of a file does; a target may allow some of it.
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 10_000_000),
    *(0.5, -0.0, 1e308, math.inf, -math.inf, math.nan, 5e-324),
    *("", " ", "a" * 100_000, "\x00", "\x1b[2J\x1b]0;x\x07", "\u202egnp.exe", "\u2028", "\ud800"),
    *("../../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", "~", ".", "..", "a/b"),
    *(
        "model.pkl",
        "pytorch_model.bin",
        "file:///etc/passwd",
        "http://169.254.169.254/",
        "::",
        "%s",
    ),
    *("{site}", "{0.__class__}", "{{ 7 * 7 }}", "$(id)", "`id`", "; id", "-rf", "__class__", "nan"),
    *("kernels-community/flash-attn", "flash_attention_2", "evil--module.Class", "1e999", "0x10"),
    *([], {}, [[]], [None] * 1000, {"": {}}, [1, "a", None], {"a": {"a": {"a": {}}}}),
)
PIECES = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\x1b[31m",
        b"\r",
        b"\t",
    ),
    *(b"{", b"}", b"[" * 5000, b"{'a':" * 2000, b'{"a":' * 2000, b'"', b"'", b":", b",", b"---\n"),
    *(
        b"9" * 5000,
        b"1e400",
        b"NaN",
        b"-Infinity",
        b"\\ud800",
        b"\\u0000",
        b"!!binary x",
        b"<<: *a\n",
    ),
    *(b"!!python/object/apply:os.system ['id']\n", b"&a [*a, *a]", b"? ", b"| ", b"2024-01-31"),
    *(b"{{ self.__init__ }}", b"{% for i in range(9) %}", b"%}", b"{{", b"=== user\n", b"=== x\n"),
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e]\n",
)


class Target(Protocol):
    """One kind of input."""

    name: str
    examples: tuple[bytes, ...]

    def read(self, data: bytes, folder: Path) -> None:
        """Read an input as the program does; raise a `UserError` or return."""


def mutated(example: bytes, draw: random.Random) -> bytes:
    """Change a valid input in one to four places: its values if it is JSON, else its bytes."""
    data = example
    if draw.random() < 0.7:
        try:
            tree = json.loads(example)
        except ValueError:
            pass
        else:
            for _ in range(draw.choice((1, 1, 1, 2, 4))):
                tree = _changed(tree, draw)
            data = json.dumps(tree).encode("utf-8", "surrogatepass")
            if draw.random() < 0.9:
                return data
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        data = draw.choice(
            (
                lambda a=at, d=data: d[:a] + draw.choice(PIECES) + d[a:],
                lambda a=at, e=end, d=data: d[:a] + d[e:],
                lambda a=at, d=data: d[:a],
                lambda a=at, e=end, d=data: d[:e] + d[a:],
                lambda a=at, d=data: d[:a] + bytes([draw.randrange(256)]) + d[a + 1 :],
            )
        )()
    return data


def _changed(tree: Any, draw: random.Random) -> Any:
    """Replace, remove, add or rename one node of a JSON tree."""
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            keys = [*node] if isinstance(node, dict) else range(len(node))
            places += [(node, key) for key in keys]
            waiting += [node[key] for key in keys]
    if not places or draw.random() < 0.02:
        return deepcopy(draw.choice(NASTY))
    node, key = draw.choice(places)
    # A copy: an input must not depend on earlier ones.
    value = deepcopy(draw.choice(NASTY))
    what = draw.random()
    if what < 0.6:
        node[key] = value
    elif what < 0.75:
        del node[key]
    elif isinstance(node, list):
        node.append(value)
    elif what < 0.9:
        name = value if isinstance(value, str) and len(value) < 100 else str(draw.random())
        node[name] = node.pop(key)
    else:
        node[f"{key}x"] = value
    return tree


def found_targets(only: str | None = None) -> dict[str, Target]:
    """Return the targets of all modules in this folder, by name."""
    sys.path.insert(0, str(HERE))
    modules = [importlib.import_module(file.stem) for file in sorted(HERE.glob("fuzz_*.py"))]
    found = {target.name: target for module in modules for target in module.targets()}
    return {name: found[name] for name in found if only in (None, name)}


class Watch:
    """What an input does besides being read."""

    def __init__(self, home: Path) -> None:
        self.home, self.results = home, home / "cwd" / "results"
        self.seen: list[str] = []
        self.allowed: tuple[str, ...] = ()
        self.on = False
        self.files = self._files()
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN and event not in self.allowed:
            self.seen.append(f"{event} {arguments[:2]!r:.200}")
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode, flags = arguments
            writes = any(c in (mode or "") for c in "wax+") or (flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
            )
            where = os.path.realpath(os.fsdecode(path))
            if writes and where != "/dev/null" and not where.startswith(f"{self.results}/"):
                self.seen.append(f"opened {where} for writing")

    def _files(self) -> dict[str, tuple[int, int]]:
        found = {}
        for folder, folders, names in os.walk(self.home):
            if Path(folder) == self.results:
                folders.clear()
                continue
            for name in names:
                file = os.path.join(folder, name)
                state = os.lstat(file)
                found[file] = (state.st_size, state.st_mtime_ns)
        return found

    def __enter__(self) -> None:
        self.seen, self.on = [], True

    def __exit__(self, *_: object) -> None:
        self.on = False
        now = self._files()
        self.seen += [f"changed {file}" for file, _ in now.items() ^ self.files.items()]
        self.files = now


def work(only: str | None, seed: int, home: Path) -> None:
    """Read the inputs whose numbers come in, and answer each with a line."""
    from nullsae.core.errors import UserError
    from nullsae.core.visible import visible

    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of this process
    logging.disable()
    targets = [*found_targets(only).values()]
    # Surrounding files are made, and libraries loaded, before anything counts.
    for target in targets:
        assert target.examples
    os.chdir(home / "cwd")
    watch = Watch(home)
    warm = 0
    for n_read, line in enumerate(sys.stdin, 1):
        number = int(line)
        target = targets[number % len(targets)]
        draw = random.Random(f"{seed}:{target.name}:{number}")
        data = mutated(draw.choice(target.examples), draw)
        folder = watch.results / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        watch.allowed, wrong, how = getattr(target, "allowed", ()), [], "taken"
        began = time.process_time()
        try:
            with watch:
                target.read(data, folder)
        except UserError as error:
            how = "refused"
            if visible(str(error)) != str(error) or not str(error):
                wrong.append(f"a message with control characters, or none: {error!r}")
        except BaseException as error:  # findings are what we look for
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{where.filename}:{where.lineno}"
            said = "".join(traceback.format_exception(error))[-3000:]
            wrong.append(f"{type(error).__name__} at {at}: {str(error)[:300]}\n{said}")
        wrong += watch.seen
        took = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if warm and peak - warm > GROWTH_BYTES:
            wrong.append(f"memory grew by {(peak - warm) / 1e6:,.0f} MB")
        answers.write(json.dumps([number, target.name, how, wrong, took]) + "\n")
        answers.flush()
        # Each kind of input once: memory that libraries take does not count as growth.
        if n_read == len(targets):
            warm = peak


class Worker:
    """The process that reads, and its last answer."""

    def __init__(self, only: str | None, seed: int) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="fuzz."))
        for folder in ("cwd/results", "user", "tmp"):
            (self.home / folder).mkdir(parents=True)
        for canary in ("canary", "cwd/canary", "cwd/config.yaml", "user/canary"):
            (self.home / canary).write_text("sings\n")
        arguments = [sys.executable, __file__, "--worker", str(self.home), "--seed", str(seed)]
        self.process = subprocess.Popen(
            [*arguments, *(["--only", only] if only else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"HOME": str(self.home / "user"), "TMPDIR": str(self.home / "tmp")}
            | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"},
        )

    def ask(self, number: int, seconds: float = SECONDS) -> list[Any] | str:
        """Return the outcome for an input, or how the process died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return f"the process ended with {self.process.wait()}"
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            return f"no end after {seconds:g} s"
        line = self.process.stdout.readline()
        if not line:
            return f"the process ended with {self.process.wait()}"
        answer: list[Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process; remove its folder."""
        self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.home, ignore_errors=True)


def main() -> int:
    """Run all inputs and print findings; return whether there were none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", help="name of one target")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that found something")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        work(given.only, given.seed, given.worker)
        return 0
    targets = [*found_targets(given.only).values()]
    names = [target.name for target in targets]
    began = last = time.monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    findings: dict[str, int] = {}
    cpu: dict[str, float] = dict.fromkeys(names, 0.0)
    worker, fresh = Worker(given.only, given.seed), True
    for number in range(given.start, given.start + given.inputs):
        # The first input waits for imports.
        answer = worker.ask(number, 120.0 if fresh else SECONDS)
        fresh = isinstance(answer, str) or any("memory grew" in line for line in answer[3])
        name = names[number % len(names)]
        wrong = [answer] if isinstance(answer, str) else answer[3]
        cpu[name] += 0.0 if isinstance(answer, str) else answer[4]
        counts[name, "finding" if wrong else answer[2]] += 1
        for line in wrong:
            kind = f"{name}: {line.splitlines()[0]}"
            findings[kind] = findings.get(kind, 0) + 1
            if findings[kind] == 1:
                again = f"--only {name} " if given.only else ""
                print(f"FINDING {name}: {again}--seed {given.seed} --start {number} --inputs 1")
                print(line, flush=True)
            if given.keep is not None and findings[kind] == 1:
                draw = random.Random(f"{given.seed}:{name}:{number}")
                data = mutated(draw.choice(targets[number % len(names)].examples), draw)
                given.keep.mkdir(parents=True, exist_ok=True)
                (given.keep / f"{name}-{given.seed}-{number}").write_bytes(data)
        if fresh:
            worker.close()
            worker = Worker(given.only, given.seed)
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            done = number + 1 - given.start
            print(f"{done:,} inputs, {done / (last - began):.1f} per second", flush=True)
    worker.close()
    seconds = time.monotonic() - began
    for name in names:
        each = ", ".join(f"{counts[name, h]:,} {h}" for h in ("taken", "refused", "finding"))
        print(f"{name}: {each}; {cpu[name]:.1f} s of CPU time")
    rate = given.inputs / seconds
    print(f"{given.inputs:,} inputs in {seconds:,.0f} s, {rate:.1f} per second, seed {given.seed}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU time: {used.ru_utime + used.ru_stime:,.0f} s, imports among it")
    for kind, n in sorted(findings.items()):
        print(f"{n:>6} x {kind}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
