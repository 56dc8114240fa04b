"""All replies that were ever paid for, in one SQLite file shared by many processes."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import queue
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nullsae.autointerp.llm.kept_replies import Kept, packed, unpacked
from nullsae.core.errors import UserError, first_line
from nullsae.core.files import PRIVATE_FILE, PRIVATE_FOLDER

log = logging.getLogger(__name__)

# The file's header identifies its owner and its layout.
APPLICATION_ID = 0x6E73_6165
VERSION = 1
BUSY_SECONDS = 60.0
# A transaction takes as long for one reply as for ten, so the thread lets some gather; a kill loses
# more in flight than in this time.
GATHER_SECONDS = 0.01
SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
  key BLOB PRIMARY KEY, reply BLOB NOT NULL, model TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS abilities (key BLOB PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spending (id INTEGER PRIMARY KEY, cost_usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS reservations (
  owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, cost_usd REAL NOT NULL);
INSERT OR IGNORE INTO spending VALUES (0, 0.0);
"""


def reply_key(address: str, body: bytes) -> bytes:
    """Return a reply's key: a hash of the endpoint's name and of the request, 16 bytes."""
    return blake2b(address.encode() + b"\0" + body, digest_size=16).digest()


class ReplyCache:
    """Replies, abilities of endpoints, and the money spent and reserved.

    A separate thread writes, so that a busy file delays no request: everything that has arrived
    since its last turn goes into one transaction. Reading is for one thread. Each method raises a
    `UserError` that names the file if it is damaged or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, which must be a cache of this version; create it if missing."""
        self.path = path
        self._owner = uuid.uuid4().hex, socket.gethostname(), os.getpid()
        self._error: UserError | None = None
        self._unwritten: dict[bytes, Kept] = {}
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            _keep_private(path)
        except OSError as error:
            raise UserError(f"{path}: its folder cannot be made ({error.strerror})") from None
        self._reader = _opened(path)
        self._spend_for_the_dead()
        self._tasks: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="replies", daemon=True)
        self._thread.start()

    def get(self, key: bytes) -> Kept | None:
        if (unwritten := self._unwritten.get(key)) is not None:
            return unwritten
        rows = self._rows(
            "SELECT reply, model, prompt_tokens, completion_tokens, cost_usd FROM replies "
            "WHERE key = ?",
            key,
        )
        if not rows:
            return None
        try:
            return unpacked(rows[0])
        except ValueError as error:
            # From an older version, or damaged: it is requested again as if it had never come.
            log.warning("%s: a reply cannot be read (%s) and is requested again", self.path, error)
            self._rows("DELETE FROM replies WHERE key = ?", key)
            return None

    def put(self, key: bytes, kept: Kept, *, reserved_usd: float = 0.0) -> None:
        """Keep a reply; its cost is spent and its reservation released.

        If writing fails, the reply is lost with this process, but its money is spent.
        """
        if self._error is not None:
            raise self._error
        self._unwritten[key] = kept
        self._tasks.put((key, kept, reserved_usd, _money(kept.cost_usd)))

    def count(self) -> int:
        """Return how many replies the file contains, including those of other processes."""
        self.flush()
        return int(self._rows("SELECT count(*) FROM replies")[0][0])

    def total_cost_usd(self) -> float:
        """Return the cost of all replies that were ever added to this file."""
        self.flush()
        return float(self._rows("SELECT max(cost_usd, 0) FROM spending")[0][0])

    def abilities(self, key: bytes) -> dict[str, Any] | None:
        """Return the recorded abilities of an endpoint, if any."""
        rows = self._rows("SELECT value FROM abilities WHERE key = ?", key)
        try:
            found = json.loads(rows[0][0]) if rows else None
        except (ValueError, TypeError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def keep_abilities(self, key: bytes, value: dict[str, Any]) -> None:
        self._rows("INSERT OR REPLACE INTO abilities VALUES (?, ?)", key, json.dumps(value))

    @contextmanager
    def alone(self, key: bytes) -> Iterator[None]:
        """Keep other processes with the same key out, waiting for one that is in."""
        lock = self.path.with_name(f"{self.path.name}-{key.hex()[:8]}.lock")
        with open(lock, "w", opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def reserve(self, usd: float, limit_usd: float, *, batch: str | None = None) -> float | None:
        """Reserve money for a request; return None, or what is spent (USD) if over the limit.

        The reservation of a `batch`, by its name, survives this process until `settle`.
        """
        owner = self._owner if batch is None else (batch, "", 0)
        self._rows("BEGIN IMMEDIATE")
        try:
            [(spent, reserved)] = self._rows(
                "SELECT (SELECT max(cost_usd, 0) FROM spending), "
                "(SELECT coalesce(sum(max(cost_usd, 0)), 0) FROM reservations)"
            )
            # Sums of many small amounts are exact to about this much only.
            if spent + reserved + usd > limit_usd * (1 + 1e-9):
                return float(spent)
            with _damage_named(self.path):
                _reserve_more(self._reader, owner, usd)
            return None
        finally:
            self._rows("COMMIT")

    def settle(self, batch: str) -> None:
        """Release a batch's reservation: all of its replies are in the file."""
        self.flush()
        self._rows("DELETE FROM reservations WHERE owner = ?", batch)

    def release(self, usd: float, *, spent_usd: float = 0.0) -> None:
        """Release the reservation of a request without a reply, which may have cost something."""
        if usd or spent_usd:
            self._tasks.put((None, None, usd, _money(spent_usd)))

    def flush(self) -> None:
        """Wait until everything is written to the file."""
        done = threading.Event()
        self._tasks.put((done, None, 0.0, 0.0))
        done.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Write what is left and close the file."""
        self._tasks.put(None)
        self._thread.join()
        self._rows("DELETE FROM reservations WHERE owner = ?", self._owner[0])
        self._reader.close()
        if self._error is not None:
            raise self._error

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with _damage_named(self.path):
            return self._reader.execute(statement, values).fetchall()

    def _spend_for_the_dead(self) -> None:
        """Count the reservations of killed processes on this machine as spent: their requests were
        in flight and may be billed.
        """
        self._rows("BEGIN IMMEDIATE")
        try:
            host = socket.gethostname()
            rows = self._rows("SELECT owner, pid, cost_usd FROM reservations WHERE host = ?", host)
            dead = [(owner, max(usd, 0.0)) for owner, pid, usd in rows if not _alive(pid)]
            for owner, usd in dead:
                self._rows("UPDATE spending SET cost_usd = cost_usd + ?", usd)
                self._rows("DELETE FROM reservations WHERE owner = ?", owner)
        finally:
            self._rows("COMMIT")

    def _write_all(self) -> None:
        connection = None
        try:
            connection = _opened(self.path)
        except UserError as error:
            self._error = error
        open_ = True
        while open_:
            tasks = [self._tasks.get()]
            if isinstance(tasks[0], tuple) and tasks[0][1] is not None:
                time.sleep(GATHER_SECONDS)
            while not self._tasks.empty():
                tasks.append(self._tasks.get())
            open_ = None not in tasks
            batch = [task for task in tasks if task is not None]
            if connection is not None and self._error is None:
                try:
                    self._write(connection, [task for task in batch if any(task[1:])])
                except UserError as error:
                    self._error = error
                except Exception as error:  # tasks waiting for this thread must get it
                    self._error = UserError(
                        f"{self.path}: cannot be written, by a bug in nullsae: {error!r}"
                    )
            for task in batch:
                if isinstance(task[0], threading.Event):
                    task[0].set()
        if connection is not None:
            connection.close()

    def _write(self, connection: sqlite3.Connection, batch: list[tuple[Any, ...]]) -> None:
        if not batch:
            return
        replies = {key: kept for key, kept, *_ in batch if kept}
        rows = []
        for key, kept in replies.items():
            try:
                rows.append((key, *packed(kept)))
            except ValueError as error:
                log.warning("%s: a reply cannot be kept (%s)", self.path, first_line(error))
        reserved, spent = (sum(task[place] for task in batch) for place in (2, 3))
        # Leaving the inner block commits or, on an error, rolls back.
        with _damage_named(self.path), connection:
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have paid for the same reply meanwhile: that money is spent too.
            connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?)", rows)
            if spent:
                # Never negative, as an older version may have left it.
                connection.execute("UPDATE spending SET cost_usd = max(cost_usd, 0) + ?", (spent,))
            if reserved:
                _reserve_more(connection, self._owner, -reserved)
        for key in replies:
            self._unwritten.pop(key, None)


def _reserve_more(connection: sqlite3.Connection, owner: tuple[str, str, int], usd: float) -> None:
    connection.execute(
        "INSERT INTO reservations VALUES (?, ?, ?, ?) "
        "ON CONFLICT (owner) DO UPDATE SET cost_usd = cost_usd + excluded.cost_usd",
        (*owner, usd),
    )


def _money(usd: float) -> float:
    """Return an amount that can be spent: finite, and not below 0."""
    return usd if math.isfinite(usd) and usd > 0 else 0.0


def _keep_private(path: Path) -> None:
    """Create the file if missing, readable by its owner alone; its journals inherit this."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
    stat = path.stat()
    if stat.st_uid == os.getuid() and stat.st_mode & 0o077:
        path.chmod(PRIVATE_FILE)


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file of this version in WAL mode; create the tables in a new file."""
    # Imported here because it takes longer than everything else in this module.
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

    with _damage_named(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        # In one statement, because another process may be creating the tables.
        application, version, tables = connection.execute(
            "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
            "FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if tables and application != APPLICATION_ID:
            connection.close()
            raise UserError(f"{path}: not a cache of replies; llm.cache needs its own file")
        if tables and version != VERSION:
            connection.close()
            raise UserError(
                f"{path}: a cache of replies of version {version}, but this nullsae reads version "
                f"{VERSION}; move it away, or set llm.cache to another file"
            )
        # Changing to WAL does not wait by itself while the file is busy.
        patient = Retrying(
            stop=stop_after_delay(BUSY_SECONDS),
            wait=wait_fixed(0.01),
            retry=retry_if_exception(lambda error: "locked" in str(error)),
            reraise=True,
        )
        patient(connection.execute, "PRAGMA journal_mode = WAL")
        # With WAL, a reply survives the end of the process at once, and a power cut after seconds.
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            # A process that comes second finds the tables and writes the same header again.
            connection.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {VERSION}; {SCHEMA} COMMIT;"
            )
        return connection


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Convert errors of SQLite to a `UserError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{path}: the cache of replies cannot be read or written ({error})"
        ) from None
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}: the cache of replies is damaged ({error}); move it away, or repair it with "
            f"sqlite3's .recover: without it all replies are requested and paid for again"
        ) from None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
