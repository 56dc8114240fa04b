"""A quick check that the hub has a repository, before libraries retry for a minute."""

from __future__ import annotations

from typing import Literal

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from nullsae.config.model_files import is_local
from nullsae.core.errors import UserError, first_line

TIMEOUT_SECONDS = 10.0


def check_repository(
    path: str,
    *,
    kind: Literal["dataset", "model"],
    revision: str | None,
    where: str,
    revision_where: str | None = None,
) -> None:
    """Raise a `UserError` at once if the hub cannot be reached or has no such repository.

    Local folders pass, and so does everything in offline mode (`HF_HUB_OFFLINE=1`): the loading
    library then looks into its cache only, and says quickly what is missing.

    Args:
        path: hub id or local folder.
        kind: which of the hub's two name spaces `path` is in.
        revision: commit, tag or branch; None is the default branch.
        where: the config key that a message names.
        revision_where: the key of the revision, if it is another one.
    """
    if is_local(path) or huggingface_hub.is_offline_mode():
        return
    what = {"dataset": "data set", "model": "model"}[kind]
    try:
        huggingface_hub.HfApi().repo_info(
            path, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS
        )
    except HFValidationError:
        raise UserError(f"{where}: {path!r} is neither a local folder nor a hub id") from None
    except GatedRepoError:
        raise UserError(
            f"{where}: the {what} {path!r} is gated; accept its terms on the hub and log in with "
            f"`hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{revision_where or where}: the {what} {path!r} has no revision {revision!r}"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{where}: the hub has no {what} {path!r}, or it is private and needs `hf auth login`"
        ) from None
    except HfHubHTTPError:
        # The hub answers, if unwillingly (busy, rate limit): retrying is the loader's business.
        return
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        raise UserError(
            f"{where}: the hub cannot be reached for {path!r} ({first_line(error)}); connect, set "
            f"HF_HUB_OFFLINE=1 if it is in the cache, or give a local folder"
        ) from None


def check_cached(
    path: str, name: str, *, revision: str | None, where: str, revision_where: str
) -> None:
    """In offline mode, raise a `UserError` unless the hub's cache has a model's file.

    Args:
        path: hub id; local folders pass.
        name: the file.
        revision: commit, tag or branch; None is the default branch.
        where: the config key of the path.
        revision_where: the config key of the revision.
    """
    if is_local(path) or not huggingface_hub.is_offline_mode():
        return
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(path, name, revision=revision), str):
            return
    except HFValidationError:
        raise UserError(f"{where}: {path!r} is neither a local folder nor a hub id") from None
    cache = huggingface_hub.constants.HF_HUB_CACHE
    missing = f"{where}: {path!r}" if revision is None else f"{revision_where}: {revision!r}"
    of = "" if revision is None else f" of {path!r}"
    raise UserError(
        f"{missing}{of} is not in the hub's cache ({cache}), and HF_HUB_OFFLINE is set; unset it, "
        f"or download it there first"
    )
