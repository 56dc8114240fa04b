"""Speeds of machines: the reference CPU, and GPUs by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae.jobs.work.amounts import Work


@dataclass(frozen=True)
class Device:
    """A device that runs numerical jobs, with achieved rates rather than data-sheet ones."""

    name: str
    forward_flops_per_second: dict[str, float]
    """Rate of a transformer's passes, by dtype; for a CPU, of one core."""
    product_flops_per_second: float
    """Rate of dense products in float32."""
    bytes_per_second: float
    """Memory bandwidth, counting both reads and writes."""
    element_seconds: float
    """Time per token, block and dimension of a forward pass, besides its products."""
    is_gpu: bool

    def seconds(self, work: Work) -> float:
        """Return the time of a job's work on the device."""
        return (
            work.forward_flops / self.forward_flops_per_second[work.dtype]
            + work.forward_elements * self.element_seconds
            + work.product_flops / self.product_flops_per_second
            + work.moved_bytes / self.bytes_per_second
        )


@dataclass(frozen=True)
class Host:
    """The CPU core that runs Python."""

    speed: float
    """Speed of Python relative to the reference CPU."""
    start_seconds: dict[str, float]
    """CPU seconds until a verb starts its work, by what it imports."""

    def seconds(self, work: Work) -> float:
        """Return the time of a job's work on the host."""
        return self.start_seconds[work.imports] + work.host_seconds / self.speed


# Measured by `nullsae plan --calibrate` on one core of an AMD EPYC.
REFERENCE_HOST = Host(
    1.0, {"light": 0.6, "torch": 2.2, "optimizer": 4.4, "transformers": 6.2, "all": 8.4}
)
REFERENCE_LOOP_SECONDS = 0.0335
# A forward pass reaches this share of the rate of large products: measured at widths 256 and 512.
CPU_FORWARD_SHARE = 0.8
REFERENCE_CPU = Device(
    name="cpu",
    forward_flops_per_second={"float32": 66e9, "bfloat16": 127e9, "float16": 0.7e9},
    product_flops_per_second=82e9,
    bytes_per_second=23e9,
    element_seconds=25e-9,
    is_gpu=False,
)
# Peak rates by the makers' data sheets (docs/plan.md): float32 without tensor cores, bfloat16 with
# them and without sparsity, bytes per second. The shares achieved for float32 products, for passes
# in Transformers, and for memory are assumed, not measured.
DATA_SHEETS = {
    "a100": ("A100 80 GB", 19.5e12, 312e12, 2.0e12),
    "h100": ("H100 SXM", 67e12, 989e12, 3.35e12),
    "l40s": ("L40S", 91.6e12, 362e12, 0.864e12),
    "rtx4090": ("RTX 4090", 82.6e12, 165e12, 1.008e12),
    "a6000": ("RTX A6000", 38.7e12, 155e12, 0.768e12),
}
PRODUCT_SHARE, FORWARD_SHARE, MEMORY_SHARE = 0.8, 0.35, 0.7


def data_sheet_device(key: str) -> Device:
    """Return a GPU by its data sheet and the assumed shares."""
    name, float32, bfloat16, memory = DATA_SHEETS[key]
    product, half = float32 * PRODUCT_SHARE, bfloat16 * FORWARD_SHARE
    forward = {"float32": product, "bfloat16": half, "float16": half}
    return Device(name, forward, product, memory * MEMORY_SHARE, 0.0, is_gpu=True)


def job_seconds(work: Work, device: Device, host: Host) -> float:
    """Return the time of a job on a GPU, or its CPU seconds."""
    return device.seconds(work) + host.seconds(work)


def wall_seconds(work: Work, cpu_seconds: float, host: Host, threads: int) -> float:
    """Return the time of a job on the CPU, whose threads share all but the host's part."""
    alone = host.seconds(work)
    return alone + (cpu_seconds - alone) / threads
