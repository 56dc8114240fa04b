"""nullsae: placebo-controlled interpretability of sparse autoencoders.

`import nullsae` loads no torch: the functions below import what they need on first use.
docs/python.md shows how to use them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nullsae.api.dictionaries import load_sae, null_dictionary
    from nullsae.api.latents import collect
    from nullsae.api.models import randomize
    from nullsae.api.scores import contrast, verdict
    from nullsae.core.errors import UserError
    from nullsae.sae.autoencoder import Autoencoder
    from nullsae.sae.transcoder import Transcoder

__version__ = "0.1.0"
__all__ = [
    "Autoencoder",
    "Transcoder",
    "UserError",
    "collect",
    "contrast",
    "load_sae",
    "null_dictionary",
    "randomize",
    "verdict",
]

_HOMES = {
    "Autoencoder": "sae.autoencoder",
    "Transcoder": "sae.transcoder",
    "UserError": "core.errors",
    "collect": "api.latents",
    "contrast": "api.scores",
    "load_sae": "api.dictionaries",
    "null_dictionary": "api.dictionaries",
    "randomize": "api.models",
    "verdict": "api.scores",
}

# Type checkers read the imports above instead, so that unknown attributes are errors.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name from its module."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
