"""The latents of several SAEs collected by one job, none of them twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nullsae.config.latents import Latents
from nullsae.core.kept import Kept
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.latents import CollectLatentsParams, SaeBeside
from nullsae.latents import collect
from nullsae.latents import collect_all as module
from nullsae.latents.collect import OneSae, collect_latents, collect_together
from nullsae.sae.files import load_sae, save_sae
from small_chain import COMPUTE, Chain

SITE = "resid_post.1"
PLACE = "{sae}/{seed}"
FILES = {
    **{name: f"{name}.parquet" for name in ("latents", "windows", "coverage")},
    "firings": "firings.safetensors",
}


def params(n_seeds: int) -> CollectLatentsParams:
    keys = {"subject": "tiny", "variant": "trained", "draw": 0, "site": SITE, "sae": "topk"}
    others = tuple(SaeBeside(site=SITE, sae="topk", seed=seed) for seed in range(1, n_seeds))
    return CollectLatentsParams(
        seed=3,
        keys=CellKeys.model_validate({**keys, "seed": 0}),
        beside=others or None,
        latents=Latents(n_sampled=3, min_firings=1, min_pool_windows=1, window_tokens=8),
        compute=COMPUTE,
        eval_activations_key="key",
    )


@pytest.fixture
def folder(tiny_sae: Path, tmp_path: Path) -> Path:
    """Return three SAEs that differ in their encoder threshold."""
    for seed in range(3):
        coder, config = load_sae(tiny_sae)
        own = tmp_path / "saes" / PLACE.format(sae="topk", seed=seed)
        own.mkdir(parents=True)
        coder.b_enc += 0.1 * seed
        left_out = {"weights_checksum", "architecture", "d_model", "n_latents", "k"}
        save_sae(coder, own, **config.model_dump(exclude=left_out))
    return tmp_path


def run(chain: Chain, folder: Path, n_seeds: int, to: str, code: str = "code") -> dict[str, bytes]:
    """Return the files that a job leaves."""
    module.collect_all(
        params(n_seeds),
        sae=folder / "saes" / PLACE / "cfg.json",
        activations=chain.eval_activations,
        tokens=chain.eval_tokens,
        kept=Kept(folder / "kept", code),
        **{name: folder / to / PLACE / file for name, file in FILES.items()},
    )
    made = [file for file in (folder / to).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder / to)): file.read_bytes() for file in made}


def test_each_sae_gets_the_files_that_it_gets_alone(chain: Chain, folder: Path) -> None:
    found = run(chain, folder, 3, "together")
    assert len(found) == 3 * len(FILES)
    for one in params(3).each():
        place = PLACE.format(**one.keys.model_dump())
        alone = {name: folder / "alone" / place / file for name, file in FILES.items()}
        collect_latents(
            one,
            sae=folder / "saes" / place / "cfg.json",
            activations=chain.eval_activations,
            tokens=chain.eval_tokens,
            **alone,
        )
        for file in alone.values():
            assert found[f"{place}/{file.name}"] == file.read_bytes(), file
    assert len({found[f"topk/{seed}/windows.parquet"] for seed in range(3)}) == 3


def test_only_a_new_sae_is_read(
    chain: Chain, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(saes: list[OneSae], **files: Any) -> None:
        read.extend(one.params.keys.seed for one in saes)
        collect_together(saes, **files)

    monkeypatch.setattr(module, "collect_together", counted)
    first = run(chain, folder, 2, "first")
    second = run(chain, folder, 3, "second")
    assert read == [0, 1, 2]
    assert first.items() <= second.items()
    run(chain, folder, 1, "third", code="other")
    assert read == [0, 1, 2, 0]


def test_what_is_written_of_one_sae_is_kept_though_the_job_fails_at_the_next(
    chain: Chain, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(chain, folder, 3, "whole", code="other")
    monkeypatch.setattr(module, "group_of", lambda *_: ())  # as if no activation were on disk
    plain, described = collect.describe_all, list[int]()

    def fails_at_the_second(given: CollectLatentsParams, *others: Any) -> Any:
        described.append(given.keys.seed)
        if described == [0, 1]:
            raise KeyboardInterrupt
        return plain(given, *others)

    monkeypatch.setattr(collect, "describe_all", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(chain, folder, 3, "again")
    assert run(chain, folder, 3, "again") == whole
    assert described == [0, 1, 1, 2]
