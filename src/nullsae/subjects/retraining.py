"""Positive controls: the subject from another seed, trained here or made elsewhere.

This file counts only in the hash of `retrain_subject`, so studies without such a control keep their
models when it changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nullsae.config.model_files import is_local
from nullsae.config.subjects import PretrainedSource, TrainSource
from nullsae.config.variants import VARIANTS
from nullsae.core import provenance
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.core.files import read_json
from nullsae.core.folders import expanded
from nullsae.core.randomness import seed_of
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.subjects import RetrainSubjectParams, training_key
from nullsae.subjects import gates
from nullsae.subjects.families import text_config
from nullsae.subjects.loading import fetch, load_subject
from nullsae.subjects.publish import check_loss, check_tokens, publish, resumable, tokenizer_beside

log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
# Distinguishes architectures with the same tensors, by the names of most families.
ARCHITECTURE = (
    *("model_type", "num_attention_heads", "num_key_value_heads", "hidden_act"),
    *("use_parallel_residual", "tie_word_embeddings"),
)


def retrain_subject(
    params: RetrainSubjectParams,
    *,
    eval_tokens: Path,
    output: Path,
    work: Path,
    train_tokens: Path | None = None,
    trained: Path | None = None,
    progress: Callable[..., None] = lambda *done: None,
) -> None:
    """Make one draw of a positive control and check it.

    Args:
        params: the rule's slice of the config.
        eval_tokens: manifest of the corpus' `eval` split.
        output: folder of the variant.
        work: folder for checkpoints, as in `train_subject`.
        train_tokens: manifest of the `sae_train` split, if the subject is trained here.
        trained: `recipe.json` of the trained variant to compare with, if it comes from elsewhere.
        progress: called with (steps done, steps in total, loss in nats per token) in a training,
            else with (held-out tokens read, held-out tokens in total).

    Raises:
        StoppedError: SIGTERM or Ctrl-C came; the same call resumes.
        UserError: an input is missing, the training diverged, the model has another architecture or
            tokenizer than the subject, a gate fails, or the model has not learned the corpus.
    """
    torch.set_num_threads(params.compute.threads)
    source, keys = params.source, params.keys
    if lacking := VARIANTS[keys.variant].lacks(source):
        raise UserError(f"--params: source.{lacking}")
    heldout = load_tokens(eval_tokens)
    if isinstance(source, TrainSource):
        if train_tokens is None:
            raise UserError("--train-tokens: missing; a subject that is trained here needs it")
        tokens, where = load_tokens(train_tokens), f"config: subjects.{keys.subject}.source"
        tokenizer = tokenizer_beside(eval_tokens)
        _train(params, source, tokens, heldout, output, work, tokenizer, progress)
    else:
        if trained is None:
            raise UserError("--trained: missing; a model from elsewhere needs it")
        where = f"config: subjects.{keys.subject}.source.retrained"
        _fetch(params, source, heldout, output, trained, tokenizer_beside(eval_tokens), progress)
    _check_learned(output, heldout, where)


def training_seed(params: RetrainSubjectParams) -> int:
    """Return the seed of one draw's training, which replaces the config's seed."""
    keys = params.keys
    return seed_of(params.seed, keys.variant, keys.subject, keys.draw)


def _train(
    params: RetrainSubjectParams,
    source: TrainSource,
    tokens: Tokens,
    heldout: Tokens,
    output: Path,
    work: Path,
    tokenizer: Path | None,
    progress: Callable[[int, int, float], None],
) -> None:
    """Train as `train_subject` does, from another seed; initial weights are not kept."""
    from nullsae.subjects.training import train_model

    device, seed = device_of(params.compute.device), training_seed(params)
    key = training_key(params, tokens.manifest)
    checkpoint = work / f"retrain_subject-{key}.safetensors"
    with resumable(checkpoint) as makers:
        model, initial, steps = train_model(
            source,
            tokens,
            seed=seed,
            subject=params.keys.subject,
            device=device,
            checkpoint=checkpoint,
            progress=progress,
        )
        model = model.eval().requires_grad_(False)
        made: dict[str, Any] = {"kind": "train", "training": source.model_dump(mode="json")}
        made |= {"training_seed": seed, "log": steps}
        checks = [gates.untrained(initial, model.state_dict())]
        recipe = {**params.keys.model_dump(), "seed": params.seed, "source": made}
        publish(model, output, recipe, heldout, device, checks=checks, tokenizer=tokenizer)
        provenance.record(output, parts=[makers])


def _fetch(
    params: RetrainSubjectParams,
    source: PretrainedSource,
    heldout: Tokens,
    output: Path,
    trained: Path,
    tokenizer: Path | None,
    progress: Callable[[int, int], None],
) -> None:
    """Read a model that was trained elsewhere, if it has the subject's architecture."""
    keys = params.keys
    path, revision, path_key, _ = VARIANTS[keys.variant].weights_of(source)
    where = f"config: subjects.{keys.subject}.source.{path_key}"
    model: Any = fetch(source, variant=keys.variant)
    own = load_subject(trained, torch.device("cpu")).model
    check_architecture(model, own, where=f"{where}: {path!r}")
    check_tokens(model, heldout, where=f"config: subjects.{keys.subject}.corpus")
    if tokenizer is not None:
        check_tokenizer(path, revision, tokenizer, where=where)
    made = source.model_dump(mode="json")
    if file := getattr(model, "read_from", None):
        made["weights_file"] = file
    recipe = {**keys.model_dump(), "seed": params.seed, "source": made}
    recipe["trust_remote_code"] = source.trust_remote_code
    tensors = dict(model.named_parameters())
    # No tensor may be shared: a model fine-tuned from the subject is not another training.
    checks = [gates.changed(dict(own.named_parameters()), tensors, set(tensors))]
    device = device_of(params.compute.device)
    publish(
        *(model, output, recipe, heldout, device),
        checks=checks,
        tokenizer=tokenizer,
        progress=progress,
    )


def check_architecture(model: Any, subject: Any, *, where: str) -> None:
    """Check that a model has the tensors of the subject, and uses them in the same way.

    Raises:
        UserError: the first difference; the line begins with `where`.
    """
    own, other = (
        {name: list(p.shape) for name, p in each.named_parameters()} for each in (subject, model)
    )
    for name in sorted(own.keys() | other.keys()):
        if own.get(name) != other.get(name):
            found, wanted = (
                "missing" if name not in shapes else f"{shapes[name]}" for shapes in (other, own)
            )
            raise UserError(
                f"{where} is not the subject from another seed: {name} is {found}, but {wanted} in "
                f"the subject"
            )
    configs = [text_config(each) for each in (model, subject)]
    for name in ARCHITECTURE:
        of_model, of_subject = (getattr(config, name, None) for config in configs)
        if of_model != of_subject:
            raise UserError(
                f"{where} is not the subject from another seed: {name} is {of_model!r}, but "
                f"{of_subject!r} in the subject"
            )


def check_tokenizer(path: str, revision: str | None, corpus: Path, *, where: str) -> None:
    """Check that a model reads the tokens of the corpus, if it has a tokenizer.

    Args:
        path: local folder or hub id of the model.
        revision: of the hub.
        corpus: the folder of the corpus' tokenizer.
        where: the config key, for messages.

    Raises:
        UserError: its `tokenizer.json` gives another text to one of the corpus' token ids.
    """
    from tokenizers import Tokenizer

    file = _tokenizer_file(path, revision)
    if file is None:
        text = "warning: %s: %r has no %s; only its loss tells whether it reads the corpus' tokens"
        log.warning(text, where, path, TOKENIZER_FILE)
        return
    try:
        own, other = (
            {number: text for text, number in Tokenizer.from_file(str(each)).get_vocab().items()}
            for each in (corpus / TOKENIZER_FILE, file)
        )
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: {path!r}: {TOKENIZER_FILE}: {error}") from None
    for number, text in sorted(own.items()):
        if other.get(number) != text:
            raise UserError(
                f"{where}: {path!r} has another tokenizer than the subject: token {number} is "
                f"{other.get(number)!r} there and {text!r} in the corpus"
            )


def _tokenizer_file(path: str, revision: str | None) -> Path | None:
    import huggingface_hub
    from huggingface_hub import errors

    if is_local(path):
        file = expanded(path) / TOKENIZER_FILE
        return file if file.is_file() else None
    try:
        return Path(huggingface_hub.hf_hub_download(path, TOKENIZER_FILE, revision=revision))
    except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
        return None


def _check_learned(folder: Path, heldout: Tokens, where: str) -> None:
    """Apply the gate on the loss, like for `trained`. A failing folder has no gates.json."""
    found = folder / "gates.json"
    try:
        check_loss(read_json(found, rebuild="")["heldout_loss_nats"], heldout, where)
    except UserError:
        found.unlink()
        raise
