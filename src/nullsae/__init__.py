"""nullsae: placebo-controlled interpretability of sparse autoencoders.

The functions below load what they need when they are first used: `import nullsae` loads no torch.
docs/python.md shows them at work.
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

# Type checkers read the imports above, and know no other attribute.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The public function of this name, from the module that it stands in."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
