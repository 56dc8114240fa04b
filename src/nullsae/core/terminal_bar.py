"""A progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text


class _Rate(rich_progress.ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: rich_progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self.unit}/s")


@contextmanager
def terminal_bar(description: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar with rate and time left on stderr; yield its update(done, total, figure)."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        _Rate(unit),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[figure]}"),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=None, figure="")

        def update(done: int, total: int, figure: str) -> None:
            progress.update(task, completed=done, total=total, figure=figure)

        yield update
