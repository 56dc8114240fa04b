"""Starts `nullsae` for tests by forking a process that has loaded torch and transformers already.

A study of the tests has dozens of jobs of a second each, and each would load these libraries for
three. What runs is the command itself, in a process of its own with its own environment, folder,
output and code; only the libraries are there before. `nullsae` of the folder `commands` is a short
client: it hands over what it was called with, passes signals on, and ends as its job does. A job
whose variables would alter what a library does on loading is started by the plain command.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

LIBRARIES = (
    "altair",
    "jinja2.sandbox",
    "openai",
    "pandas",
    "pyarrow.parquet",
    "rich.progress",
    "safetensors.torch",
    "scipy.stats",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "typer",
    "vl_convert",
)
READ_ON_LOADING = ("HF_", "HUGGINGFACE_", "KMP_", "MKL_", "OMP_", "TORCH", "TRANSFORMERS_")
"""Variables that libraries read once, by how their names begin."""
SET_BY_MAIN = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "USE_HUB_KERNELS": "NO",
}
SIZE_BYTES = 8
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
own = {{k: v for k, v in os.environ.items() if k.startswith({read_on_loading!r})}}
if own != {environment!r}:
    os.execv({command!r}, [{command!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda received, frame: server.send(bytes([received])))
socket.send_fds(server, [len(call).to_bytes({size_bytes}, "big")], [0, 1, 2])
server.sendall(call)
status = int(server.recv(16) or b"255")
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def read_on_loading(environment: dict[str, str]) -> dict[str, str]:
    """The variables that libraries read when they load."""
    return {k: v for k, v in environment.items() if k.startswith(READ_ON_LOADING)}


def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the server, and write `nullsae` into `folder`: the client that calls it.

    Args:
        folder: empty; goes to the front of PATH.
        environment: variables that the libraries are loaded under.

    Returns:
        The server, which ends when its input is closed.
    """
    address = str(folder / "server")
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, "PYTHONPATH": "", **SET_BY_MAIN},
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n", "the server of warm starts did not come up"
    client = CLIENT.format(
        python=sys.executable,
        read_on_loading=READ_ON_LOADING,
        environment=read_on_loading(environment),
        command=str(Path(sys.executable).parent / "nullsae"),
        address=address,
        size_bytes=SIZE_BYTES,
    )
    command = folder / "nullsae"
    command.write_text(client)
    command.chmod(0o755)
    return server


def serve(address: str) -> None:
    """Fork a job for each call, until the input ends."""
    gc.disable()
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # no collection in a job copies the pages that it shares with this process
    gc.enable()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    jobs: dict[socket.socket, int] = {}  # who called, and the job
    ends: dict[int, socket.socket] = {}  # becomes readable when the job ends
    while True:
        for ready in select.select([0, listener, *jobs, *ends], [], [])[0]:
            if ready == 0:
                return
            if ready is listener:
                caller, _ = listener.accept()
                job = fork(caller, [listener, *jobs])
                jobs[caller] = job
                ends[os.pidfd_open(job)] = caller
            elif ready in ends:
                caller = ends.pop(ready)
                os.close(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(jobs.pop(caller), 0)[1])
                with suppress(OSError):
                    caller.send(str(status).encode())
                caller.close()
            elif ready in jobs:
                numbers = ready.recv(64)  # none: the client was killed, and its job with it
                for number in numbers or [signal.SIGKILL]:
                    os.kill(jobs[ready], number)


def fork(caller: socket.socket, inherited: list[socket.socket]) -> int:
    """Start what `caller` asks for; returns the process id of the job."""
    head, files, _, _ = socket.recv_fds(caller, SIZE_BYTES, 3)
    size_bytes = int.from_bytes(head, "big")
    with caller.makefile("rb", buffering=0) as stream:
        call = b""
        while len(call) < size_bytes:
            call += stream.read(size_bytes - len(call)) or b""
    job = os.fork()
    if job:
        for file in files:
            os.close(file)
        return job
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    for other in (caller, *inherited):
        other.close()
    return run(*json.loads(call))


def run(arguments: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """Be `nullsae`, called with these arguments in this folder."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["nullsae", *arguments]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    importlib.invalidate_caches()
    from nullsae.cli.main import main

    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    # As at any end of Python, but for taking the loaded libraries apart, which takes a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
