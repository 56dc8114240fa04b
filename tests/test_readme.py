"""The README is true of the code."""

import re
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.jobs.rules import rules
from refusing import refused

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def default_config():
    return yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))


def test_overlay_for_ones_own_model_is_a_valid_config():
    page = (REPOSITORY / "docs/models_and_saes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(# mine.yaml\n.*?)```", page, re.DOTALL)
    merged = default_config()
    update_config(merged, yaml.safe_load(block))
    config = parse_config(merged)
    resolve_subjects(config)
    assert list(config.subjects) == ["pythia-70m"]
    assert config.subjects["pythia-70m"].source.path == "EleutherAI/pythia-70m"


def test_error_shown_is_the_error_printed():
    merged = default_config()
    merged["saes"]["topk"]["lr"] = "3e-4"
    assert refused(parse_config, merged) in README


def test_every_rule_is_named_on_the_page_about_running():
    page = (REPOSITORY / "docs/running.md").read_text(encoding="utf-8")
    assert [rule for rule in rules() if f"`{rule}`" not in page] == []


def test_short_enough_to_be_read():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (REPOSITORY / link).exists()
