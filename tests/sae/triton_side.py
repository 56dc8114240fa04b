"""The half of test_sae_triton.py that needs Triton, run by the Python of `.venv-peers`.

   TRITON_INTERPRET=1 python triton_side.py interpret FOLDER
   python triton_side.py compile FOLDER

`interpret` reads `cases/NAME.safetensors` and `step.safetensors` in FOLDER and writes the kernels'
results to `found/`. `compile` compiles each kernel for a GPU and writes `compiled.json`. Neither
needs a GPU.
"""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nullsae.config.saes import Sae
from nullsae.sae import kernels, triton_kernels
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.kernels import Hits, HitsByLatent

# Types of rows, and the compute capability of the GPU.
TARGETS = (("bf16", torch.bfloat16, 80), ("fp32", torch.float32, 90))
WINDOW_HITS = 32  # so that few hits make a latent long


class Largest(TorchDispatchMode):
    """Record the bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.nbytes for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return made


def load(path: Path) -> dict[str, Tensor]:
    """Load tensors into their own memory, which the interpreter needs."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def products(case: dict[str, Tensor]) -> dict[str, Tensor]:
    values, latents, offsets = case["values"], case["latents"], case["offsets"]
    rows, dense = case["rows"], case["dense"]
    by = HitsByLatent(Hits(values, latents, offsets), len(rows))
    sorted_hits = (by.order, by.tokens, by.offsets)
    ones = values.new_ones(len(dense), 1)
    with Largest() as largest:
        found = {
            "decode": triton_kernels.decode(values, latents, offsets, rows),
            "dot_rows": triton_kernels.dot_rows(dense, latents, offsets, rows),
            "row_gradient": triton_kernels.row_gradient(values, *sorted_hits, dense),
            "bias_gradient": triton_kernels.row_gradient(values, *sorted_hits, ones),
        }
    return {**found, "largest": torch.tensor(largest.bytes)}


def far_rows(folder: Path) -> dict[str, Tensor]:
    """Run `decode` and `dot_rows` on rows beyond element 2^32, in a file that is mostly hole."""
    n_latents, d = 2**18 + 8, 2**14
    path = folder / "far_rows"
    with path.open("wb+") as file:
        file.truncate(n_latents * d * 2)
        # Private, so that what the interpreter writes stays in memory, page by page.
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    path.unlink()
    rows = torch.frombuffer(memory, dtype=torch.bfloat16).view(n_latents, d)
    latents = torch.tensor([0, 2**17 + 1, 2**18 + 5])
    rows[latents, :3] = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]).bfloat16()
    values, offsets = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0])
    dense = torch.zeros(1, d)
    dense[0, :3] = torch.tensor([1.0, 10.0, 100.0])
    decoded = triton_kernels.decode(values, latents, offsets, rows)
    return {
        "decode": decoded[:, :4].contiguous(),
        "dot_rows": triton_kernels.dot_rows(dense, latents, offsets, rows),
    }


def gradients(step: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute one TopK step with AuxK, all sparse products by Triton."""
    sae = Autoencoder.of(step, "topk", 3)
    recipe = Sae.of(n_latents=sae.n_latents, k=3, auxk_k=1, auxk_coefficient=0.5)
    model = recipe.training()(recipe, 3, sae)
    found, losses = model.gradients(step["x"], step["dead"])
    return {**found, "losses": torch.tensor([losses.fvu, losses.auxk], dtype=torch.float64)}


def by_triton() -> None:
    """Make `kernels` do here what it does on a GPU."""
    kernels.gpu_kernels = lambda _: triton_kernels


def interpret(folder: Path) -> None:
    triton_kernels.LEAST_WINDOW = WINDOW_HITS
    for path in sorted((folder / "cases").iterdir()):
        save_file(products(load(path)), folder / "found" / path.name)
    save_file(far_rows(folder), folder / "found" / "far.safetensors")
    by_triton()
    save_file(gradients(load(folder / "step.safetensors")), folder / "found/step.safetensors")


def compile_all(folder: Path) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    indices = dict.fromkeys(("latents", "order", "tokens", "offsets", "border_latents"), "*i64")
    sizes = dict.fromkeys(("n_tokens", "n_latents", "n_hits", "d", "window_hits"), "i32")
    found = {}
    for kernel in ("decode", "dot_rows", "long_parts", "row_gradient"):
        function = getattr(triton_kernels, f"{kernel}_kernel")
        for rows, dtype, capability in TARGETS:
            options = triton_kernels.options(4096, dtype, torch.float32)
            warps = options.pop("num_warps")
            floats = dict.fromkeys(("out", "parts", "values", "weights"), "*fp32")
            floats |= dict.fromkeys(("rows", "dense"), f"*{rows}")
            types = {**indices, **sizes, **floats, **dict.fromkeys(options, "constexpr")}
            signature = {name: types[name] for name in function.arg_names}
            # As in a call: addresses are multiples of 16, and so is d.
            aligned = {
                (place,): [["tt.divisibility", 16]]
                for place, name in enumerate(function.arg_names)
                if signature[name].startswith("*") or name == "d"
            }
            source = ASTSource(function, signature, options, aligned)
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(source, target=target, options={"num_warps": warps})
            cubin = folder / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            usage = subprocess.run(
                [cuobjdump, "--dump-resource-usage", cubin],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            used = dict(re.findall(r"\b([A-Z]+):(\d+)", usage))
            found[f"{kernel}-{rows}-{capability}"] = {
                "ptx": compiled.asm["ptx"],
                "registers": int(used["REG"]),
                "spilled_bytes": int(used["STACK"]) + int(used["LOCAL"]),
            }
    (folder / "compiled.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"interpret": interpret, "compile": compile_all}[sys.argv[1]](Path(sys.argv[2]))
