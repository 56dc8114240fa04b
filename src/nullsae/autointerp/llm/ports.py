"""Finds out whose server listens at a port of this machine."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import psutil

# Where a connection to 127.0.0.1 can end.
LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1")
EVERY = ("0.0.0.0", "::")
# After this many looks, a socket without a known owner belongs to another user's process.
LOOKS = 3


@dataclass(frozen=True)
class Listeners:
    """The sockets that connections to one port of 127.0.0.1 may reach."""

    own: tuple[str, ...]
    """Addresses at which the process group in question listens."""
    foreign: tuple[str, ...]
    """Other processes that listen: `process 12`, or `a process of another user`."""


def listeners(port: int, group: int) -> Listeners:
    """Return who listens at a port of 127.0.0.1: processes of one process group, or others."""
    own, foreign = set(), set()
    found = _listening(port, group)
    for _ in range(LOOKS - 1):
        if all(pid is not None for pid, _ in found):
            break
        # A socket created while its owner was being looked up has one at the next look.
        found = _listening(port, group)
    for pid, address in found:
        if _group(pid) == group:
            own.add(address)
        else:
            foreign.add("a process of another user" if pid is None else f"process {pid}")
    return Listeners(tuple(sorted(own)), tuple(sorted(foreign)))


def _group(pid: int | None) -> int | None:
    """Return the process group of a process, or None if it has ended."""
    with contextlib.suppress(OSError):
        return None if pid is None else os.getpgid(pid)
    return None


def _listening(port: int, group: int) -> list[tuple[int | None, str]]:
    """Return the process, if known, and address of each socket that listens at a port."""
    try:
        found = [(one.pid, one) for one in psutil.net_connections("tcp")]
    except (psutil.AccessDenied, PermissionError):
        # macOS shows the sockets of others only to root.
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
