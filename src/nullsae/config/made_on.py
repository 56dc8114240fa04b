"""Compare what an SAE was made on, by its own files, with what a study feeds it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from nullsae.config.corpora import HubSource
from nullsae.config.hooks import same_place, site_of_hook
from nullsae.config.model_files import is_local
from nullsae.config.pretrained import Difference
from nullsae.config.section import Section
from nullsae.config.sites import site_kind
from nullsae.config.study import Config
from nullsae.config.subjects import PretrainedSource

# TransformerLens' names of models, and hub ids.
_HUB_IDS = (
    ("gpt2-small", "gpt2"),
    ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
    (r"(gemma-.+)", r"google/\1"),
    (r"(pythia-.+)", r"EleutherAI/\1"),
    (r"qwen3-(.+)b", r"Qwen/Qwen3-\1B"),
    (r"(opt-.+)", r"facebook/\1"),
    (r"tiny-stories-(.+)", r"roneneldan/TinyStories-\1"),
)
# Keys of `model_from_pretrained_kwargs` that change no activation of ours.
_HARMLESS = ("center_unembed", "dtype", "device", "n_devices", "torch_dtype")
_CENTRED = "center_writing_weights"
# Sites behind a norm, which subtracts the mean itself: centred weights do not change them.
_BEHIND_NORM = ("hook_z", "mlp_in", "mlp_post")
# Changes that move activations at one kind of site only: a folded gain is missing from the MLP's
# input, folded biases from the heads' output.
_MOVES = {"fold_ln": "mlp_in", "fold_value_biases": "hook_z"}


class MadeOn(Section):
    """What the files of an SAE say about its training; null if they do not."""

    model: str | None = None
    """Hub id, or TransformerLens' name."""
    revision: str | None = None
    hook: str | None = None
    """The place that it reads, as named in the files."""
    context_tokens: int | None = None
    prepend_bos: bool | None = None
    data_set: str | None = None
    training_tokens: int | None = None
    weight_processing: dict[str, Any] = Field(default_factory=dict)
    """SAELens' `model_from_pretrained_kwargs`: what TransformerLens did to the weights."""

    @property
    def centred(self) -> bool:
        """Whether it reads a model with `center_writing_weights`."""
        return bool(self.weight_processing.get(_CENTRED)) and self._kind not in _BEHIND_NORM

    @property
    def _kind(self) -> str:
        """Kind of the site that it reads; empty if there is no such site here."""
        return site_kind(site_of_hook(self.hook or "") or "")

    def with_more_from(self, other: MadeOn) -> MadeOn:
        """Return this with the other's values where it has any."""
        said = other.model_dump(exclude_none=True, exclude_defaults=True)
        return self.model_copy(update=said)

    def check_processing(self) -> None:
        """Refuse changes to the model's weights that cannot be made here.

        Raises:
            ValueError: names the key.
        """
        for key, value in self.weight_processing.items():
            harmless = key in (*_HARMLESS, _CENTRED, "revision")
            if key in _MOVES:
                harmless = _MOVES[key] != self._kind
            if value not in (None, False) and not harmless:
                raise ValueError(
                    f"model_from_pretrained_kwargs.{key} is {value!r}: models with "
                    f"weights changed in this way are not supported"
                )


class UsedOn(Section):
    """What a study feeds an SAE; null if it has no name to compare, such as a local folder."""

    subject: str
    corpus: str
    model: str | None
    revision: str | None
    context_tokens: int
    prepend_bos: bool | None
    """null for `auto`, which the corpus knows."""
    data_set: str | None


def used_on(config: Config, subject: str) -> UsedOn:
    """Return what the SAEs of a subject are fed."""
    source, corpus = config.subjects[subject].source, config.subjects[subject].corpus
    given = config.corpora[corpus]
    hub = isinstance(source, PretrainedSource) and not is_local(source.path)
    text = given.source.path if isinstance(given.source, HubSource) else None
    return UsedOn(
        subject=subject,
        corpus=corpus,
        model=source.path if hub and isinstance(source, PretrainedSource) else None,
        revision=source.revision if isinstance(source, PretrainedSource) else None,
        context_tokens=given.context_tokens,
        prepend_bos=None if given.prepend_bos == "auto" else given.prepend_bos,
        data_set=None if text is None or is_local(text) else text,
    )


def differences(made: MadeOn, used: UsedOn, site: str | None) -> Iterator[tuple[Difference, str]]:
    """Yield each difference between what an SAE was made on and is fed: its name, and a sentence.

    Unknown values are not compared.
    """
    of_subject, of_corpus = f"subjects.{used.subject}", f"corpora.{used.corpus}"
    if made.model is not None and used.model is not None:
        if model_name(made.model) != model_name(used.model):
            yield "model", _says(made.model, f"{of_subject}.source.path", used.model)
        elif (made.revision or "main") != (used.revision or "main"):
            revision = used.revision or "main"
            yield "revision", _says(made.revision or "main", f"{of_subject}.revision", revision)
    if site is not None and made.hook is not None:
        found = site_of_hook(made.hook)
        if found is None or not same_place(found, site):
            other = f" ({found} here)" if found else ""
            yield "hook", f"it was made at {made.hook}{other}, but is used at {site}"
    if made.context_tokens is not None and made.context_tokens != used.context_tokens:
        key = f"{of_corpus}.context_tokens"
        yield "context_tokens", _says(made.context_tokens, key, used.context_tokens)
    if None not in (made.prepend_bos, used.prepend_bos) and made.prepend_bos != used.prepend_bos:
        contexts = f"contexts with{'' if made.prepend_bos else 'out'} BOS"
        used_bos = str(used.prepend_bos).lower()
        yield "prepend_bos", _says(contexts, f"{of_corpus}.prepend_bos", used_bos)
    if made.data_set is not None and used.data_set is not None and made.data_set != used.data_set:
        yield "data_set", _says(made.data_set, f"{of_corpus}.source.path", used.data_set)


def _says(made: object, key: str, used: object) -> str:
    return f"it was made on {made}, but {key} is {used}"


def model_name(model: str) -> str:
    """Return one spelling for a model's hub id and TransformerLens name."""
    return hub_id(model).rsplit("/", 1)[-1].lower().removeprefix("meta-")


def hub_id(model: str) -> str:
    """Return the hub id for TransformerLens' name of a model; any other name as it is."""
    for pattern, name in _HUB_IDS:
        if found := re.fullmatch(pattern, model):
            return found.expand(name)
    return model
