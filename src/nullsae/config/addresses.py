"""Addresses of endpoints: which are valid, which are local, and how they are shown."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from nullsae.config.keys import has_key, has_vendors_key, names_secret_parameter

INSTEAD = (
    "a config must not contain secrets; put it into an environment variable and name that in "
    "api_key_env or headers_env"
)


def is_local(url: str) -> bool:
    """Return whether an address is `localhost`, ::1, or in 127.0.0.0/8, written in four numbers.

    Other spellings (127.1, 0x7f000001, 2130706433) and names that end in `.localhost` do not
    count: programs interpret them differently.
    """
    host = (urlsplit(url).hostname or "").lower()
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback and "%" not in host


def shown_address(url: str) -> str:
    """Return an address without user name, password, fragment and values of its query."""
    parts = urlsplit(url)
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    query = "&".join(f"{'***' if has_key(name) else name}=***" for name in names)
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=netloc, query=query, fragment=""))


def check_address(url: str) -> None:
    """Check the address of an endpoint.

    Raises:
        ValueError: it is incomplete, or contains a secret, which is not shown.
    """
    if not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("remove the spaces, backslashes or control characters")
    if "@" in url:
        raise ValueError(f"it has a name or password before '@', and {INSTEAD}")
    parts = urlsplit(url)
    # Also the parameters of a path, as in /v1;token=... or /key=.../v1.
    inside = parse_qsl("&".join(re.findall(r"[^/;]+=[^/;]*", parts.path)))
    if named := [name for name, _ in inside if names_secret_parameter(name)]:
        raise ValueError(f"its path has {named[0]!r}, and {INSTEAD}")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if has_key(name):
            raise ValueError(f"its query has what looks like a key, and {INSTEAD}")
        if names_secret_parameter(name) or has_key(value):
            raise ValueError(f"its query has {name!r}, and {INSTEAD}")
    if has_vendors_key(unquote(unquote(url))):
        raise ValueError(f"it has what looks like a key, and {INSTEAD}")
    if "#" in url:
        raise ValueError("remove '#' and what follows it")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{url!r} has no scheme; write http://{url} or https://{url}")
    try:
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        port_is_one = False
    if not parts.hostname or not port_is_one:
        what = "no host" if not parts.hostname else "an impossible port"
        raise ValueError(f"{url!r} has {what}; write it like http://localhost:8000/v1")
