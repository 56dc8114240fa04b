from __future__ import annotations

import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from nullsae.activations import capture as module
from nullsae.activations.capture import Portion, cache_activations
from nullsae.core import provenance
from nullsae.core.errors import UserError
from nullsae.subjects.loading import Subject, load_subject
from small_chain import SITES, Chain, capture_params, flip_byte

KEY = "key"


def capture(chain: Chain, output: Path, portion: str | None = None, key: str = KEY) -> list[str]:
    return cache_activations(
        capture_params(key=key),
        split="sae_train",
        model=chain.recipe,
        tokens=chain.train_tokens,
        output=output,
        portion=None if portion is None else Portion.parse(portion),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith("portion-")
    }


@pytest.fixture(scope="module")
def whole(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    capture(chain, folder)
    return folder


@pytest.mark.parametrize("n", [1, 3, 8, 11])
def test_portions_in_any_order_give_the_bytes_of_one_job(
    chain: Chain, tmp_path: Path, whole: Path, n: int
) -> None:
    for index in reversed(range(n)):
        capture(chain, tmp_path, f"{index}/{n}")
        assert not (tmp_path / "manifest.json").exists()
        assert (tmp_path / f"portion-{index}-of-{n}.json").is_file()
    capture(chain, tmp_path)
    assert files(tmp_path) == files(whole)


def test_a_site_names_each_machine_that_captured_a_portion_of_it(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, host in enumerate(("a", "b", "a")):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        capture(chain, tmp_path, f"{index}/3")
    monkeypatch.setattr(socket, "gethostname", lambda: "joiner")
    capture(chain, tmp_path)
    for site in SITES:
        (file,) = (tmp_path / f"site={site}").glob("provenance*")
        found = provenance.read(file)
        assert found is not None
        assert [job.host for job in found.jobs] == ["a", "b"]
    # If all sites are complete, no maker is added.
    before = file.read_bytes()
    assert capture(chain, tmp_path) == []
    assert file.read_bytes() == before
    # One shard is made again; the others stay unchanged.
    flip_byte(next((tmp_path / f"site={SITES[-1]}").glob("shard-*.safetensors")))
    assert capture(chain, tmp_path) == [SITES[-1]]
    found = provenance.read(file)
    assert found is not None
    assert [job.host for job in found.jobs] == ["a", "b", "joiner"]


def test_portions_that_run_at_once_keep_each_others_files(
    chain: Chain, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Transformers patches its classes while loading; in threads the patch could become permanent.
    lock = threading.Lock()

    def load(*of: Any) -> Subject:
        with lock:
            return load_subject(*of)

    monkeypatch.setattr(module, "shared_subject", load)
    # Shards of another config are in the place of the new ones.
    capture(chain, tmp_path, key="other")
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            capture(chain, tmp_path, f"{index}/3")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    capture(chain, tmp_path)
    assert files(tmp_path) == files(whole)


def test_the_job_after_all_portions_does_not_load_the_subject(
    chain: Chain, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2):
        capture(chain, tmp_path, f"{index}/2")

    def load(*_: object) -> Subject:
        raise AssertionError("nothing is left to compute")

    monkeypatch.setattr(module, "shared_subject", load)
    capture(chain, tmp_path)
    assert files(tmp_path) == files(whole)


def test_a_shard_damaged_meanwhile_is_captured_again(
    chain: Chain, tmp_path: Path, whole: Path
) -> None:
    for index in range(2):
        capture(chain, tmp_path, f"{index}/2")
    flip_byte(tmp_path / f"site={SITES[0]}" / "shard-00005.safetensors")
    shutil.rmtree(tmp_path / f"site={SITES[1]}")
    capture(chain, tmp_path)
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("text", ["4/4", "1", "-1/2", "a/b", "1/0"])
def test_an_invalid_portion_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--portion: .* is not one of 0/N to N-1/N"):
        Portion.parse(text)
