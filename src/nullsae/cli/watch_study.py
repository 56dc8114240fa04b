"""`nullsae watch`: show a study's run from outside."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from nullsae.watching.run import newest_run
from nullsae.watching.screen import show


def watch_study(study: Path) -> None:
    """Show the newest run below a folder until it ends or Ctrl-C is pressed.

    Raises:
        UserError: there is none.
    """
    run = newest_run(study)
    with suppress(KeyboardInterrupt):
        show(run, Console(), threading.Event(), problems=True)
