"""A quick check that the hub has a repository, before libraries retry for a minute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import errors

from nullsae.config.model_files import is_local
from nullsae.core import provenance
from nullsae.core.errors import UserError, first_line

TIMEOUT_SECONDS = 10.0
NO_ID = "{}: {!r} is neither a local folder nor a hub id"


def check_repository(
    path: str,
    *,
    kind: Literal["dataset", "model"],
    revision: str | None,
    where: str,
    revision_where: str | None = None,
) -> str | None:
    """Raise a `UserError` at once if the hub cannot be reached or has no such repository.

    Returns the current commit of the revision, or None if unknown. It is recorded in the provenance
    of what the job makes.

    Local folders pass, and so does everything in offline mode (`HF_HUB_OFFLINE=1`): the loading
    library then searches only its cache, and quickly reports what is missing.

    Args:
        path: hub id or local folder.
        kind: the namespace of `path` on the hub.
        revision: commit, tag or branch; None is the default branch.
        where: the config key of `path`.
        revision_where: the config key of the revision, if different.
    """
    if is_local(path):
        return None
    if huggingface_hub.is_offline_mode():
        commit = cached_commit(path, kind, revision)
        provenance.note_revision(f"{kind} {path}", commit)
        return commit
    what = f"{'data set' if kind == 'dataset' else kind} {path!r}"
    api = huggingface_hub.HfApi()
    try:
        found = api.repo_info(path, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
        provenance.note_revision(f"{kind} {path}", found.sha)
        return str(found.sha)
    except errors.HFValidationError:
        reason = NO_ID.format(where, path)
    except errors.GatedRepoError:
        way = "accept its terms on the hub and log in with `hf auth login`"
        reason = f"{where}: the {what} is gated; {way}"
    except errors.RevisionNotFoundError:
        reason = f"{revision_where or where}: the {what} has no revision {revision!r}"
    except errors.RepositoryNotFoundError:
        reason = f"{where}: the hub has no {what}, or it is private and needs `hf auth login`"
    except errors.HfHubHTTPError:
        # The hub responds, if unwillingly (busy, rate limit); the loader will retry.
        return None
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        reason = (
            f"{where}: the hub cannot be reached for {path!r} ({first_line(error)}); connect, set "
            f"HF_HUB_OFFLINE=1 if it is in the cache, or give a local folder"
        )
    raise UserError(reason)


def cached_commit(path: str, kind: Literal["dataset", "model"], revision: str | None) -> str | None:
    """Return the commit of a revision according to the hub's cache; None if unknown."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    folder = huggingface_hub.constants.HF_HUB_CACHE
    name = f"{kind}s--{path.replace('/', '--')}"
    try:
        found = Path(folder, name, "refs", revision or "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return found or None


def check_cached(
    path: str, name: str, *, revision: str | None, where: str, revision_where: str
) -> None:
    """In offline mode, raise a `UserError` unless the hub's cache has a model's file `name`.

    The other arguments are those of `check_repository`.
    """
    if is_local(path) or not huggingface_hub.is_offline_mode():
        return
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(path, name, revision=revision), str):
            return
    except errors.HFValidationError:
        raise UserError(NO_ID.format(where, path)) from None
    cache = huggingface_hub.constants.HF_HUB_CACHE
    missing = f"{where}: {path!r}"
    if revision is not None:
        missing = f"{revision_where}: {revision!r} of {path!r}"
    raise UserError(
        f"{missing} is not in the hub's cache ({cache}), and HF_HUB_OFFLINE is set; unset it, "
        f"or download it there first"
    )
