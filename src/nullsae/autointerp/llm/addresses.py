"""Addresses of endpoints: their paths and proxies."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from nullsae.config.addresses import is_local


def proxy_of(url: str) -> str | None:
    """Return the proxy for an address according to the environment; none for this machine."""
    parts = urlsplit(url)
    if is_local(url) or proxy_bypass(parts.hostname or ""):
        return None
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    return proxy if proxy and proxy.startswith("http") else None


def with_path(url: str, path: str) -> str:
    """Return an address whose path ends in `path`, added unless it is there already; its query,
    such as Azure's `api-version`, is kept.
    """
    parts = urlsplit(without_path(url, path))
    return urlunsplit(parts._replace(path=parts.path + path))


def without_path(url: str, path: str) -> str:
    """Return an address without `path` at the end of its own."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix(path)))
