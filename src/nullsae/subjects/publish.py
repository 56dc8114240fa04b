"""From a source or a trained folder to one variant's folder: weights, recipe, gates, table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullsae import tables
from nullsae.config.randomization import Settings
from nullsae.config.subjects import PretrainedSource
from nullsae.config.variants import VARIANTS, fitted_to
from nullsae.core import provenance
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError, first_line
from nullsae.core.files import drop_partial, read_json, rebuild_command, verify, write_json
from nullsae.core.locking import alone_at
from nullsae.corpus.ngram import caution
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.subjects import RandomizeModelParams, TrainSubjectParams, training_key
from nullsae.subjects import gates
from nullsae.subjects.changes import INITIALIZED, by_change, draw_of, randomize
from nullsae.subjects.families import context_limit, text_config
from nullsae.subjects.folders import save_subject
from nullsae.subjects.forward_gates import forward_gates
from nullsae.subjects.health import activation_health, bos_check, heldout_loss
from nullsae.subjects.loading import Subject, fetch, load_subject, place, take_off

log = logging.getLogger(__name__)

PROBE_CONTEXTS = 4
CPU = torch.device("cpu")


def train_subject(
    params: TrainSubjectParams,
    *,
    train_tokens: Path,
    eval_tokens: Path,
    trained: Path,
    step0: Path,
    work: Path,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train the small subject and publish it as `trained`, its initial weights as `step0`.

    Args:
        params: the rule's slice of the config.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of the `eval` split.
        trained: folder of the trained variant.
        step0: folder of the untrained one.
        work: folder for checkpoints. A run with the same params and tokens resumes there, and waits
            up to a minute for another process that uses it.
        progress: called with (step, steps, loss) after each step.

    Raises:
        StoppedError: SIGTERM or Ctrl-C came; the same call resumes.
        UserError: the recipe gives no model, the training diverged, or another process is running
            it.
    """
    from nullsae.subjects.training import train_model

    torch.set_num_threads(params.compute.threads)
    device, source = device_of(params.compute.device), params.source
    tokens, heldout = load_tokens(train_tokens), load_tokens(eval_tokens)
    checkpoint = work / f"train_subject-{training_key(params, tokens.manifest)}.safetensors"
    tokenizer = tokenizer_beside(eval_tokens)
    keys: dict[str, Any] = {"seed": params.seed, "subject": params.subject}
    with resumable(checkpoint) as makers:
        model, initial, log = train_model(
            source, tokens, **keys, device=device, checkpoint=checkpoint, progress=progress
        )
        model = model.eval().requires_grad_(False)
        made = {"kind": "train", "training": source.model_dump(mode="json"), "log": log}
        for variant, folder in (("trained", trained), ("step0", step0)):
            checks: list[gates.Gate] = []
            if variant == "step0":
                checks = [gates.untrained(initial, model.state_dict())]
                model.load_state_dict(initial)
            recipe = {**keys, "variant": variant, "draw": 0, "source": made}
            publish(model, folder, recipe, heldout, device, checks=checks, tokenizer=tokenizer)
            provenance.record(folder, parts=[makers])


@contextmanager
def resumable(checkpoint: Path) -> Iterator[Path]:
    """Lock a training against other processes, and delete its checkpoint if the block succeeds.

    Yields:
        The file next to it that records its makers, since a resumed training has several.
    """
    makers = checkpoint.with_suffix(".json")
    with alone_at([checkpoint.with_suffix(".lock")]) as alone:
        if alone.certain:
            drop_partial(checkpoint)
        provenance.record(makers.parent, name=makers.name, resumes=checkpoint.is_file())
        yield makers
        for file in (checkpoint, makers):
            file.unlink(missing_ok=True)


def randomize_model(
    params: RandomizeModelParams,
    *,
    trained: Path | None,
    eval_tokens: Path,
    output: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make one variant of a subject and check it.

    Args:
        params: the rule's slice of the config.
        trained: `recipe.json` of the trained variant; None if `params.source` is read. A variant
            without its own weights runs on those next to it.
        eval_tokens: manifest of the corpus' `eval` split.
        output: folder of the variant.
        progress: called with (held-out tokens read, held-out tokens in total).

    Raises:
        UserError: the source cannot be loaded, the variant has no such draw, its settings do not
            fit the model, or a gate fails.
    """
    keys = params.keys
    if fitted := fitted_to(keys.variant, keys.draw):
        raise UserError(
            f"--params: keys.variant: {keys.variant!r} is sampled from the {fitted[0]} subject's "
            f"activations and is not a model; use nullsae sample_gaussian"
        )
    variant = VARIANTS[keys.variant]
    if variant.fixed and keys.draw != 0:
        raise UserError(
            f"--params: keys.draw: {keys.draw}, but nothing in {keys.variant!r} is random; it has "
            f"only draw 0"
        )
    torch.set_num_threads(params.compute.threads)
    device = device_of(params.compute.device)
    heldout = load_tokens(eval_tokens)
    weights = None if variant.has_own_weights() else trained
    if trained is None:
        if not variant.has_own_weights():
            raise UserError(
                f"--trained: missing; {keys.variant!r} has no weights of its own and runs on those "
                f"of the trained variant"
            )
        if params.source is None:
            raise UserError("--params: source is missing, and --trained is not given")
        if lacking := variant.lacks(params.source):
            raise UserError(f"--params: source.{lacking}")
        model: Any = fetch(params.source, variant=keys.variant)
        source: dict[str, Any] = params.source.model_dump(mode="json")
        if file := getattr(model, "read_from", None):
            source["weights_file"] = file
    else:
        if variant.origin == "source" and keys.variant != "trained":
            raise UserError(
                f"--trained: {keys.variant!r} is not made from the trained weights; leave it out"
            )
        original = load_subject(trained, CPU)
        model, source = original.model, original.recipe["source"]
    check_tokens(model, heldout, where=f"config: subjects.{keys.subject}.corpus")
    given = Settings(**params.model_dump(include=set(Settings.model_fields)))
    settings = variant.resolve(model, given, keys.subject)
    recipe = {**keys.model_dump(), **settings.model_dump(), "seed": params.seed, "source": source}
    if isinstance(params.source, PretrainedSource):
        recipe["trust_remote_code"] = params.source.trust_remote_code
    checks: list[gates.Gate] = []
    if variant.changes_weights:
        checks = randomize_gated(
            model, settings, _mapped(trained), seed=params.seed, **keys.model_dump()
        )
    if params.source is not None and variant.origin == "source" and keys.variant != "trained":
        as_trained = dict(fetch(params.source).named_parameters())
        checks = [gates.untrained(dict(model.named_parameters()), as_trained)]
    publish(
        *(model, output, recipe, heldout, device),
        checks=checks,
        tokenizer=tokenizer_beside(eval_tokens),
        weights=weights,
        progress=progress,
    )


def tokenizer_beside(tokens: Path) -> Path | None:
    """Find the tokenizer's folder of a corpus from the manifest of a split, and verify it.

    Returns None, with a warning, for tokens that came without a tokenizer.

    Raises:
        UserError: it is not the one that the tokens were made with.
    """
    file = tokens.parent.with_name("tokenizer") / "tokenizer.json"
    if not file.is_file():
        log.warning("warning: %s: no tokenizer here; the model's folder gets none", file.parent)
        return None
    rebuild = rebuild_command(tokens)
    if expected := read_json(tokens, rebuild=rebuild).get("tokenizer_checksum"):
        verify(file, expected, rebuild=rebuild)
    return file.parent


def _mapped(trained: Path | None) -> gates.State | None:
    """Map the original's parameters from its file.

    This avoids a second copy of the weights, and frees the memory once nothing refers to them.
    """
    return None if trained is None else parameters(load_subject(trained, CPU).model)


def parameters(model: Any) -> dict[str, Tensor]:
    """Return a model's own parameters by name, on the CPU; tied tensors once."""
    return {name: p.detach().cpu() for name, p in model.named_parameters()}


def randomize_gated(
    model: Any,
    settings: Settings,
    before: gates.State | None = None,
    *,
    seed: int,
    subject: str,
    variant: str,
    draw: int,
) -> list[gates.Gate]:
    """Change in place, twice from the same original, and check the result.

    Arguments are those of `changes.randomize`. `before` are the original's parameters in other
    memory than the model's, by default a copy on the CPU.
    """
    before = gates.state(model) if before is None else before
    key: dict[str, Any] = {"seed": seed, "subject": subject, "draw": draw}
    randomize(model, variant, settings, **key)
    first = gates.fingerprints(dict(model.named_parameters()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    changes = randomize(model, variant, settings, **key)
    after = parameters(model)
    if kept := _kept_buffers(model, [n for n, c in changes.items() if c is not INITIALIZED]):
        log.warning(
            "warning: %s: %s stays as trained (%d buffers next to changed weights; only parameters "
            "are changed)",
            *(variant, kept[0], len(kept)),
        )
    drawn_by = draw_of(variant, **key)
    own = [
        change.gate(before, after, names, model=model, draw=drawn_by)
        for change, names in by_change(changes).items()
    ]
    uncorrelated = gates.uncorrelated(before, after, changes)
    if not uncorrelated["passed"]:
        fixed = {n for change in by_change(changes) for n in change.without_chance(model, drawn_by)}
        left = {name: change for name, change in changes.items() if name not in fixed}
        uncorrelated = gates.uncorrelated(before, after, left)
    return [
        gates.inventory(before, after),
        gates.changed(before, after, set(changes)),
        *sorted(own, key=itemgetter("gate")),
        uncorrelated,
        gates.repeatable(first, gates.fingerprints(after)),
    ]


def _kept_buffers(model: Any, changed: Iterable[str]) -> list[str]:
    """Return the names of buffers that training may have set in modules whose weights changed.

    Mixtures of experts store what balances their routers so. Constants stay under any variant.
    """
    around = {name[:at] for name in changed for at, letter in enumerate(name) if letter == "."}
    stored = model.state_dict()
    return [
        name
        for name, buffer in model.named_buffers()
        if name in stored and buffer.is_floating_point() and name.rpartition(".")[0] in around
        if buffer.numel() and bool((buffer != buffer.flatten()[0]).any())
    ]


def publish(
    model: Any,
    folder: Path,
    recipe: dict[str, Any],
    heldout: Tokens,
    device: torch.device,
    *,
    checks: list[gates.Gate],
    tokenizer: Path | None,
    weights: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Save, reload, gate and measure one variant; `gates.json` and `model.parquet` come last."""
    probe = torch.from_numpy(heldout.input_ids[:PROBE_CONTEXTS])
    of: dict[str, Any] = {"split": "eval", "contexts": range(len(probe))}
    before = Subject(model=place(model, recipe, device), recipe=recipe, device=device)
    tells, checks = bool(checks), [*checks, *pass_gates(before, probe)]
    gates.require(checks, str(folder))  # before anything is written
    saved = before.logits(probe, **of)
    save_subject(model, folder, recipe, tokenizer=tokenizer, weights=weights)
    written = read_json(folder / "recipe.json", rebuild="")
    take_off(model)  # one model at a time
    subject = load_subject(folder / "recipe.json", device)
    logits = subject.logits(probe, **of)
    activations = subject.activations(probe, **of, sites=subject.block_outputs)
    variant = VARIANTS[written["variant"]]
    own = variant.gates(subject, probe)
    if variant.origin == "trained" and not (tells or own):
        own = [gates.failed("changed", "no gate distinguishes it from the trained variant")]
    checks = [*checks, gates.reloads(saved, logits), gates.finite(activations, logits), *own]
    gates.require(checks, str(folder))

    loss, n_predicted = heldout_loss(subject, heldout, progress)
    found: dict[str, Any] = {"gates": checks, "heldout_loss_nats": loss}
    if written["variant"] == "trained":
        where = f"config: subjects.{written['subject']}"
        found["bos"] = bos_check(subject, heldout)
        if found["bos"] and found["bos"]["warning"]:
            log.warning("%s: %s", where, found["bos"]["warning"])
        check_loss(loss, heldout, where)
    found["health"] = activation_health(subject, heldout)
    write_json(folder / "gates.json", found)
    row = {
        "n_parameters": sum(p.numel() for p in subject.model.parameters()),
        "heldout_loss_nats": loss,
        **{name: heldout.manifest[name] for name in ("unigram_loss_nats", "bigram_loss_nats")},
        "n_heldout_tokens": n_predicted,
        "n_gates": len(checks),
        "gates_passed": True,
    }
    tables.write_table(folder / "model.parquet", [row], tables.cell_schema("models"))


def check_loss(loss: float, tokens: Tokens, where: str) -> None:
    """Check that a trained subject has learned something of its corpus.

    A subject that is read with another tokenizer, without the BOS that it expects, or from damaged
    weights does no better than the frequencies of tokens.

    Args:
        loss: held-out, in nats per token.
        tokens: the `eval` split, whose manifest has the losses of n-grams.
        where: the config key that a message names.

    Raises:
        UserError: the loss is not below that of the unigram distribution.
    """
    unigram, bigram = (tokens.manifest[f"{name}_loss_nats"] for name in ("unigram", "bigram"))
    if not loss < unigram:
        raise UserError(
            f"{where}: the trained subject's held-out loss is {loss:.2f} nats, no better than the "
            f"frequencies of tokens ({unigram:.2f}): is the corpus tokenized by its own tokenizer, "
            f"with the BOS that it expects (corpora.*.prepend_bos), and are the weights complete?"
        )
    if warning := caution(loss, bigram):
        log.warning("warning: %s: %s", where, warning)


def pass_gates(subject: Subject, probe: Tensor) -> list[gates.Gate]:
    """Run `forward_gates`; raise a `UserError` if the model cannot run on token ids alone."""
    try:
        return forward_gates(subject, probe)
    except UserError:
        raise
    except Exception as error:  # anything that a foreign model's code raises
        name = type(subject.model).__name__
        raise UserError(
            f"subject of class {name}: not supported; a forward pass on token ids alone fails: "
            f"{first_line(error)}"
        ) from None


def check_tokens(model: Any, tokens: Tokens, *, where: str) -> None:
    """Check that token ids and contexts of the corpus fit the model's vocabulary and length."""
    largest = tokens.largest_token_id
    longest, config = tokens.input_ids.shape[1], text_config(model)
    if largest >= config.vocab_size:
        raise UserError(
            f"{where}: token id {largest} is beyond the subject's vocabulary of "
            f"{config.vocab_size}; use the subject's own tokenizer in corpora.*.tokenizer"
        )
    allowed = context_limit(model)
    if allowed is not None and longest > allowed:
        raise UserError(
            f"{where}: contexts of {longest} tokens, but the subject reads at most "
            f"{allowed}; lower corpora.*.context_tokens"
        )
