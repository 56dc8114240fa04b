"""Checkpoints are written in pieces, and read into existing tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from nullsae.core import tensor_pieces
from nullsae.core.checkpoint import DAMAGED, SavedState, save_state, save_tensors
from nullsae.core.files import drop_partial
from nullsae.core.tensor_pieces import TORCH_TYPES


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exotic() -> dict[str, Tensor]:
    """Return every dtype that a file can store, and tensors that are not contiguous."""
    base = numbers(6, 8)
    some = torch.arange(12).reshape(3, 4)
    found = {f"type.{name}": some.to(dtype) for name, dtype in TORCH_TYPES.items()}
    return found | {
        "complex": torch.complex(base, -base).conj(),
        "imaginary": torch.complex(base, -base).conj().imag,
        "empty": torch.zeros(0, 3),
        "empty inside": torch.zeros(2, 0, 5, dtype=torch.int64),
        "scalar": torch.tensor(3.5),
        "transposed": base.T,
        "every other": base[::2, 1::3],
        "row of a column": base[:, 3],
        "one row, three times": base[2].expand(3, 8),
        "shared": base,
        "shared again": base[1:4],
        'name with \u00e4, " and \n': torch.ones(2),
        "parameter": torch.nn.Parameter(base.clone()),
    }


@pytest.mark.parametrize("piece_bytes", [8, 40, 2**24])
def test_the_bytes_equal_those_of_the_safetensors_writer(
    tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_pieces, "PIECE_BYTES", piece_bytes)
    tensors = exotic()
    plain = {name: t.detach().resolve_conj().resolve_neg().clone() for name, t in tensors.items()}
    plain = {name: t.contiguous() for name, t in plain.items()}
    save_tensors(tmp_path / "plain", tensors)
    assert (tmp_path / "plain").read_bytes() == safetensors.torch.save(plain)
    save_state(tmp_path / "state", tensors, {})
    with safe_open(tmp_path / "state", framework="pt") as stream:
        metadata = stream.metadata()
    assert (tmp_path / "state").read_bytes() == safetensors.torch.save(plain, metadata)


@pytest.mark.parametrize("piece_bytes", [8, 40, 2**24])
def test_saved_tensors_are_read_into_existing_tensors(
    tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_pieces, "PIECE_BYTES", piece_bytes)
    tensors, texts = exotic(), {"step": "7", "history": "[\u00e4]"}
    save_state(tmp_path / "state", tensors, texts)
    saved = SavedState.open(tmp_path / "state")
    assert saved.metadata == texts
    rooms = {name: saved.room(name, torch.device("cpu")) for name in tensors}
    # Tensors to fill need not be contiguous.
    rooms["transposed"] = torch.zeros(6, 8).T
    rooms["every other"] = torch.zeros(9, 9)[::3, ::3]
    rooms["parameter"] = torch.nn.Parameter(torch.zeros(6, 8))
    addresses = {name: room.data_ptr() for name, room in rooms.items()}
    saved.read_into(rooms)
    assert {name: room.data_ptr() for name, room in rooms.items()} == addresses
    for name, tensor in tensors.items():
        one, other = (t.detach().resolve_conj().resolve_neg() for t in (tensor, rooms[name]))
        assert one.dtype == other.dtype, name
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        assert torch.equal(*raw), name


def state() -> dict[str, Tensor]:
    return {"x": numbers(50), "n": torch.arange(3)}


@pytest.mark.parametrize("where", ["length", "header", "text", "first", "last"])
def test_a_flipped_byte_anywhere_is_found(tmp_path: Path, where: str) -> None:
    path = tmp_path / "state"
    save_state(path, state(), {"step": "12345"})
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    at = {"length": 0, "header": 12, "first": start, "last": len(data) - 1}
    data[at.get(where, data.index(b"12345"))] ^= 1
    path.write_bytes(data)
    with pytest.raises(DAMAGED):
        SavedState.open(path).read_into(state())


def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, state(), {})
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"\0", whole[:20], b"", b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(DAMAGED):
            SavedState.open(path)
    path.write_bytes(whole)
    saved = SavedState.open(path)
    others = [
        {"x": torch.zeros(50)},
        {**state(), "more": torch.zeros(1)},
        {**state(), "x": torch.zeros(5, 10)},
        {**state(), "x": torch.zeros(50).double()},
    ]
    for tensors in others:
        untouched = {name: tensor.clone() for name, tensor in tensors.items()}
        with pytest.raises(ValueError, match="it holds other tensors"):
            saved.read_into(tensors)
        assert all(torch.equal(tensors[name], untouched[name]) for name in tensors)


STATE_BYTES = 256 * 2**20
MEASURED = """
import sys, torch
from pathlib import Path
from nullsae.core.checkpoint import SavedState, save_state

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

def growth(work):
    # Reset the peak to what is in memory now.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    work()
    return peak_bytes() - before

path, n_bytes = Path(sys.argv[1]), int(sys.argv[2])
# A parameter, and one that is a view of another layout.
rows = n_bytes // 2 // 4 // 1024
tensors = {"straight": torch.full((rows, 1024), 1.0)}
tensors["transposed"] = torch.full((1024, rows), 2.0).T
print(growth(lambda: save_state(path, tensors, {})))
for tensor in tensors.values():
    tensor.zero_()
print(growth(lambda: SavedState.open(path).read_into(tensors)))
assert [int(t[-1, -1]) for t in tensors.values()] == [1, 2]
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory")
def test_neither_saving_nor_loading_needs_a_second_copy_in_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "state"), str(STATE_BYTES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert (tmp_path / "state").stat().st_size > STATE_BYTES
    growths = [int(line) for line in done.stdout.split()]
    assert len(growths) == 2
    # A copy of one of the two tensors would be half of it; a piece is a sixteenth.
    assert max(growths) < STATE_BYTES / 4, growths


KILLED = """
import sys, torch
from pathlib import Path
from nullsae.core import tensor_pieces
from nullsae.core.checkpoint import save_state

real, tensor_pieces.PIECE_BYTES = tensor_pieces.pieces, 1024

def pieces(tensor):
    for i, piece in enumerate(real(tensor)):
        if i == 1:
            print("in the middle", flush=True)
            sys.stdin.read()
        yield piece

tensor_pieces.pieces = pieces
save_state(Path(sys.argv[1]), {"x": torch.zeros(4096)}, {"step": "2"})
"""


def test_a_kill_while_writing_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    before = numbers(4096)
    save_state(path, {"x": before}, {"step": "1"})
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
    assert len(list(tmp_path.iterdir())) == 2
    drop_partial(path)
    assert list(tmp_path.iterdir()) == [path]
    saved = SavedState.open(path)
    assert saved.metadata == {"step": "1"}
    found = torch.zeros(4096)
    saved.read_into({"x": found})
    assert torch.equal(found, before)
