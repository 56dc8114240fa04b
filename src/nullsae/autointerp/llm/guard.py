"""Runs a server, and outlives its parent for as long as stopping the server takes.

    python guard.py program argument ...

Starts the program in its own session and prints its process id. Stops its whole process group when
standard input closes, which the kernel does however the process at the other end died, or when the
program itself ends. Uses only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 3.0


def main(command: list[str]) -> int:
    """Run a command until it or standard input ends; return its status, 127 if not startable."""
    # A signal to the job's process group must not stop the guard before its work is done.
    _on_signals(signal.SIG_IGN)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            start_new_session=True,
            # Popen restores only SIGPIPE and the like; an ignored SIGTERM would be inherited.
            preexec_fn=lambda: _on_signals(signal.SIG_DFL),
        )
    except OSError as error:
        print(f"error {error.strerror}", flush=True)
        return 127
    print(f"pid {server.pid}", flush=True)
    ended = os.pidfd_open(server.pid) if hasattr(os, "pidfd_open") else None
    while server.poll() is None:
        # Without pidfd (macOS), the end of the program is detected by polling.
        watched = [0] if ended is None else [0, ended]
        readable, _, _ = select.select(watched, [], [], 0.2 if ended is None else None)
        if 0 in readable and not os.read(0, 4096):
            break
    end_group(server.pid, server)
    status = server.wait()
    return status if status >= 0 else 128 - status  # as a shell reports it


def end_group(group: int, leader: subprocess.Popen[bytes] | None = None) -> None:
    """Stop all processes of a group: SIGTERM, then SIGKILL after a few seconds."""
    deadline = time.monotonic() + GRACE_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            if leader is not None:
                leader.poll()  # an unreaped process still counts as part of the group
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)


def _on_signals(action: signal.Handlers) -> None:
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, action)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
