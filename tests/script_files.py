"""Imports of Python files that are in no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parents[1]


def script_module(file: str) -> ModuleType:
    """Import a file of the repository anew, by its path from there."""
    name = f"script_{Path(file).stem}"  # not that of a library
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # NamedTuple looks up its module there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
