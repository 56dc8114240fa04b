"""Write the conda environments of this folder anew from the lock: `python envs/write_envs.py`."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
LOCK = FOLDER.parent / "requirements.lock"
SLURM = FOLDER.parent / "requirements-slurm.txt"
GPU = FOLDER / "requirements-gpu.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

ABOUT = {
    "nullsae": """\
# Everything in requirements.lock, for any machine; the `conda:` lines of the rules name this file.
#   conda env create -f envs/nullsae.yaml && conda activate nullsae
#   pip install --no-deps --no-build-isolation -e .
# and start snakemake inside it; jobs inherit the environment. On Linux x86-64 pip installs PyTorch
# for CUDA with this; nullsae-gpu.yaml pins its libraries too, nullsae-cpu.yaml does without them.
""",
    "nullsae-cpu": """\
# nullsae.yaml with PyTorch for CPUs, which is 3 GB smaller.
""",
    "nullsae-gpu": """\
# nullsae.yaml for NVIDIA GPUs on Linux x86-64: the libraries of CUDA 13 are pinned too, which needs
# a driver of version 580 or newer. Triton needs a C compiler (gcc) where GPU jobs run.
""",
    "nullsae-slurm": """\
# nullsae-gpu.yaml and the plugin for SLURM, for login and compute nodes (docs/cluster.md).
""",
}


def pins(file: Path) -> list[str]:
    """The requirements of a pip file, without comments."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def environments() -> dict[str, str]:
    """Content of each environment file, by its name."""
    lock, gpu, slurm = pins(LOCK), pins(GPU), pins(SLURM)
    cpu = [f"{pin}+cpu" if pin.startswith("torch==") else pin for pin in lock]
    packages = {
        "nullsae": lock,
        "nullsae-cpu": [f"--extra-index-url {CPU_INDEX}", *cpu],
        "nullsae-gpu": [*lock, *gpu],
        "nullsae-slurm": [*lock, *gpu, *slurm],
    }
    return {
        f"{name}.yaml": "\n".join(
            [
                ABOUT[name].rstrip("\n"),
                "# Written by envs/write_envs.py.",
                f"name: {name}",
                "channels:",
                "  - conda-forge",
                "  - nodefaults",
                "dependencies:",
                "  - python=3.11",
                "  - pip",
                "  - pip:",
                *(f"      - {pin}" for pin in listed),
            ]
        )
        + "\n"
        for name, listed in packages.items()
    }


if __name__ == "__main__":
    for name, text in environments().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
