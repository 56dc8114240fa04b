"""Make, print and write the plan of a study."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.messages import cost_usd
from nullsae.config.model_size import model_size
from nullsae.config.read import read_merged_config, study_files
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.core.visible import visible
from nullsae.jobs.resources import Needs
from nullsae.jobs.work.amounts import SizedStudy
from nullsae.jobs.work.rates import job_seconds, wall_seconds
from nullsae.planning.bills import Bill, bills
from nullsae.planning.dag import Job, by_rule, planned_jobs
from nullsae.planning.devices import pick_device
from nullsae.planning.schedule import list_schedule, peak_disk_bytes
from nullsae.planning.sizes import corpus_sizes, subject_sizes
from nullsae.planning.trusted import plug_ins, trusted_keys

CORES_PER_GPU = 16
# A narrower terminal gets a plan without the columns that are needed least.
WIDE = 110
# Columns of a plan: sums over the jobs of a rule, and requests of its largest job.
SUMMED, LARGEST = ("tokens", "flops", "written_bytes"), ("megabytes", "minutes", "disk_megabytes")


@dataclass(frozen=True)
class Row:
    """Totals of all jobs of a rule."""

    rule: str
    jobs: int
    tokens: int
    flops: float
    gpu_seconds: float
    core_seconds: float
    written_bytes: float
    calls: int
    megabytes: int
    """Memory that the largest job requests."""
    minutes: int
    """Run time that the longest job requests."""
    disk_megabytes: int
    """Disk that the job that writes most requests."""
    sizes_are_known: bool
    """Whether requests are computed from sizes, rather than defaults for unknown sizes."""


@dataclass(frozen=True)
class Plan:
    """Estimates of a study."""

    rows: list[Row]
    device: str
    rates: str
    """Where the device's rates come from."""
    gpus: int
    cores: int
    longest_chain_seconds: float
    seconds: float
    """Wall-clock time on these, without waiting for language models."""
    disk_bytes: float
    """Peak disk use: results, and checkpoints of running trainings."""
    bills: list[dict[str, Any]]
    calls_are_counted: bool
    tokens_are_counted: bool

    def total(self, name: str) -> float:
        """Return the sum of a column over all rules."""
        return float(sum(getattr(row, name) for row in self.rows))


def make_plan(
    config: Config, root: Path, *, device: str = "auto", gpus: int = 1, cores: int | None = None
) -> Plan:
    """Estimate a study as if it had no results.

    Numbers of tokens and windows are taken from `results/` in `root` if they are there. The device
    is as in `pick_device`; `gpus` counts only if it is a GPU. CPU cores are by default this
    machine's, or 16 per GPU.

    Raises:
        UserError: the device or a size is unknown.
    """
    judges = {
        name: model_size(scorer.model_in_job, f"config: scorers.{name}.model")
        for name, scorer in config.scorers.items()
        if scorer.model_in_job is not None
    }
    study = SizedStudy(config, subject_sizes(config), corpus_sizes(config, root), judges)
    machine, host, rates = pick_device(device, on_cpu=config.compute.device == "cpu")
    core = pick_device("cpu", on_cpu=True)[0]
    if cores is None:
        cores = CORES_PER_GPU * gpus if machine.is_gpu else os.cpu_count() or 1
    jobs, threads, walls = planned_jobs(study, root), config.compute.threads, []
    for job in jobs:
        job.on_gpu = machine.is_gpu and job.work.gpu
        job.seconds = job_seconds(job.work, machine if job.on_gpu else core, host)
        alone = wall_seconds(job.work, job.seconds, host, threads)
        walls.append(job.seconds if job.on_gpu else alone)
    on_gpu, slots = [job.on_gpu for job in jobs], max(1, cores // threads)
    needs = [job.needs for job in jobs]
    schedule = list_schedule(needs, walls, uses_gpu=on_gpu, gpus=gpus, slots=slots)
    found, counted = bills(config, root)
    calls = {"explain_latents": 0, "score_latents": 0}
    for (_, scorer, _), bill in found.items():
        calls["score_latents" if scorer else "explain_latents"] += bill.calls
    return Plan(
        rows=_rows(by_rule(jobs), config, calls),
        device=machine.name,
        rates=rates,
        gpus=gpus if machine.is_gpu else 0,
        cores=cores,
        longest_chain_seconds=schedule.longest_chain_seconds,
        seconds=schedule.seconds,
        disk_bytes=peak_disk_bytes(jobs, schedule),
        bills=[_bill(config, key, bill) for key, bill in found.items()],
        calls_are_counted=counted,
        tokens_are_counted=all(size.counted for size in study.corpora.values()),
    )


def _rows(found: dict[str, list[Job]], config: Config, calls: dict[str, int]) -> list[Row]:
    """Return a row per rule; `calls` are by rule."""
    rows, needs = [], Needs(config)
    for rule, jobs in found.items():
        asked = [needs.asked(rule, job.cells) for job in jobs]
        rows.append(
            Row(
                rule=rule,
                jobs=len(jobs),
                gpu_seconds=sum(job.seconds for job in jobs if job.on_gpu),
                core_seconds=sum(job.seconds for job in jobs if not job.on_gpu),
                calls=calls.get(rule, 0),
                sizes_are_known=all(each.known for each in asked),
                **{n: sum(getattr(job.work, n) for job in jobs) for n in SUMMED},
                **{n: max(getattr(each, n) for each in asked) for n in LARGEST},
            )
        )
    return rows


def _bill(config: Config, key: tuple[str, str, str], bill: Bill) -> dict[str, Any]:
    explainer, scorer, model = key
    price = config.llm.prices.get(model)
    share = price.batch_share if config.llm.batch and price is not None else 1.0
    cost = share * cost_usd(price, bill.prompt_tokens, bill.completion_tokens)
    named = {"explainer": explainer, "scorer": scorer, "model": model}
    return {**named, **asdict(bill), "cost_usd": cost if price is not None else None}


def print_plan(
    root: Path,
    overlays: list[Path],
    *,
    device: str = "auto",
    gpus: int = 1,
    cores: int | None = None,
    json_file: Path | None = None,
) -> None:
    """Print estimates of jobs, operations, time, disk, LLM calls and cost, and what was paid.

    `root` has `config.yaml`, into which the overlays are merged in order, and `results/`; device,
    GPUs and cores are as for `make_plan`. The plan is also written to `json_file`.

    Raises:
        UserError: the config has a mistake, or a file cannot be written.
    """
    config = read_merged_config(study_files(root, overlays))
    console = Console() if Console().is_terminal else Console(width=120)
    _print_trusted(console, config)
    plan = make_plan(config, root, device=device, gpus=gpus, cores=cores)
    if json_file is not None:
        try:
            write_json(json_file, asdict(plan))
        except OSError as error:
            raise UserError(f"--json: {json_file} cannot be written ({error.strerror})") from None
    print_rules(console, plan)
    on = f"{plan.gpus} x {plan.device}, " if plan.gpus else ""
    console.print(
        f"Time: {time_text(plan.seconds)} on {on}{plan.cores} cores; "
        f"at least {time_text(plan.longest_chain_seconds)}, the longest chain of jobs. Waiting for "
        f"language models is not included. Rates: {plan.rates}."
    )
    console.print(
        f"Disk: at most {_amount(plan.disk_bytes)}B, of which "
        f"{_amount(plan.total('written_bytes'))}B stay."
    )
    if not plan.tokens_are_counted:
        console.print("The tokens of the corpus are estimated from its characters.")
    _print_bills(console, plan, config, root)


def _print_trusted(console: Console, config: Config) -> None:
    """Name what nullsae cannot check, before any of it is used."""
    keys, added = trusted_keys(config), plug_ins()
    if keys:
        console.print("This config is trusted with (see SECURITY.md):", markup=False)
    # One line each at any width, to be read, searched and copied whole.
    for found in keys:
        line = f"  {found.key}: {found.value} ({found.does})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if added:
        console.print("These installed packages extend nullsae, and run with each command:")
    for line in added:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def print_rules(console: Console, plan: Plan) -> None:
    """Print a line per rule, with the columns that this terminal's width and this plan have."""
    narrow = console.width < WIDE
    hidden = {"tokens", "FLOPs"} if narrow else set()
    hidden |= {"GPU hours"} if not plan.gpus else set()
    hidden |= {"LLM calls"} if not plan.total("calls") else set()

    def cells(row: Any) -> dict[str, str]:
        found = {
            "jobs": f"{row('jobs'):,.0f}",
            "tokens": _amount(row("tokens")),
            "FLOPs": f"{row('flops'):.1e}" if row("flops") else "0",
            "GPU hours": _hours(row("gpu_seconds")),
            "core hours": _hours(row("core_seconds")),
            "written": _amount(row("written_bytes")) + "B" if row("written_bytes") else "",
            "LLM calls": f"{row('calls'):,.0f}" if row("calls") else "",
        }
        return {name: text for name, text in found.items() if name not in hidden}

    table = Table(title="Jobs of a study without results", title_justify="left")
    if narrow:
        table.box, table.padding, table.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False
    table.add_column("rule", no_wrap=True)
    for name in (*cells(plan.total), "memory", "time"):
        head = name.replace(" ", "\n") if narrow else name
        table.add_column(head, justify="right", no_wrap=True)
    for row in plan.rows:
        asked = (_amount(row.megabytes * 1e6) + "B", f"{row.minutes:,} min")
        each = cells(lambda name, row=row: getattr(row, name))
        table.add_row(row.rule, *each.values(), *asked)
    table.add_section()
    table.add_row("all", *cells(plan.total).values())
    console.print(table)
    console.print("Memory and time: what a rule's largest job requests at its first attempt.")
    if unknown := [row.rule for row in plan.rows if not row.sizes_are_known]:
        console.print(
            f"Some sizes are not known without network access or at once, so jobs of "
            f"{', '.join(unknown)} request defaults that fit most studies."
        )


def _print_bills(console: Console, plan: Plan, config: Config, root: Path) -> None:
    if not plan.bills:
        console.print("This study's explainers and scorers use no language model endpoint.")
        return
    names = ("explainer", "scorer", "model")
    numbers = ("jobs", "calls", "prompt_tokens", "completion_tokens")
    table = Table(*names, title="Requests to language models", title_justify="left")
    for name in (*numbers, "usd"):
        table.add_column(name.replace("_", " "), justify="right")
    for bill in plan.bills:
        cost = "no price" if bill["cost_usd"] is None else f"{bill['cost_usd']:,.2f}"
        counts = (f"{bill[name]:,}" for name in numbers)
        table.add_row(*(escape(visible(bill[name])) for name in names), *counts, cost)
    console.print(table)
    calls = sum(bill["calls"] for bill in plan.bills)
    costs = [bill["cost_usd"] for bill in plan.bills if bill["cost_usd"] is not None]
    price = f"about ${sum(costs):,.2f}" if costs else "at unknown prices (llm.prices)"
    if 0 < len(costs) < len(plan.bills):
        price += " and those without a price (llm.prices)"
    limit = config.llm.max_cost_usd
    said = "no limit (llm.max_cost_usd)" if limit is None else f"the limit is ${limit:,.2f}"
    most = " Calls are an upper bound: not all latents are known yet."
    unknown = "" if plan.calls_are_counted else most
    console.print(f"{calls:,} calls, {price}; {said}.{unknown}")
    file = root / config.llm.cache
    if file.is_file():
        replies = ReplyCache(file)
        n_replies, paid = replies.count(), replies.total_cost_usd()
        replies.close()
        console.print(
            f"{n_replies:,} replies are in {config.llm.cache}, for ${paid:,.2f}; these requests "
            f"are not sent again."
        )


def _amount(number: float) -> str:
    """Return a number with three digits and a prefix of powers of 1000."""
    prefixes = iter("kMGTP")
    prefix = ""
    while number >= 999.5 and prefix != "P":
        number, prefix = number / 1000, next(prefixes)
    return f"{number:.3g} {prefix}".rstrip()


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 99.5 else f"{hours:.2g}"


def time_text(seconds: float) -> str:
    """Return a time in a suitable unit."""
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
