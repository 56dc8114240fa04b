"""Addresses of endpoints: their paths, and the way to them."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from nullsae.config.addresses import is_local


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address; none for this machine's own."""
    parts = urlsplit(url)
    if is_local(url) or proxy_bypass(parts.hostname or ""):
        return None
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    return proxy if proxy and proxy.startswith("http") else None


def with_path(url: str, path: str) -> str:
    """An address with `path` at the end of its own path, which may hold it already; its query,
    such as Azure's `api-version`, stays where it is.
    """
    parts = urlsplit(without_path(url, path))
    return urlunsplit(parts._replace(path=parts.path + path))


def without_path(url: str, path: str) -> str:
    """An address without `path` at the end of its own."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix(path)))
