"""The machine to plan for: from a table, or measured by `nullsae plan --calibrate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.core.home import cache_folder
from nullsae.jobs.work import rates

_VERB = "import nullsae.cli.main, nullsae.config.parse"
# What a verb imports before it starts its work.
STARTS = {
    "light": f"{_VERB}, nullsae.autointerp.score",
    "torch": f"{_VERB}, nullsae.sae.train_sae",
    # A process's first optimizer loads PyTorch's compiler, although nothing uses it.
    "optimizer": f"{_VERB}, nullsae.sae.train_sae, torch._dynamo",
    "transformers": f"{_VERB}, nullsae.metrics.evaluate; "
    "from transformers import AutoModelForCausalLM; "
    "from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM",
}


def calibration_file() -> Path:
    """Return the file of this machine's measurements, which belong to no study."""
    return cache_folder() / "nullsae" / "calibration.json"


def pick_device(name: str, *, on_cpu: bool) -> tuple[rates.Device, rates.Host, str]:
    """Return the device and host to plan for, and where their rates come from.

    The name is `auto`, `cpu`, `gpu` (this machine's, calibrated), or a key of `DATA_SHEETS`; a
    study that uses only the CPU (`on_cpu`) accepts no other device.

    Raises:
        UserError: an unknown name, a GPU for a study that uses only the CPU, or a calibration that
            is missing or damaged.
    """
    file = calibration_file()
    found = read_calibration(file) if file.is_file() else {}
    host = found.get("host", rates.REFERENCE_HOST)
    if name == "auto":
        name = "cpu" if on_cpu else "gpu" if "gpu" in found else "a100"
    sheets = ", ".join(rates.DATA_SHEETS)
    if on_cpu and name in ("gpu", *rates.DATA_SHEETS):
        raise UserError(
            f"--device: {name!r}, but the study uses only the CPU; set compute.device: auto"
        )
    if name in rates.DATA_SHEETS:
        return rates.data_sheet_device(name), host, "data sheet, with assumed shares of its peaks"
    if name in ("cpu", "gpu") and name in found:
        return found[name], host, f"measured here ({file})"
    if name == "cpu":
        return rates.REFERENCE_CPU, host, "reference CPU, not this machine"
    if name == "gpu":
        raise UserError(
            f"--device: gpu, but no GPU was calibrated here; run nullsae plan --calibrate on a "
            f"machine with one, or choose one of {sheets}"
        )
    raise UserError(f"--device: {name!r} is not one of auto, cpu, gpu, {sheets}")


def read_calibration(file: Path) -> dict[str, Any]:
    """Read `host`, `cpu` and, if there was one, `gpu`, as written by `calibrate`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        found: dict[str, Any] = {"host": rates.Host(**given["host"])}
        found |= {name: rates.Device(**given[name]) for name in ("cpu", "gpu") if name in given}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a calibration ({error!r}); write it again with nullsae plan --calibrate"
        ) from None
    return found


def calibrate(progress: Callable[[str], None], *, rounds: int = 5) -> Path:
    """Measure this machine in at most a minute, and write the rates for later plans.

    CPU rates are for one thread, in CPU seconds, so that other work does not count. Each time is
    the least of `rounds` measurements. `progress` is called with a line for each figure.
    """
    import torch

    torch.set_num_threads(1)
    speed = rates.REFERENCE_LOOP_SECONDS / _least(_python_loop, rounds)
    found: dict[str, Any] = {"host": asdict(rates.Host(speed, _start_seconds(min(rounds, 2))))}
    devices = {"cpu": "cpu", **({"gpu": "cuda"} if torch.cuda.is_available() else {})}
    for name, device in devices.items():
        found[name] = asdict(_measured(torch.device(device), rounds))
    for part, figures in found.items():
        for name, value in figures.items():
            progress(f"{part}: {name.replace('_', ' ')}: {_shown(value)}")
    write_json(calibration_file(), found)
    return calibration_file()


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _measured(device: Any, rounds: int) -> rates.Device:
    """Measure the rates of large products and of a copy."""
    import torch

    is_gpu = device.type == "cuda"

    def product_rate(dtype: torch.dtype) -> float:
        # Many CPUs multiply float16 a hundred times slower than float32.
        n = 8192 if is_gpu else 128 if dtype == torch.float16 else 1024
        a = torch.ones(n, n, dtype=dtype, device=device)
        out = torch.empty_like(a)
        return 2.0 * n**3 / _least(lambda: torch.mm(a, a, out=out), rounds, synchronize=is_gpu)

    dtypes = ("float32", "bfloat16", "float16")
    products = {name: product_rate(getattr(torch, name)) for name in dtypes}
    source = torch.ones(2**28 if is_gpu else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = _least(lambda: target.copy_(source), rounds, synchronize=is_gpu)
    bytes_per_second = 8.0 * source.numel() / seconds
    share = rates.FORWARD_SHARE if is_gpu else rates.CPU_FORWARD_SHARE
    scale = rates.REFERENCE_CPU.bytes_per_second / bytes_per_second
    return rates.Device(
        name=torch.cuda.get_device_name() if is_gpu else "cpu",
        forward_flops_per_second={name: rate * share for name, rate in products.items()},
        product_flops_per_second=products["float32"],
        bytes_per_second=bytes_per_second,
        element_seconds=0.0 if is_gpu else rates.REFERENCE_CPU.element_seconds * scale,
        is_gpu=is_gpu,
    )


def _least(action: Callable[[], object], rounds: int, *, synchronize: bool = False) -> float:
    """Return the least time of several rounds: CPU seconds, or wall-clock seconds on a GPU."""

    def once() -> None:
        import torch

        action()
        if synchronize:
            torch.cuda.synchronize()

    once()
    clock = time.perf_counter if synchronize else time.process_time
    return min(timeit.repeat(once, timer=clock, number=1, repeat=rounds))


def _python_loop() -> int:
    """Use integers, a dictionary and short texts, like the pure Python parts of verbs."""
    counts: dict[str, int] = {}
    for i in range(200_000):
        key = f"t{i % 997}"
        counts[key] = counts.get(key, 0) + i
    return len(counts)


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _start_seconds(rounds: int) -> dict[str, float]:
    """Measure CPU seconds until a verb starts its work, by what it imports."""
    found = {}
    for name, code in STARTS.items():
        run = partial(subprocess.run, [sys.executable, "-c", code], check=True)
        found[name] = min(timeit.repeat(run, timer=_children_seconds, number=1, repeat=rounds))
    found["all"] = found["transformers"] + found["optimizer"] - found["torch"]
    return found
