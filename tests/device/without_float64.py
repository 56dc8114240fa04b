"""A device that has no float64, as `mps`: `meta` by its name, with its numbers on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nullsae.core import devices

THERE = torch.device("meta")
# The only operations between a tensor there and one on the CPU: indices are moved by PyTorch.
COPY = torch.ops.aten.copy_.default
MIXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, COPY)


class There(Tensor):
    """A tensor on the device; each operation on it must be run by `Device`."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> There:
        layout = {"strides": own.stride(), "storage_offset": own.storage_offset()}
        made: There = Tensor._make_wrapper_subclass(
            cls, own.size(), **layout, dtype=own.dtype, device=THERE
        )
        made.own = own
        return made

    def tolist(self) -> Any:
        return self.own.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{func} outside of the device's mode")


def changed(given: Any, change: Callable[[Tensor], Any]) -> Any:
    """What an operation takes or returns, with its tensors changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, list | tuple):
        return type(given)([changed(each, change) for each in given])
    return given


class Device(TorchDispatchMode):
    """Runs what is asked of the device, and refuses what it could not do."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[Any] = set()
        """Operations that were run there."""
        self.undivided: set[Any] = set()
        """Operations that are not made of others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in self.undivided:
            with self:  # inference mode passes on what is made of other operations
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
            self.undivided.add(func)
        owners: dict[int, There] = {}
        strays: list[Tensor] = []

        def own(x: Tensor) -> Tensor:
            if isinstance(x, There):
                owners[id(x.own)] = x
                return x.own
            if x.dim():
                strays.append(x)
            return x

        args = changed(args, own)
        kwargs = {name: changed(given, own) for name, given in kwargs.items()}
        there = bool(owners)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]) == THERE
            kwargs["device"] = torch.device("cpu")
        elif there and func not in MIXED:
            assert not strays, f"{func} of tensors on two devices"
        found = func(*args, **kwargs)
        if func is COPY:
            there = id(args[0]) in owners
        if not there:
            return found
        self.ran.add(func)

        def wrapped(x: Tensor) -> Tensor:
            assert x.dtype != torch.float64, f"{func}: float64 on a device that has none"
            if id(x) in owners:
                return owners[id(x)]
            with torch.inference_mode(False):  # a view of what is no inference tensor is none
                return There(x)

        return changed(found, wrapped)


@contextmanager
def without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """`compute.device: mps` means this device within the block."""
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {THERE.type})

    def device_of(name: str) -> torch.device:
        return THERE if name == "mps" else torch.device("cpu")

    # Modules that are moved get new parameters: the data of a plain one cannot lie there.
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    # It has a fused Adam, as `mps` does.
    optimizer = import_module("torch.optim.optimizer")  # a name that torch.optim deletes
    name = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(optimizer, name, lambda: [THERE.type, "cpu"])
    for name, module in list(sys.modules.items()):
        if name.startswith("nullsae.") and hasattr(module, "device_of"):
            monkeypatch.setattr(module, "device_of", device_of)
    with Device() as device:
        yield device
