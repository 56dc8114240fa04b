"""SAEs that are a user's own Python objects: read, stored, used, and named by a plan."""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_sae_derived
import test_sae_dictionaries as made
import torch

from nullsae.config.check_pretrained import check_pretrained
from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.pretrained import FromObject
from nullsae.config.saes import Sae
from nullsae.core.errors import UserError
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import load_tokens
from nullsae.jobs.saes import train_sae
from nullsae.planning.trusted import trusted_keys
from nullsae.sae.exchange.pretrained import read_pretrained, read_with_origin
from nullsae.sae.files import load_sae
from nullsae.sae.python_object import ObjectSae
from refusing import refused
from small_chain import D_MODEL, Chain, all_rows, codes_of, write_sae
from small_config import SMALL_CONFIG

N_LATENTS, WHERE = 300, "config: saes.theirs.pretrained"
# Squared codes, which none of our architectures has.
CODE = f"""
import torch
from .numbers import OFFSET

class Squared:
    def __init__(self, site):
        g = torch.Generator().manual_seed(int(site[-1]))
        self.w_enc = torch.randn({D_MODEL}, {N_LATENTS}, generator=g)
        self.w_dec = torch.randn({N_LATENTS}, {D_MODEL}, generator=g)
        self.bias = torch.randn({D_MODEL}, generator=g)
    def encode(self, x):
        return (x @ self.w_enc - OFFSET).relu() ** 2
    def decode(self, codes):
        return codes @ self.w_dec + self.bias

at_1 = Squared("resid_post.1")

def but(**methods):
    return lambda site: type("Other", (Squared,), methods)(site)

fails = but(encode=lambda self, x: x @ x)
listed = but(encode=lambda self, x: x.tolist())
flat = but(encode=lambda self, x: x.sum())
whole = but(encode=lambda self, x: x.int())
infinite = but(encode=lambda self, x: Squared.encode(self, x) / 0)
signed = but(encode=lambda self, x: x @ self.w_enc)
joint = but(encode=lambda self, x: Squared.encode(self, x - x.mean(dim=0)))
narrow = but(decode=lambda self, codes: Squared.decode(self, codes)[:, 1:])
wider = but(decode=lambda self, codes: torch.cat([Squared.decode(self, codes), codes[:, :1]], 1))
curved = but(decode=lambda self, codes: Squared.decode(self, codes).tanh())
codeless = but(encode=None)
"""
number = itertools.count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a package with these objects, which was not imported yet."""
    name = f"somebodys_{next(number)}"
    write_package(tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def write_package(folder: Path, offset: float = 4.0) -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "made.py").write_text(CODE)
    (folder / "numbers.py").write_text(f"OFFSET = {offset}\n")


def given(package: str, name: str = "Squared", **keys: Any) -> dict[str, Any]:
    return {"object": f"{package}.made:{name}", "d_model": D_MODEL, **keys}


def refusal(pretrained: dict[str, Any]) -> str:
    return refused(read_pretrained, FromObject(**pretrained), "resid_post.1", where=WHERE)


@pytest.mark.parametrize("name", ["Squared", "at_1"])
def test_codes_and_reconstructions_are_the_objects_own(
    package: str, name: str, chain: Chain, tmp_path: Path
) -> None:
    sae, config = made.make(chain, tmp_path / "sae", Sae.of(pretrained=given(package, name)))
    assert isinstance(sae, ObjectSae)
    assert (config.architecture, config.n_latents) == ("object", N_LATENTS)
    x, _ = all_rows(chain.eval_activations, "resid_post.1")
    codes = sae.theirs.encode(x)
    assert 1 < (codes > 0).sum(dim=1).float().mean() < 250
    torch.testing.assert_close(codes_of(sae, x), codes, atol=1e-5, rtol=1e-5)
    expected = sae.theirs.decode(codes)
    torch.testing.assert_close(sae.decode(*sae.encode(x)), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(codes_of(sae, x[3:4]), codes[3:4], atol=1e-5, rtol=1e-5)
    larger = sae.scaled(2.5)
    torch.testing.assert_close(codes_of(larger, x * 2.5), codes * 2.5, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        larger.decode(*larger.encode(x * 2.5)), expected * 2.5, atol=1e-3, rtol=1e-5
    )


def test_an_object_that_is_a_transcoder_comes_back_from_its_files(
    package: str, tmp_path: Path
) -> None:
    own = FromObject(**given(package, "wider"))
    sae = read_with_origin(own, "mlp_in.1", where=WHERE, output_site="mlp_out.1").sae
    file = write_sae(sae, tmp_path / "sae", site="mlp_in.1", dictionary="pretrained")
    again = load_sae(file)[0]
    x = torch.randn(20, D_MODEL, generator=torch_generator(0, "object_inputs"))
    for found in (sae, again):
        assert isinstance(found, ObjectSae)
        assert (found.d_model, found.writes_at("mlp_in.1")) == (D_MODEL, "mlp_out.1")
        back = found.decode(*found.encode(x), x)
        expected = sae.theirs.decode(sae.theirs.encode(x))
        torch.testing.assert_close(back, expected, atol=1e-4, rtol=1e-5)
        assert back.shape == (20, D_MODEL + 1)


def test_a_placebo_fires_as_often_as_the_objects_latents(
    package: str, chain: Chain, tmp_path: Path
) -> None:
    sae, _ = made.make(chain, tmp_path / "sae", Sae.of(pretrained=given(package)))
    source = tmp_path / "sae/cfg.json"
    null = test_sae_derived.derived(
        chain, source, tmp_path / "null", dictionary="rate_matched_random"
    )
    x, _ = all_rows(chain.train_activations, "resid_post.1")
    wanted, found = ((codes_of(each, x) > 0).sum(dim=0) for each in (sae, null))
    assert int(wanted.sum()) > 1000
    # Contexts that begin with the same token have equal activations there, so all or none fire.
    equal = np.bincount(load_tokens(chain.train_tokens).input_ids[:, 0]).max()
    off = np.abs(np.asarray(found - wanted))
    assert (off <= np.maximum(0.05 * np.asarray(wanted), equal)).all()
    assert (off <= 1).mean() > 0.95


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "cannot be imported: module "),
        ("codeless", "Other has no method encode"),
        ("fails", f"encode of [64, {D_MODEL}] fails: "),
        ("listed", "encode returns list, should return a tensor of floats [64, n_latents]"),
        ("flat", f"encode of [64, {D_MODEL}] returns float32 [], should"),
        ("whole", f"encode of [64, {D_MODEL}] returns int32 [64, {D_MODEL}], should"),
        ("infinite", "encode returns numbers that are not finite"),
        ("signed", "encode returns codes below 0"),
        ("joint", "encode returns codes that depend on the other tokens"),
        ("narrow", f"decode of [1, {N_LATENTS}] returns float32 [1, {D_MODEL - 1}], should return"),
        ("curved", "decode is not linear in the codes"),
    ],
)
def test_an_object_that_is_no_sae_is_refused_in_one_line(
    package: str, name: str, says: str
) -> None:
    text = refusal(given(package, name))
    assert text.startswith(f"{WHERE}.object: {package}.made:{name}: {says}")


def test_an_object_of_another_width_is_refused(package: str) -> None:
    text = refusal({**given(package), "d_model": D_MODEL + 1})
    assert f"encode of [64, {D_MODEL + 1}] fails: " in text


def test_code_that_a_folder_names_is_not_run(package: str, chain: Chain, tmp_path: Path) -> None:
    made.make(chain, tmp_path / "sae", Sae.of(pretrained=given(package)))
    assert load_sae(tmp_path / "sae/cfg.json")[0].n_latents == N_LATENTS
    with pytest.raises(UserError, match="is code, which only a config's own `object` key may name"):
        read_pretrained(str(tmp_path / "sae"), "resid_post.1", where=WHERE)


# The config


def study(pretrained: Any, **more: Any) -> dict[str, Any]:
    config = copy.deepcopy(SMALL_CONFIG)
    config["saes"] = {"theirs": {"pretrained": pretrained, "k": 4}, **more}
    return config


def test_a_plan_names_the_object_and_parsing_does_not_run_it(package: str) -> None:
    config = resolve_subjects(parse_config(study(given(package))))
    check_pretrained(config)
    assert [(key.key, key.value) for key in trusted_keys(config)] == [
        ("saes.theirs.pretrained.object", f"{package}.made:Squared")
    ]
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"object": "a b:c"},
            "saes.theirs.pretrained.object: 'a b:c' is not an import path, such as",
        ),
        (
            {"object": "made"},
            "saes.theirs.pretrained.object: 'made' is not an import path, such as",
        ),
        ({"object": "nothing.made:x"}, "no Python file of the module 'nothing.made' found"),
        ({"object": "json.nothing:x"}, "no Python file of the module 'json.nothing' found"),
        ({"object": "math:sin"}, "no Python file of the module 'math' found"),
        ({"d_model": 3}, "an SAE for 3 dimensions, but resid_post.0 of small has 16"),
        ({"files": ["no.pt"]}, "saes.theirs.pretrained.files[0]: 'no.pt' is not a file"),
        ({"width": 3}, "saes.theirs.pretrained.width: unknown key"),
    ],
)
def test_a_mistake_in_an_object_is_known_when_the_config_is_parsed(
    package: str, keys: dict[str, Any], says: str
) -> None:
    def parsed() -> None:
        check_pretrained(resolve_subjects(parse_config(study({**given(package), **keys}))))

    assert says in refused(parsed)


def test_what_is_made_of_encoder_rows_is_not_made_from_an_object(package: str) -> None:
    def parsed(dictionary: str) -> None:
        parse_config(study(given(package), null={"dictionary": dictionary, "from": "theirs"}))

    with pytest.raises(UserError, match=r"saes\.null\.from: 'theirs' is a Python object"):
        parsed("rotated")
    parsed("rate_matched_random")


def test_an_edit_of_its_code_or_of_a_file_that_it_reads_makes_the_sae_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pt").write_text("1")
    pretrained = given("somebodys_own", files=[str(tmp_path / "weights.pt")])
    config = parse_config(study(pretrained))
    cell = {"subject": "small", "draw": "0", "site": "resid_post.0", "sae": "theirs", "seed": "0"}

    def key(folder: str, variant: str = "trained", **edit: float) -> str:
        if not (tmp_path / folder).exists():
            write_package(tmp_path / folder / "somebodys_own", **edit)
        with monkeypatch.context() as context:
            context.syspath_prepend(tmp_path / folder)
            params = train_sae(config, {**cell, "variant": variant})
            return params.cell_key(params.cells[0], params.code(params.cells[0]))

    assert key("a") == key("b")
    # A module that only the module next to it imports.
    assert key("c", offset=7.0) != key("a")
    assert key("c", "rerandomized") == key("a", "rerandomized")
    before = key("a")
    (tmp_path / "weights.pt").write_text("2")
    assert key("a") != before
