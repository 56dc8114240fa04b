"""What an SAE was made on, by its own files, beside what a study gives it."""

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
# Of `model_from_pretrained_kwargs`: what changes no activation of ours.
_HARMLESS = ("center_unembed", "dtype", "device", "n_devices", "torch_dtype")
_CENTRED = "center_writing_weights"
# Behind a norm, which takes a mean away itself: those sites read the same of centred weights.
_BEHIND_NORM = ("hook_z", "mlp_in", "mlp_post")
# What moves activations at one kind of site alone: a folded gain is missing from what the MLP
# reads, folded biases from what heads put out.
_MOVES = {"fold_ln": "mlp_in", "fold_value_biases": "hook_z"}


class MadeOn(Section):
    """What the files of an SAE say of its training; null where they do not."""

    model: str | None = None
    """Hub id, or TransformerLens' name."""
    revision: str | None = None
    hook: str | None = None
    """Where it reads, as the files call it."""
    context_tokens: int | None = None
    prepend_bos: bool | None = None
    data_set: str | None = None
    training_tokens: int | None = None
    weight_processing: dict[str, Any] = Field(default_factory=dict)
    """SAELens' `model_from_pretrained_kwargs`: what TransformerLens did to the weights."""

    @property
    def centred(self) -> bool:
        """Whether it reads a model whose weights that write to the residual stream are centred."""
        return bool(self.weight_processing.get(_CENTRED)) and self._kind not in _BEHIND_NORM

    @property
    def _kind(self) -> str:
        """Of the site that it reads, if that is one here."""
        return site_kind(site_of_hook(self.hook or "") or "")

    def with_more_from(self, other: MadeOn) -> MadeOn:
        """What the other says, and of the rest what this one does."""
        said = other.model_dump(exclude_none=True, exclude_defaults=True)
        return self.model_copy(update=said)

    def check_processing(self) -> None:
        """Refuse what was done to the weights of its model and cannot be done here.

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
    """What a study gives an SAE; null where it has no name to compare, such as a local folder."""

    subject: str
    corpus: str
    model: str | None
    revision: str | None
    context_tokens: int
    prepend_bos: bool | None
    """null for `auto`, which the corpus knows."""
    data_set: str | None


def used_on(config: Config, subject: str) -> UsedOn:
    """What the SAEs of a subject get."""
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
    """What differs of an SAE and of what it is given: its name, and a sentence.

    What one of the two does not say is not compared.
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
            yield "hook", f"it was made at {made.hook}{other}, and is used at {site}"
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
    return f"it was made on {made}, and {key} is {used}"


def model_name(model: str) -> str:
    """One spelling for the names of a model: a hub id's end, or TransformerLens' name."""
    return hub_id(model).rsplit("/", 1)[-1].lower().removeprefix("meta-")


def hub_id(model: str) -> str:
    """The hub id of a model by TransformerLens' name; any other name as it is."""
    for pattern, name in _HUB_IDS:
        if found := re.fullmatch(pattern, model):
            return found.expand(name)
    return model
