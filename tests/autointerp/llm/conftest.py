from __future__ import annotations

import sys
from pathlib import Path

# The scripted server serves the judges' tests too, which lie one folder up.
sys.path.insert(0, str(Path(__file__).parents[1]))
