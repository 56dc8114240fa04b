"""The record of a batch in progress: a file by which a later job finds the batch after a kill."""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from nullsae.core.errors import UserError
from nullsae.core.files import write_json


@dataclass(frozen=True)
class Asked:
    """One request of a batch."""

    n_bytes: int
    """Of its JSON."""
    max_completion_tokens: int


@dataclass
class BatchRecord:
    """A batch, from before it is started until all of its replies are in the cache.

    One process at a time holds it, by a lock that ends with the process.
    """

    path: Path
    address: str
    """The endpoint, as `Endpoint.address`."""
    requests: dict[str, Asked]
    """By their `custom_id`, which is the key of the reply in hexadecimal digits."""
    worst_usd: float
    """The most that it can cost."""
    batch: str | None = None
    """The endpoint's id of it; None until it is known."""
    file: str | None = None
    """The endpoint's id of its requests' file."""
    lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """Its name in the endpoint's metadata and among the cache's reservations."""
        return self.path.stem

    @classmethod
    def new(
        cls, folder: Path, address: str, requests: Mapping[str, Asked], worst_usd: float
    ) -> Self:
        """Create a record that this process holds; it is not written yet."""
        path = folder / f"{uuid.uuid4().hex}.json"
        made = cls(path, address, dict(requests), worst_usd)
        made.hold()
        return made

    def write(self) -> None:
        """Write the file atomically."""
        requests = {n: [r.n_bytes, r.max_completion_tokens] for n, r in self.requests.items()}
        own = {"address": self.address, "worst_usd": self.worst_usd}
        write_json(self.path, own | {"batch": self.batch, "file": self.file, "requests": requests})

    def hold(self) -> bool:
        """Lock it; return False if another process holds it. It may have been removed meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self.lock = lock
        return True

    def let_go(self) -> None:
        """Unlock it."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def remove(self) -> None:
        """Delete it: its batch is no longer in progress."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        self.let_go()


def records(folder: Path, address: str) -> Iterator[BatchRecord]:
    """Yield an endpoint's records in a folder, held or not; a `UserError` names a bad one."""
    for path in sorted(folder.glob("*.json")):
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            requests = {name: Asked(*of) for name, of in found.pop("requests").items()}
            record = BatchRecord(path=path, requests=requests, **found)
        except FileNotFoundError:
            continue  # another process has just removed it
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise UserError(
                f"{path}: not the record of a batch ({error}); restore it, or move it away and pay "
                f"for its batch again"
            ) from None
        if record.address == address:
            yield record
