"""Trusted keys of a config are found by their marks and named before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from nullsae.config.parse import parse_config
from nullsae.config.read import read_merged_config
from nullsae.config.section import Section, Trusted
from nullsae.planning.show import print_plan
from nullsae.planning.trusted import trusted_keys

REPOSITORY = Path(__file__).parents[2]
SERVER = {"command": ["serve", "--port", "{port}", "a b", "\x1b[2Jx\n"]}


def study(**sections: Any) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    return config | {"variants": ["trained", "rerandomized"], **sections}


def hostile() -> dict[str, Any]:
    model = {"kind": "pretrained", "path": "someone/model", "trust_remote_code": True}
    subject = study()["subjects"]["small"] | {"source": model, "sites": ["resid_post.0"]}
    return study(
        subjects={"theirs": subject},
        explainers={"mine": {"kind": "openai", "model": "m", "server": SERVER}},
        scorers={
            "far": {"kind": "detection", "judge": {"model": "m", "server": {"command": ["x"]}}},
            "near": {"kind": "likelihood", "model": model},
        },
    )


def test_every_key_that_runs_code_is_named_wherever_it_stands() -> None:
    found = {key.key: key for key in trusted_keys(parse_config(hostile()))}
    assert {*found} == {
        "subjects.theirs.source.trust_remote_code",
        "explainers.mine.server.command",
        "scorers.far.judge.server.command",
        "scorers.near.model.trust_remote_code",
    }
    assert found["explainers.mine.server.command"].value == (
        r"serve --port '{port}' 'a b' '\x1b[2Jx\n'"
    )
    assert found["subjects.theirs.source.trust_remote_code"].value == "true"


@pytest.mark.parametrize("overlays", [(), ("quick.yaml",), ("all-controls.yaml",)])
def test_a_config_that_runs_nobodys_code_is_trusted_with_nothing(overlays: tuple[str, ...]) -> None:
    files = [REPOSITORY / "config.yaml", *(REPOSITORY / "config" / name for name in overlays)]
    assert trusted_keys(read_merged_config(files)) == []


def test_a_config_says_whose_keys_it_sends() -> None:
    files = [REPOSITORY / "config.yaml", REPOSITORY / "config" / "llm.yaml"]
    assert [(k.key, k.value) for k in trusted_keys(read_merged_config(files))] == [
        ("explainers.gpt.api_key_env", "OPENAI_API_KEY")
    ]
    azure = {"kind": "openai", "model": "m", "headers_env": {"api-key": "AZURE_OPENAI_API_KEY"}}
    found = trusted_keys(parse_config(study(explainers={"azure": azure}, scorers={})))
    assert [(k.key, k.value) for k in found] == [
        ("explainers.azure.headers_env", "'api-key: AZURE_OPENAI_API_KEY'")
    ]


class Inner(Section):
    script: Annotated[str | None, Trusted("jobs run this file")] = None


class Outer(Section):
    parts: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)
    hook: Annotated[dict[str, str], Trusted("jobs run these")] = Field(default_factory=dict)


def test_a_new_key_is_named_for_its_mark_alone() -> None:
    inner = Inner(script="a'b")
    section = Outer(parts=(Inner(), inner), named={"x": inner}, hook={"before": "rm -r"})
    assert [(k.key, k.value, k.does) for k in trusted_keys(section)] == [
        ("parts[1].script", "'a'\"'\"'b'", "jobs run this file"),
        ("named.x.script", "'a'\"'\"'b'", "jobs run this file"),
        ("hook", "'before: rm -r'", "jobs run these"),
    ]


def test_a_plan_names_them_before_it_works_out_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise StopError

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(hostile()))
    monkeypatch.setattr("nullsae.planning.show.make_plan", stop)
    with pytest.raises(StopError):
        print_plan(tmp_path, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "This config is trusted with (see SECURITY.md):"
    assert r"  explainers.mine.server.command: serve --port '{port}' 'a b' '\x1b[2Jx\n' (" in (
        next(line for line in lines if "explainers.mine.server" in line)
    )
    assert not any("\x1b" in line for line in lines)
