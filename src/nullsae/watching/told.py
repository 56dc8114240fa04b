"""Valid lines of a file of events; all others are skipped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from nullsae.core.visible import visible

# The plan's line has about 300 bytes per job.
MAX_LINE_BYTES = 2**26


def _file(name: str) -> str:
    """Check that a text can be the name of a file."""
    if "\0" in os.fsdecode(os.fsencode(name)) or not Path(name).name:
        raise ValueError("not a file name")
    return name


File = Annotated[str, Field(max_length=4096), AfterValidator(_file)]
Shown = Annotated[str, AfterValidator(visible)]
# Seconds since 1970, and durations.
Time = Annotated[float, Field(ge=0, le=1e11)]
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Number = Annotated[int, Field(ge=-1, lt=2**63)]


class _Told(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class PlannedJob(_Told):
    """A job of the run."""

    job: Number
    rule: Shown
    stage: Shown
    log: File | None
    needs: list[Number]
    seconds: Seconds | None
    gpu: bool
    threads: Annotated[int, Field(ge=1, lt=2**63)]


class Planned(_Told):
    """The first line: the run's jobs and resources."""

    event: Literal["planned"]
    time: Time
    host: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    cores: int | None
    jobs_at_once: int | None
    gpus: int | None
    keeps_going: bool
    stages: list[Shown] = []
    """All stages of the workflow, in order; older files have none."""
    jobs: list[PlannedJob]
    replies: File | None
    max_cost_usd: Annotated[float, Field(ge=0, le=1e12)] | None


class OfJob(_Told):
    """A job started or finished."""

    event: Literal["started", "finished"]
    time: Time
    job: Number


class Failed(_Told):
    """A job failed."""

    event: Literal["failed"]
    time: Time
    job: Number
    logs: list[File]


class Error(_Told):
    """Another error of Snakemake."""

    event: Literal["error"]
    time: Time
    text: str


class Ended(_Told):
    """Snakemake exited."""

    event: Literal["ended"]
    time: Time


Event = Planned | OfJob | Failed | Error | Ended
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_event(line: bytes) -> Event | None:
    """Parse an event from a line of JSON; None for any other line."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        return _EVENT.validate_json(line)
    except ValueError:  # includes pydantic's errors
        return None
