"""Starts `nullsae`, `snakemake` and `python` for tests by forking a process with loaded libraries.

A study of the tests has dozens of jobs of a second each, and each would load torch, transformers
and others for three seconds; Snakemake takes as long to start. The command itself still runs in a
process of its own, with its own environment, folder, output and code; only the libraries are
already loaded, and the modules of nullsae if the code is the tests' frozen copy. The commands in
the server's folder are short clients: they pass on their arguments and signals, and exit as their
jobs do. A job with variables that change how a library loads is started by the plain command, and
so is Python with options.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
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
    "smart_open",
    "snakemake.cli",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "typer",
    "vl_convert",
)
READ_ON_LOADING = ("HF_", "HUGGINGFACE_", "KMP_", "MKL_", "OMP_", "TORCH", "TRANSFORMERS_")
"""Variables that libraries read once, by how their names begin."""
SET_ON_LOADING = "TORCHINDUCTOR_"
"""Set by PyTorch itself when it loads."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SET_BY_MAIN = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "USE_HUB_KERNELS": "NO",
}
COMMANDS = {"nullsae": "nullsae.cli.main", "snakemake": "snakemake.cli", "python": ""}
"""The module of each command, with its `main`."""
SIZE_BYTES = 8
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
read = [k for k in os.environ if k.startswith({read_on_loading!r})]
own = {{k: os.environ[k] for k in read if not k.startswith({set_on_loading!r})}}
options = {command!r}.endswith("python") and (sys.argv[1:2] or ["-i"])[0].startswith("-")
if own != {environment!r} or options and sys.argv[1] not in ("-c", "-m"):
    os.execv({command!r}, [{command!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
same_code = os.environ.get("PYTHONPATH") == {source!r}
server.connect({with_code!r} if same_code else {address!r})
call = json.dumps([[{command!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda received, frame: server.send(bytes([received])))
socket.send_fds(server, [len(call).to_bytes({size_bytes}, "big")], [0, 1, 2])
server.sendall(call)
status = int(server.recv(16) or b"255")
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def read_on_loading(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that libraries read when they load."""
    read = [k for k in environment if k.startswith(READ_ON_LOADING)]
    return {k: environment[k] for k in read if not k.startswith(SET_ON_LOADING)}


def start(
    folder: Path, environment: dict[str, str], session: int, source: Path | None = None
) -> None:
    """Start the server, and write the commands into `folder`: the clients that call it.

    Args:
        folder: empty; to put at the front of PATH.
        environment: variables that the libraries are loaded under.
        session: the process with whose end the server ends.
        source: `src` of a copy of the sources that does not change. Its modules are loaded, too,
            for calls whose PYTHONPATH is this folder.
    """
    address, with_code = str(folder / "server"), str(folder / "with_code")
    code = [with_code, str(source)] if source else []
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-P", __file__, str(session), address, *code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**environment, "PYTHONPATH": "", **SET_BY_MAIN},
            start_new_session=True,
        )
    assert server.stdout is not None
    with server.stdout as said:
        for _ in (address, *code[:1]):
            assert said.readline() == b"ready\n", (folder / "server.log").read_text()
    for name in COMMANDS:
        client = CLIENT.format(
            python=sys.executable,
            read_on_loading=READ_ON_LOADING,
            set_on_loading=SET_ON_LOADING,
            environment=read_on_loading(environment),
            command=str(Path(sys.executable).parent / name),
            source=str(source),
            address=address,
            with_code=with_code,
            size_bytes=SIZE_BYTES,
        )
        (folder / name).write_text(client)
        (folder / name).chmod(0o755)


def load_code(source: str) -> None:
    """Load all modules of a copy of nullsae, and what every Snakemake would build anew."""
    sys.path.insert(0, source)
    import nullsae

    for module in pkgutil.walk_packages(nullsae.__path__, "nullsae."):
        with suppress(ImportError):  # needs another library
            importlib.import_module(module.name)
    from snakemake.cli import get_argument_parser

    from nullsae.config.read import read_merged_config
    from nullsae.jobs.code_hash import PACKAGE, file_digests

    read_merged_config([Path(source).with_name("config.yaml")])
    file_digests(*PACKAGE.rglob("*.py"))
    get_argument_parser()
    sys.path.remove(source)


def serve(session: str, address: str, with_code: str = "", source: str = "") -> None:
    """Fork a job for each call, until the session ends. A second server has loaded nullsae."""
    gc.disable()
    for library in LIBRARIES:
        importlib.import_module(library)
    end = os.pidfd_open(int(session))
    if source and os.fork() == 0:
        load_code(source)
        address = with_code
    gc.freeze()  # a job's garbage collection must not copy pages shared with this process
    gc.enable()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    jobs: dict[socket.socket, int] = {}  # who called, and the job
    ends: dict[int, socket.socket] = {}  # becomes readable when the job ends
    while True:
        for ready in select.select([end, listener, *jobs, *ends], [], [])[0]:
            if ready == end:
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
    """Start what `caller` asks for, and return the process id of the job."""
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


def run_python(how: str, *rest: str) -> None:
    """Run code (`-c`), a module (`-m`) or a file, as the main module."""
    given = how in ("-c", "-m")
    sys.argv[:] = [how, *(rest[1:] if given else rest)]
    sys.path.insert(0, "" if given else str(Path(how).resolve().parent))
    if how == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if not given:
        main.__file__ = str(Path(how).absolute())
    code = rest[0] if given else Path(how).read_text(encoding="utf-8")
    exec(compile(code, "<string>" if given else how, "exec"), main.__dict__)


def run(arguments: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """Run the command that these arguments begin with in this folder."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    first = Path(environment.get("PATH", "").split(os.pathsep)[0], "python")
    sys.executable = str(first) if first.is_file() else sys.executable
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    importlib.invalidate_caches()
    try:
        if module := COMMANDS[Path(arguments[0]).name]:
            importlib.import_module(module).main()
        else:
            run_python(*arguments[1:])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    # As Python exits, but without unloading the libraries, which takes a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    serve(*sys.argv[1:])
