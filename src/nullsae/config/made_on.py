"""What an SAE was made on, by its own files, beside what a study gives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from nullsae.config.corpora import HubSource
from nullsae.config.hooks import same_place, site_of_hook
from nullsae.config.model_files import is_local
from nullsae.config.pretrained import Difference
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.config.subjects import PretrainedSource

# What TransformerLens calls models, where that is not the end of their hub id in small letters.
_MODELS = {"gpt2-small": "gpt2", "mistral-7b": "mistral-7b-v0.1"}
# Of `model_from_pretrained_kwargs`: what changes no activation of ours. Folded norms and
# unembeddings leave the residual stream and what is added to it as they are.
_HARMLESS = ("fold_ln", "center_unembed", "dtype", "device", "n_devices", "torch_dtype")
_CENTRED = "center_writing_weights"


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
        site = None if self.hook is None else site_of_hook(self.hook)
        inner = site is not None and site.startswith("hook_z")
        return bool(self.weight_processing.get(_CENTRED)) and not inner

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
            if value not in (None, False) and key not in (*_HARMLESS, _CENTRED, "revision"):
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
    name = model.rsplit("/", 1)[-1].lower()
    return _MODELS.get(name, name.removeprefix("meta-"))
