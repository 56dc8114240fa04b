"""Which manifest of activations Snakemake looks at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.core.files import write_json
from nullsae.jobs import sae_inputs
from nullsae.jobs.activations import activations_key
from nullsae.jobs.sae_inputs import capture_again, captured_by

REPOSITORY = Path(__file__).parents[2]
VARIANTS = ("trained", "retrained", "rerandomized", "gaussian")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Write a study whose activations are captured as its config says."""
    (tmp_path / "more.yaml").write_text(f"variants: [{', '.join(VARIANTS)}]\n")
    config = read_merged_config([REPOSITORY / "config.yaml", tmp_path / "more.yaml"])
    monkeypatch.chdir(tmp_path)
    for variant in VARIANTS:
        own = keys(config, variant)
        file = Path(paths.SITE.format(**own)) / "manifest.json"
        key = activations_key(config, own["subject"], variant, 0, "sae_train")
        write_json(file, {"key": key})
    sae_inputs._key_in.cache_clear()
    yield config
    sae_inputs._key_in.cache_clear()
    capture_again(())


def keys(config: Config, variant: str) -> dict[str, str]:
    (subject,) = config.subjects
    site = config.subjects[subject].sites[0]
    own = {"subject": subject, "variant": variant, "draw": "0"}
    return {**own, "split": "sae_train", "site": site}


@pytest.mark.parametrize(
    ("forced", "again"),
    [
        ((), ()),
        (("train_sae", "evaluate_sae"), ()),
        (("cache_activations",), VARIANTS),
        (("capture_portion",), VARIANTS),
        (("sample_gaussian",), ("gaussian",)),
        (("retrain_subject",), ("retrained",)),
        (("randomize_model",), ("trained", "rerandomized", "gaussian")),
        (None, VARIANTS),
    ],
)
def test_activations_that_a_run_makes_again_are_read_by_what_the_rule_makes(
    config: Config, forced: tuple[str, ...] | None, again: tuple[str, ...]
) -> None:
    capture_again(forced)
    found = {v: str(captured_by(config, keys(config, v))) for v in VARIANTS}
    of_split = {v: paths.ACTIVATIONS_MANIFEST.format(**keys(config, v)) for v in VARIANTS}
    assert tuple(v for v in VARIANTS if found[v] == of_split[v]) == again
