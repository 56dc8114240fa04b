"""What a user's mistake gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nullsae.core.errors import UserError


def refused(act: Callable[..., Any], /, *arguments: Any, **keys: Any) -> str:
    """What a call is refused with: one line."""
    with pytest.raises(UserError) as caught:
        act(*arguments, **keys)
    text = str(caught.value)
    assert "\n" not in text
    return text
