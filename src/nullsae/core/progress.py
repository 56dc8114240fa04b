"""Progress bars on a terminal, nothing elsewhere: logs stay short."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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


class Bar:
    """Call it with (done, total) or (done, total, a figure to show)."""

    def __init__(self, progress: rich_progress.Progress, description: str) -> None:
        self.progress = progress
        self.task = progress.add_task(description, total=None, figure="")

    def __call__(self, done: int, total: int, figure: float | str | None = None) -> None:
        shown = f"{figure:.4f}" if isinstance(figure, float) else figure or ""
        self.progress.update(self.task, completed=done, total=total, figure=shown)


@contextmanager
def bar(description: str, unit: str) -> Iterator[Bar]:
    """A progress bar on stderr with rate and time left; silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        _Rate(unit),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[figure]}"),
    )
    with rich_progress.Progress(
        *columns, console=console, disable=not sys.stderr.isatty()
    ) as progress:
        yield Bar(progress, description)
