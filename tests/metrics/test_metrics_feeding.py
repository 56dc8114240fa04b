from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fed_models import (
    BOS,
    SITE,
    K,
    activations,
    centred,
    scale_of_training,
    sink_model,
    subject_of,
    tokens,
    trained_on,
)
from nullsae.activations.capture import cache_activations
from nullsae.config.activations import Exclude
from nullsae.config.saes import Expect
from nullsae.config.subjects import PretrainedSource
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, write_json
from nullsae.metrics.feeding import Checked, Feeding, Measured, Sample, measure
from nullsae.metrics.gate import doubt, reason
from nullsae.metrics.remedies import check_feeding, near_sites
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.loading import Subject
from nullsae.subjects.publish import randomize_model
from refusing import refused
from run_stages import evaluated
from small_chain import capture_params, cell, model_params, write_corpus, write_sae

GOOD = Feeding(SITE, True)
PUBLISHED = Expect(l0=K, explained_variance=0.93)


@dataclass(frozen=True)
class Fed:
    """A model, another one, and SAEs of the first."""

    subject: Subject
    sample: Sample
    other: Sample
    sae: Autoencoder
    unscaled: Autoencoder
    constant: Autoencoder
    of_centred: Autoencoder


@pytest.fixture(scope="module")
def fed() -> Fed:
    subject, other = subject_of(sink_model()), subject_of(sink_model("other"))
    x = activations(subject)
    heldout, sae = tokens(128, seed=2), trained_on(x)
    return Fed(
        subject,
        Sample(subject, heldout, n_tokens=2048),
        Sample(other, heldout, n_tokens=2048),
        sae,
        # As in training, with its factor forgotten.
        sae.scaled(scale_of_training(x)),
        sae.scaled(11.3),
        trained_on(activations(subject_of(centred(subject.model)))),
    )


# For each case: whose weights, on which model, the feeding, and what the line must suggest.
WRONG: dict[str, tuple[str, str, Feeding, str]] = {
    "bos": ("sae", "sample", replace(GOOD, prepend_bos=False), "it fits with BOS before each"),
    "site": ("sae", "sample", replace(GOOD, site="resid_post.0"), f"it fits at {SITE} ("),
    "scaling": ("unscaled", "sample", GOOD, "scaled to a mean norm of sqrt(d_model)"),
    "constant": ("constant", "sample", GOOD, "it fits on activations scaled by a constant that"),
    "model": ("sae", "other", GOOD, "it belongs to another model or revision"),
    "weights": ("of_centred", "sample", GOOD, "center_writing_weights"),
    "bos and site": (
        *("sae", "sample", Feeding("resid_post.2", False)),
        f"it fits at {SITE} and with BOS before each",
    ),
}


@pytest.mark.parametrize("expect", [PUBLISHED, Expect(l0=K), Expect()], ids=["both", "l0", "none"])
def test_an_sae_that_is_fed_with_what_it_was_trained_on_fits(fed: Fed, expect: Expect) -> None:
    found = check_feeding(fed.sample, fed.sae, GOOD, expect)
    assert found.fits
    assert found.remedy is None
    # If the published figure is reached, nothing else is tried.
    assert (len(found.tried) == 1) == (expect is PUBLISHED)


@pytest.mark.parametrize("expect", [PUBLISHED, Expect()], ids=["published", "nothing"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found_with_and_without_published_figures(
    fed: Fed, case: str, expect: Expect
) -> None:
    sae, sample, feeding, said = WRONG[case]
    found = check_feeding(getattr(fed, sample), getattr(fed, sae), feeding, expect)
    assert not found.fits
    line = reason(found)
    assert said in line
    assert "\n" not in line
    if found.remedy is not None:
        assert (found.remedy.explained_variance or 0) > 0.9


def test_eos_is_tried_where_the_tokenizer_has_no_bos(fed: Fed) -> None:
    heldout, without = tokens(128, seed=2, prepend_bos=False), replace(GOOD, prepend_bos=False)
    for eos, said in (
        (BOS, "it fits with EOS, for want of a BOS, before each"),
        (None, "no change of BOS"),
    ):
        manifest = {"prepend_bos": False, "bos_token_ids": [], "eos_token_id": eos}
        own = replace(heldout, manifest=manifest)
        sample = Sample(fed.subject, own, n_tokens=2048)
        found = check_feeding(sample, fed.sae, replace(without, bos=own.bos_name), PUBLISHED)
        assert said in reason(found)


def test_figures_that_are_not_reached_are_named(fed: Fed) -> None:
    found = check_feeding(fed.sample, fed.sae, GOOD, Expect(l0=40, explained_variance=0.999))
    ev = found.given.explained_variance
    assert found.wrong == [
        f"explained variance {ev:.3f} is not the expected 0.999",
        "L0 4.0 is not the expected 40",
    ]
    assert found.remedy is None


def test_a_feeding_that_is_better_but_not_clearly_is_named_of_an_sae_that_fits() -> None:
    def one(block: int, explained: float, l0: float = 8.0) -> Measured:
        return Measured(Feeding(f"resid_post.{block}", True), explained, l0, 0.4, 4096)

    given, nothing = one(1, 0.708), Expect()
    found = Checked(given, (given, one(2, 0.743)), nothing)
    assert found.fits
    assert str(doubt(found)).startswith(
        "It would explain a little more at resid_post.2 (explained variance 0.743, L0 8.0): "
    )
    assert doubt(Checked(given, (given, one(2, 0.712)), nothing)) is None
    assert doubt(Checked(given, (given, one(2, 0.743, l0=30.0)), Expect(l0=8))) is None
    assert doubt(Checked(given, (given, one(2, 0.9)), nothing)) is None  # that is a remedy


def test_a_forgotten_factor_is_given(fed: Fed) -> None:
    found = check_feeding(fed.sample, fed.unscaled, GOOD, Expect())
    assert found.remedy is not None
    factor = scale_of_training(fed.sample.activations(GOOD))
    assert found.remedy.factor == pytest.approx(factor, rel=1e-5)
    assert f"by a factor of {factor:.4g}" in reason(found)


def test_any_constant_factor_is_found(fed: Fed) -> None:
    found = check_feeding(fed.sample, fed.constant, GOOD, Expect())
    assert found.remedy is not None
    assert found.remedy.factor == pytest.approx(11.3, rel=0.1)


def test_a_distant_site_is_found_and_its_activations_are_not_kept() -> None:
    subject = subject_of(sink_model(n_layer=5))
    sample = Sample(subject, tokens(64, seed=2), n_tokens=1024)
    found = check_feeding(sample, trained_on(activations(subject)), Feeding("resid_post.4", True),
                          PUBLISHED)  # fmt: skip
    assert f"it fits at {SITE} (" in reason(found)
    assert (True, SITE) not in sample._found


def test_explained_variance_and_l0_are_those_of_a_computation_by_hand(fed: Fed) -> None:
    sample, sae = fed.sample, fed.sae
    found = measure(sample, sae, GOOD)
    ids = torch.cat([torch.full((len(sample.text), 1), BOS), sample.text], dim=1)
    seen: list[Tensor] = []
    block = fed.subject.model.transformer.h[1]
    handle = block.register_forward_hook(
        lambda _m, _a, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    with torch.inference_mode():
        fed.subject.model(input_ids=ids.long())
    handle.remove()
    # Without BOS itself; no other token has ten times the median norm.
    x = seen[0][:, 1:].reshape(-1, sae.d_model).double()
    pre = (x - sae.b_dec) @ sae.w_enc.double().T + sae.b_enc
    top = pre.topk(K, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    output = codes @ sae.w_dec.double() + sae.b_dec
    left = (x - output).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert found.n_tokens == len(x)
    assert found.explained_variance == pytest.approx(1 - float(left), abs=1e-5)
    assert found.l0 == pytest.approx(float((codes > 0).sum(dim=1).double().mean()), abs=1e-3)


def test_centring_activations_is_centring_the_weights_that_write_them(fed: Fed) -> None:
    processed = subject_of(centred(fed.subject.model))
    heldout = tokens(128, seed=2)
    there = Sample(processed, heldout, n_tokens=2048).activations(GOOD)
    here = fed.sample.activations(GOOD)
    torch.testing.assert_close(here - here.mean(dim=1, keepdim=True), there, atol=1e-4, rtol=1e-4)
    ids = torch.from_numpy(heldout.input_ids[:4]).long()
    with torch.inference_mode():
        final = [
            s.model.transformer(input_ids=ids).last_hidden_state for s in (fed.subject, processed)
        ]
    torch.testing.assert_close(final[0], final[1], atol=1e-3, rtol=1e-3)


def test_the_same_text_is_read_with_bos_and_without(fed: Fed) -> None:
    with_bos, without = fed.sample.ids(True), fed.sample.ids(False)
    assert bool((with_bos[:, 0] == BOS).all())
    assert torch.equal(with_bos[:, 1:], without)
    own = Sample(fed.subject, tokens(128, seed=2, prepend_bos=False), n_tokens=2048)
    assert own.ids(True).shape == with_bos.shape
    assert fed.sample.activations(GOOD).shape[0] == without.numel()


def test_tokens_that_a_study_leaves_out_do_not_count(fed: Fed) -> None:
    heldout = tokens(128, seed=2)
    sample = Sample(fed.subject, heldout, n_tokens=2048, exclude=Exclude(start_tokens=4))
    n_contexts, length = sample.ids(True).shape
    assert len(sample.activations(GOOD)) == n_contexts * (length - 4)


def test_near_sites_have_one_name_each() -> None:
    near = near_sites("resid_post.1", 3)
    assert {"resid_post.0", "resid_post.2", "attn_out.1", "mlp_out.1"} <= set(near)
    assert len(near) == len(set(near))
    # The input of block 2 is the output of block 1; that of block 1 is resid_post.0.
    assert not {"resid_post.1", "resid_pre.1", "resid_pre.2", "mlp_out.2"} & set(near)
    assert not {"resid_post.1", "resid_pre.2"} & set(near_sites("resid_pre.2", 3))


def test_an_sae_of_another_width_is_refused(fed: Fed) -> None:
    sae = Autoencoder("topk", torch.eye(8), torch.zeros(8), torch.eye(8), torch.zeros(8), k=1)
    with pytest.raises(UserError, match=r"resid_post\.1 has 16 dimensions, but the SAE has 8"):
        check_feeding(fed.sample, sae, GOOD, Expect())


# The gate of the workflow, on files


@dataclass(frozen=True)
class Files:
    """A study up to its activations, for contexts with or without BOS."""

    root: Path

    def evaluate(
        self, sae: Path, *, expect: Expect | None = None, variant: str = "trained"
    ) -> None:
        """Evaluate like the rule."""
        keys = cell(SITE).model_copy(update={"variant": variant})
        evaluated(
            self.root,
            **{"keys": keys, "fidelity_tokens": 512, "expect": expect, "sae": sae},
            model=self.root / "trained/recipe.json",
            train_activations=self.root / "sae_train/manifest.json",
            eval_activations=self.root / "eval/manifest.json",
            train_tokens=self.root / "corpus/sae_train/manifest.json",
            eval_tokens=self.root / "corpus/eval/manifest.json",
        )


def files(root: Path, model: Any, *, prepend_bos: bool) -> Files:
    manifests = {}
    for split, seed in (("sae_train", 1), ("eval", 2)):
        found = tokens(64, seed=seed, prepend_bos=prepend_bos)
        manifests[split] = write_corpus(root / "corpus" / split, found.input_ids, found.document_id)
        write_json(manifests[split], {**read_json(manifests[split], rebuild=""), **found.manifest})
    model.save_pretrained(root / "source")
    source = PretrainedSource(kind="pretrained", path=str(root / "source"))
    randomize_model(
        model_params(source), trained=None, eval_tokens=manifests["eval"], output=root / "trained"
    )
    for split, manifest in manifests.items():
        recipe = root / "trained/recipe.json"
        cache_activations(
            capture_params(), split=split, model=recipe, tokens=manifest, output=root / split
        )
    return Files(root)


@pytest.fixture(scope="module")
def study(fed: Fed, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files(tmp_path_factory.mktemp("fed"), fed.subject.model, prepend_bos=False)


def test_the_workflow_stops_where_a_given_sae_is_fed_wrongly(
    fed: Fed, study: Files, tmp_path: Path
) -> None:
    given = write_sae(fed.sae, tmp_path / "given", dictionary="pretrained")
    line = refused(study.evaluate, given, expect=PUBLISHED)
    assert line.startswith("config: saes.topk: explained variance -")
    assert "is not the expected 0.93; it fits with BOS before each context" in line
    assert line.endswith("change corpora.*.prepend_bos")
    assert not (study.root / "reconstruction.parquet").exists()


def test_the_workflow_continues_with_a_given_sae_that_fits(fed: Fed, tmp_path: Path) -> None:
    study = files(tmp_path / "study", fed.subject.model, prepend_bos=True)
    study.evaluate(write_sae(fed.sae, tmp_path / "given", dictionary="pretrained"))
    assert (study.root / "reconstruction.parquet").exists()


def test_a_given_sae_on_a_null_may_be_out_of_place(fed: Fed, study: Files, tmp_path: Path) -> None:
    given = write_sae(fed.sae, tmp_path / "given", dictionary="pretrained")
    study.evaluate(given, variant="rerandomized")
    assert (study.root / "reconstruction.parquet").exists()


def test_an_sae_that_the_study_trained_itself_is_not_checked(
    fed: Fed, study: Files, tmp_path: Path
) -> None:
    study.evaluate(write_sae(fed.sae, tmp_path / "own"))
    assert (study.root / "reconstruction.parquet").exists()
