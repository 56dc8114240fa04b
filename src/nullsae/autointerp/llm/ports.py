"""Whose server it is that listens at a port of this machine."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import psutil

# Where a connection to 127.0.0.1 can end.
LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1")
EVERY = ("0.0.0.0", "::")
# After so many, a socket without an owner is one that another user's process holds.
LOOKS = 3


@dataclass(frozen=True)
class Listeners:
    """The sockets that connections to one port of 127.0.0.1 may reach."""

    own: tuple[str, ...]
    """Addresses at which the processes in question listen."""
    foreign: tuple[str, ...]
    """Processes of others that listen: `process 12`, or `a process of another user`."""


def listeners(port: int, group: int) -> Listeners:
    """Who listens at a port of 127.0.0.1: processes of one process group, or others."""
    own, foreign = set(), set()
    found = _listening(port, group)
    for _ in range(LOOKS - 1):
        if all(pid is not None for pid, _ in found):
            break
        # A socket that was made while its owner was looked for has one at the next look.
        found = _listening(port, group)
    for pid, address in found:
        if _group(pid) == group:
            own.add(address)
        else:
            foreign.add("a process of another user" if pid is None else f"process {pid}")
    return Listeners(tuple(sorted(own)), tuple(sorted(foreign)))


def _group(pid: int | None) -> int | None:
    """The process group of a process; None where there is none any more."""
    with contextlib.suppress(OSError):
        return None if pid is None else os.getpgid(pid)
    return None


def _listening(port: int, group: int) -> list[tuple[int | None, str]]:
    """Process, as far as it can be known, and address of each socket that listens at a port."""
    try:
        found = [(one.pid, one) for one in psutil.net_connections("tcp")]
    except (psutil.AccessDenied, PermissionError):
        # macOS shows nobody but root the sockets of others.
        found = []
        for pid in psutil.pids():
            if _group(pid) == group:
                with contextlib.suppress(psutil.Error):
                    found += [(pid, one) for one in psutil.Process(pid).net_connections("tcp")]
    return [
        (pid, one.laddr.ip)
        for pid, one in found
        if one.status == psutil.CONN_LISTEN
        and one.laddr.port == port
        and one.laddr.ip in (*LOOPBACK, *EVERY)
    ]
