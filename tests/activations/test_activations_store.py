from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.activations.store import SiteReader, SiteWriter, document_of, is_complete
from nullsae.errors import UserError
from small_chain import all_rows, flip_byte, write_site

SITE = "resid_post.1"


def randn(n: int, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n)) * 3 + 1


def refusal(manifest: Path, *, key: str = "") -> str:
    with pytest.raises(UserError) as caught:
        SiteReader.open(manifest, SITE, key=key).check()
    text = str(caught.value)
    assert "\n" not in text
    assert f"snakemake --cores all --resources gpu=1 --forcerun {manifest}" in text
    return text


def test_rows_or_positions_come_back_changed(tmp_path: Path) -> None:
    x, position = randn(50), torch.randperm(50, generator=torch.Generator().manual_seed(1))
    manifest = write_site(tmp_path, x, [20, 20, 10], position=position)
    found, at = all_rows(manifest, SITE)
    assert torch.equal(found, x)
    assert torch.equal(at, position)
    reader = SiteReader.open(manifest, SITE, key="key")
    reader.check()
    assert (reader.n_shards, reader.n_tokens, reader.d_model) == (3, 50, 5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_manifest_describes_other_numbers_than_are_stored(tmp_path: Path, dtype: str) -> None:
    """The statistics are those of the stored values, after the cast."""
    manifest = write_site(tmp_path, randn(64), [30, 34], dtype=dtype)
    found, _ = all_rows(manifest, SITE)
    reader = SiteReader.open(manifest, SITE)
    exact = found.double()
    torch.testing.assert_close(reader.mean(), exact.mean(dim=0), rtol=1e-14, atol=1e-15)
    norm = np.linalg.norm(exact.numpy(), axis=1).mean()
    assert reader.manifest["mean_norm"] == pytest.approx(norm, rel=1e-14)
    assert reader.manifest["dtype"] == dtype
    assert [shard["n_tokens"] for shard in reader.manifest["shards"]] == [30, 34]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch=st.integers(1, 12),
    limit=st.none() | st.integers(1, 50),
)
@settings(max_examples=30, deadline=None)
def test_batches_stop_at_the_ends_of_shards(
    sizes: list[int], batch: int, limit: int | None
) -> None:
    n = sum(sizes)
    x = torch.arange(n, dtype=torch.float32)[:, None]
    with tempfile.TemporaryDirectory() as folder:
        reader = SiteReader.open(write_site(Path(folder), x, sizes), SITE)
        found = list(reader.batches(batch, max_tokens=limit))
    wanted = min(n, limit or n)
    assert [len(b) for b, _ in found[:-1]] == [batch] * ((wanted - 1) // batch)
    assert torch.equal(torch.cat([b for b, _ in found]), x[:wanted])
    assert torch.equal(torch.cat([p for _, p in found]), torch.arange(wanted))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_finite_are_stored(tmp_path: Path, bad: float) -> None:
    writer = SiteWriter(tmp_path, dtype="float32", d_model=3)
    writer.write(torch.ones(4, 3), torch.arange(4))
    x = torch.ones(6, 3)
    x[2, 1] = x[5, 0] = bad
    with pytest.raises(UserError, match=r"shard-00001.safetensors: row 2 \(token 42\) is NaN"):
        writer.write(x, torch.arange(40, 46))
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def test_a_damaged_shard_goes_unnoticed(tmp_path: Path) -> None:
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


def test_a_shard_that_cannot_be_parsed_gives_a_traceback(tmp_path: Path) -> None:
    manifest = write_site(tmp_path, randn(40), [40])
    shard = tmp_path / f"site={SITE}/shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:30])
    with pytest.raises(UserError, match=r"shard-00000.safetensors: .*rebuild it with: snakemake"):
        SiteReader.open(manifest, SITE).shard(0)


def test_activations_of_another_config_are_read(tmp_path: Path) -> None:
    manifest = write_site(tmp_path, randn(10), [10], key="old")
    assert "made from another config (key old, wanted new)" in refusal(manifest, key="new")
    assert not is_complete(tmp_path / f"site={SITE}", key="new")
    SiteReader.open(manifest, SITE, key="old")


def test_a_missing_or_broken_manifest_gives_a_traceback(tmp_path: Path) -> None:
    manifest = write_site(tmp_path, randn(10), [10])
    own = tmp_path / f"site={SITE}/manifest.json"
    own.write_text(own.read_text()[:-20])
    assert refusal(manifest).startswith(f"{own}: not readable as JSON")
    own.unlink()
    assert refusal(manifest).startswith(f"{own}: the file is missing")
    assert not is_complete(own.parent, key="key")


def test_old_shards_survive_a_new_capture(tmp_path: Path) -> None:
    write_site(tmp_path, randn(40), [10, 10, 10, 10])
    write_site(tmp_path, randn(20), [20])
    names = sorted(p.name for p in (tmp_path / f"site={SITE}").iterdir())
    assert names == ["manifest.json", "shard-00000.safetensors"]


def test_the_manifest_holds_a_time_or_depends_on_the_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_site(tmp_path / name, randn(40), [20, 20])
    one, two = (tmp_path / name / f"site={SITE}" for name in ("one", "two"))
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes()
    assert set(json.loads((one / "manifest.json").read_text())) == {
        *("key", "site", "split", "context_tokens", "tokens_checksum", "dtype", "d_model"),
        *("n_tokens", "mean", "mean_norm", "shards"),
    }


def test_tokens_get_the_document_of_their_neighbour() -> None:
    documents = np.array([[0, 0, 1], [1, 2, 2]], dtype=np.int32)
    position = torch.tensor([5, 0, 3, 2])
    assert document_of(position, documents).tolist() == [2, 0, 1, 1]
