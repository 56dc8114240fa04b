from __future__ import annotations

import json
import resource
import struct
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullsae.activations.shards import finished_shards
from nullsae.activations.store import SiteReader, SiteWriter, document_of, is_complete
from nullsae.core.errors import UserError
from nullsae.core.files import checksum
from nullsae.subjects.loading import DTYPES
from refusing import refused
from small_chain import all_rows, flip_byte, write_site

SITE = "resid_post.1"


def randn(n: int, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n)) * 3 + 1


def names(folder: Path) -> list[str]:
    """Return the files of a site, without its provenance."""
    found = sorted(file.name for file in folder.iterdir())
    return [name for name in found if name != "provenance.json"]


def refusal(manifest: Path, *, key: str = "") -> str:
    text = refused(lambda: SiteReader.open(manifest, SITE, key=key).check())
    assert f"snakemake --cores all --resources gpu=1 --forcerun {manifest}" in text
    return text


def test_rows_and_positions_are_read_back_unchanged(tmp_path: Path) -> None:
    x, position = randn(50), torch.randperm(50, generator=torch.Generator().manual_seed(1))
    manifest = write_site(tmp_path, x, [20, 20, 10], position=position)
    found, at = all_rows(manifest, SITE)
    assert torch.equal(found, x)
    assert torch.equal(at, position)
    reader = SiteReader.open(manifest, SITE, key="key")
    reader.check()
    assert (reader.n_shards, reader.n_tokens, reader.d_model) == (3, 50, 5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_manifest_describes_the_stored_numbers(tmp_path: Path, dtype: str) -> None:
    """The statistics are those of the stored values, after the cast."""
    manifest = write_site(tmp_path, randn(1400), [30, 1370], dtype=dtype)
    found, _ = all_rows(manifest, SITE)
    reader = SiteReader.open(manifest, SITE)
    exact = found.double()
    torch.testing.assert_close(reader.mean(), exact.mean(dim=0), rtol=1e-14, atol=1e-15)
    norm = np.linalg.norm(exact.numpy(), axis=1).mean()
    assert reader.manifest["mean_norm"] == pytest.approx(norm, rel=1e-14)
    assert reader.manifest["dtype"] == dtype
    assert [shard["n_tokens"] for shard in reader.manifest["shards"]] == [30, 1370]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch=st.integers(1, 12),
    limit=st.none() | st.integers(1, 50),
)
@settings(max_examples=30, deadline=None)
def test_batches_cross_the_ends_of_shards(sizes: list[int], batch: int, limit: int | None) -> None:
    n = sum(sizes)
    x = torch.arange(n, dtype=torch.float32)[:, None]
    with tempfile.TemporaryDirectory() as folder:
        reader = SiteReader.open(write_site(Path(folder), x, sizes), SITE)
        found = list(reader.batches(batch, max_tokens=limit))
    wanted = min(n, limit or n)
    assert [len(b) for b, _ in found[:-1]] == [batch] * ((wanted - 1) // batch)
    assert torch.equal(torch.cat([b for b, _ in found]), x[:wanted])
    assert torch.equal(torch.cat([p for _, p in found]), torch.arange(wanted))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_shard_is_a_valid_safetensors_file(tmp_path: Path, dtype: str) -> None:
    """Its data and header equal those of safetensors' own writer."""
    x, position = randn(1100).to(DTYPES[dtype]), torch.arange(7, 1107)
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(3))
    writer = SiteWriter(tmp_path / "ours", dtype=dtype)
    writer.write(0, x, position, order)
    norm = x[order].double().norm(dim=1).float()
    theirs = {"activations": x[order], "norm": norm, "position": position[order]}
    save_file(theirs, tmp_path / "theirs.safetensors")
    shard = tmp_path / "ours/shard-00000.safetensors"
    found = load_file(shard)
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=1e-6 * (name == "norm"), atol=0)
    theirs["norm"] = found["norm"]
    save_file(theirs, tmp_path / "theirs.safetensors")
    ours, other = shard.read_bytes(), (tmp_path / "theirs.safetensors").read_bytes()
    (n,), (m,) = struct.unpack("<Q", ours[:8]), struct.unpack("<Q", other[:8])
    assert n % 8 == 0, "tensors that are not aligned cannot be mapped"
    assert ours[8 + n :] == other[8 + m :]
    assert json.loads(ours[8 : 8 + n]) == json.loads(other[8 : 8 + m])
    assert json.loads(shard.with_suffix(".json").read_text())["checksum"] == checksum(shard)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    writer = SiteWriter(tmp_path, dtype="float32")
    writer.write(0, torch.ones(4, 3), torch.arange(4))
    x = torch.ones(1300, 3)
    x[2, 1] = x[905, 0] = bad
    with pytest.raises(UserError, match=r"shard-00001.safetensors: row 2 \(token 42\) is NaN"):
        writer.write(1, x, torch.arange(40, 1340))
    order = torch.arange(1299, -1, -1)  # row 905 comes first, as row 394; it is token 945
    with pytest.raises(UserError, match=r"shard-00001.safetensors: row 394 \(token 945\) is NaN"):
        writer.write(1, x, torch.arange(40, 1340), order)
    x[905, 0] = 1.0  # in a later piece than the first
    with pytest.raises(UserError, match=r"shard-00001.safetensors: row 1297 \(token 42\) is NaN"):
        writer.write(1, x, torch.arange(40, 1340), order)
    assert names(tmp_path) == ["shard-00000.json", "shard-00000.safetensors"]


def write_three(folder: Path, *, key: str = "key", only: Collection[int] = (0, 1, 2)) -> SiteWriter:
    """Write some shards of a site of three; leave it unfinished."""
    kept = finished_shards(folder, key=key)
    writer = SiteWriter(folder, dtype="bfloat16", key=key, keep=kept)
    for index, n in enumerate((600, 20, 7)):
        if index in only and index not in kept:
            writer.write(index, randn(n).bfloat16(), torch.arange(n))
    return writer


@pytest.mark.parametrize("first", [(), (0,), (1,), (0, 1), (0, 2), (0, 1, 2)])
def test_an_interrupted_write_ends_in_the_same_files(
    tmp_path: Path, first: tuple[int, ...]
) -> None:
    write_three(tmp_path / "whole").finish(key="key")
    cut = tmp_path / "cut"
    write_three(cut, only=first)
    stamps = {name: (cut / name).stat().st_mtime_ns for name in names(cut)} if first else {}
    assert finished_shards(cut, key="key").keys() == set(first)
    writer = write_three(cut)
    assert {name: (cut / name).stat().st_mtime_ns for name in stamps} == stamps, "written again"
    writer.finish(key="key")
    assert names(cut) == names(tmp_path / "whole")
    for name in names(cut):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_shard_without_a_record_is_not_kept(tmp_path: Path) -> None:
    shard, record = tmp_path / "shard-00001.safetensors", tmp_path / "shard-00001.json"
    breaks: list[Callable[[], object]] = [
        lambda: flip_byte(shard),
        lambda: shard.write_bytes(shard.read_bytes()[:-1]),
        lambda: shard.unlink(),
        lambda: record.unlink(),
        lambda: record.write_text("{"),
        lambda: record.write_text(record.read_text().replace('"key": "key"', '"key": "old"')),
    ]
    for damage in breaks:
        write_three(tmp_path)
        damage()
        assert finished_shards(tmp_path, key="key") == {0: 600, 2: 7}
    assert finished_shards(tmp_path, key="other") == {}
    write_three(tmp_path, key="")
    assert finished_shards(tmp_path, key="") == {}


def test_files_of_another_config_or_a_killed_writer_are_removed(tmp_path: Path) -> None:
    write_three(tmp_path, key="old").finish(key="old")
    write_three(tmp_path, key="old", only=(0, 1))
    (tmp_path / ".shard-00002.77.partial.safetensors").write_bytes(b"half")
    (tmp_path / "shard-00009.safetensors").write_bytes(b"nobody's")
    write_three(tmp_path, key="key", only=(1,))
    assert names(tmp_path) == ["shard-00001.json", "shard-00001.safetensors"]


def test_a_damaged_shard_costs_no_other_shard_of_its_site(tmp_path: Path) -> None:
    """Their records were deleted when the site was finished."""
    write_three(tmp_path / "whole").finish(key="key")
    site = tmp_path / "site"
    write_three(site).finish(key="key")
    flip_byte(site / "shard-00001.safetensors")
    assert finished_shards(site, key="other") == {}
    before = (site / "shard-00000.safetensors").stat().st_mtime_ns
    assert finished_shards(site, key="key") == {0: 600, 2: 7}
    write_three(site).finish(key="key")
    assert (site / "shard-00000.safetensors").stat().st_mtime_ns == before
    for name in names(tmp_path / "whole"):
        assert (site / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_gives_one_line_and_leaves_no_partial_shard(tmp_path: Path) -> None:
    writer = write_three(tmp_path, only=(1, 2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(UserError, match=r"shard-00000.safetensors: cannot be written: ") as e:
            writer.write(0, randn(600).bfloat16(), torch.arange(600))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(e.value)
    assert finished_shards(tmp_path, key="key") == {1: 20, 2: 7}
    assert len(names(tmp_path)) == 4


def test_a_damaged_shard_is_noticed(tmp_path: Path) -> None:
    for name in ("flipped", "truncated", "deleted"):
        manifest = write_site(tmp_path / name, randn(40), [20, 20])
        folder = manifest.parent / f"site={SITE}"
        assert is_complete(folder, key="key")
        shard = folder / "shard-00001.safetensors"
        if name == "flipped":
            flip_byte(shard)
        elif name == "truncated":
            shard.write_bytes(shard.read_bytes()[:-8])
        else:
            shard.unlink()
        wanted = "the file is missing" if name == "deleted" else "damaged"
        assert refusal(manifest).startswith(f"{shard}: {wanted}")
        assert not is_complete(folder, key="key")


def test_a_shard_that_cannot_be_parsed_is_refused(tmp_path: Path) -> None:
    manifest = write_site(tmp_path, randn(40), [40])
    shard = tmp_path / f"site={SITE}/shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:30])
    with pytest.raises(UserError, match=r"shard-00000.safetensors: .*rebuild it with: snakemake"):
        SiteReader.open(manifest, SITE).stored(0)


def test_activations_of_another_config_are_refused(tmp_path: Path) -> None:
    manifest = write_site(tmp_path, randn(10), [10], key="old")
    assert "made from another config (key old, wanted new)" in refusal(manifest, key="new")
    assert not is_complete(tmp_path / f"site={SITE}", key="new")
    SiteReader.open(manifest, SITE, key="old")


def test_a_missing_or_broken_manifest_is_refused(tmp_path: Path) -> None:
    manifest = write_site(tmp_path, randn(10), [10])
    own = tmp_path / f"site={SITE}/manifest.json"
    own.write_text(own.read_text()[:-20])
    assert refusal(manifest).startswith(f"{own}: not readable as JSON")
    own.unlink()
    assert refusal(manifest).startswith(f"{own}: the file is missing")
    assert not is_complete(own.parent, key="key")


def test_old_shards_are_removed_by_a_new_capture(tmp_path: Path) -> None:
    write_site(tmp_path, randn(40), [10, 10, 10, 10])
    write_site(tmp_path, randn(20), [20])
    assert names(tmp_path / f"site={SITE}") == ["manifest.json", "shard-00000.safetensors"]


def test_the_manifest_contains_no_time_and_does_not_depend_on_the_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_site(tmp_path / name, randn(40), [20, 20])
    one, two = (tmp_path / name / f"site={SITE}" for name in ("one", "two"))
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes()
    assert set(json.loads((one / "manifest.json").read_text())) == {
        *("key", "site", "split", "context_tokens", "tokens_checksum", "dtype", "d_model"),
        *("n_tokens", "mean", "mean_norm", "variance", "excluded", "shards", "shards_key"),
    }


def test_tokens_get_the_document_at_their_position() -> None:
    documents = np.array([[0, 0, 1], [1, 2, 2]], dtype=np.int32)
    position = torch.tensor([5, 0, 3, 2])
    assert document_of(position, documents).tolist() == [2, 0, 1, 1]
