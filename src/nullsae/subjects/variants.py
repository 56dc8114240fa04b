"""From a source or a trained folder to one variant's folder: weights, recipe, gates, table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae import tables
from nullsae.config.subjects import PretrainedSource
from nullsae.config.variants import FIXED_VARIANTS, fitted_to
from nullsae.core.errors import UserError
from nullsae.core.files import content_key, read_json, write_json
from nullsae.core.moments import Moments
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs import subjects as jobs
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.subjects import RandomizeModelParams, TrainSubjectParams
from nullsae.subjects import gates
from nullsae.subjects.families import find_blocks, text_config
from nullsae.subjects.loading import Subject, fetch, load_subject, pick_device, place, save_subject
from nullsae.subjects.randomize import PURPOSES, Change, initial_parameters, randomize

PROBE_CONTEXTS = 4
LOSS_BATCH_CONTEXTS = 32
# Logits of a batch in bytes: with a large vocabulary fewer contexts go into it.
MAX_LOGIT_BYTES = 2**28
# Tokens of `eval`, from its start, whose activations give the health of a variant.
HEALTH_TOKENS = 8192
HEALTH_BATCH_TOKENS = 2048


def train_subject(
    params: TrainSubjectParams,
    *,
    train_tokens: Path,
    eval_tokens: Path,
    trained: Path,
    step0: Path,
    work: Path,
    report: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train the small subject and publish it as `trained`, its initial weights as `step0`.

    Args:
        params: the rule's slice of the config.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of the `eval` split.
        trained: folder of the trained variant.
        step0: folder of the untrained one.
        work: folder for checkpoints; a run with the same params and tokens resumes there.
        report: called with (step, steps, loss) after each step.

    Raises:
        StoppedError: SIGTERM came; the same call goes on from there.
        UserError: the recipe gives no model, or the training diverged.
    """
    from nullsae.subjects.training import train_model

    torch.set_num_threads(params.compute.threads)
    device = pick_device(params.compute.device)
    tokens, heldout = load_tokens(train_tokens), load_tokens(eval_tokens)
    made_of = [params.model_dump(mode="json"), jobs.train_subject.code(), tokens.manifest]
    checkpoint = work / f"train_subject-{content_key(made_of)}.safetensors"
    model, initial, log = train_model(
        params.source,
        tokens,
        seed=params.seed,
        subject=params.subject,
        device=device,
        checkpoint=checkpoint,
        report=report,
    )
    model = model.eval().requires_grad_(False)
    source = {"kind": "train", "training": params.source.model_dump(mode="json"), "log": log}
    for variant, folder in (("trained", trained), ("step0", step0)):
        if variant == "step0":
            model.load_state_dict(initial)
        recipe = {
            "subject": params.subject,
            "variant": variant,
            "draw": 0,
            "seed": params.seed,
            "source": source,
        }
        _publish(model, folder, recipe, heldout, device, checks=[])
    checkpoint.unlink(missing_ok=True)


def randomize_model(
    params: RandomizeModelParams,
    *,
    trained: Path | None,
    eval_tokens: Path,
    output: Path,
) -> None:
    """Make one variant of a subject and check it.

    Args:
        params: the rule's slice of the config.
        trained: `recipe.json` of the trained variant; None where `params.source` is read.
        eval_tokens: manifest of the corpus' `eval` split.
        output: folder of the variant.

    Raises:
        UserError: the source cannot be loaded, the variant has no such draw, `cascade` starts
            beyond the last block, or a gate fails.
    """
    keys = params.keys
    if fitted := fitted_to(keys.variant, keys.draw):
        raise UserError(
            f"--params: keys.variant: {keys.variant!r} is sampled from the {fitted[0]} subject's "
            f"activations, it is no model; use nullsae sample_gaussian"
        )
    if keys.variant in FIXED_VARIANTS and keys.draw != 0:
        raise UserError(
            f"--params: keys.draw: {keys.draw}, but nothing in {keys.variant!r} is drawn; it has "
            f"draw 0 only"
        )
    torch.set_num_threads(params.compute.threads)
    device = pick_device(params.compute.device)
    heldout = load_tokens(eval_tokens)
    if trained is None:
        if params.source is None:
            raise UserError("--params: source is missing, and --trained is not given")
        model: Any = fetch(params.source, step0=keys.variant == "step0")
        source: dict[str, Any] = params.source.model_dump(mode="json")
    else:
        original = load_subject(trained, torch.device("cpu"))
        model, source = original.model, original.recipe["source"]
    where = f"config: subjects.{keys.subject}"
    _check_tokens(model, heldout, where=where)

    recipe: dict[str, Any] = {
        **keys.model_dump(),
        "seed": params.seed,
        "source": source,
        "embedding_noise_std": params.embedding_noise_std,
        "norm_parameters": params.norm_parameters,
        "first_random_block": _first_random_block(model, params),
    }
    if isinstance(params.source, PretrainedSource):
        recipe["trust_remote_code"] = params.source.trust_remote_code
    checks: list[gates.Gate] = []
    if keys.variant in PURPOSES:
        checks = _randomize(model, params, recipe["first_random_block"])
    _publish(model, output, recipe, heldout, device, checks=checks)


def _first_random_block(model: Any, params: RandomizeModelParams) -> int | None:
    """Where `cascade` begins: as configured, else at the second half; None for other variants.

    Raises:
        UserError: beyond the last block; names the config key.
    """
    if params.keys.variant != "cascade":
        return None
    n_layers, first = len(find_blocks(model)), params.first_random_block
    if first is None:
        return n_layers // 2
    if first >= n_layers:
        raise UserError(
            f"config: randomization.first_random_block: {first} is beyond the last block; subject "
            f"{params.keys.subject!r} has {n_layers} blocks, 0 to {n_layers - 1}"
        )
    return first


def _randomize(
    model: Any, params: RandomizeModelParams, first_random_block: int | None
) -> list[gates.Gate]:
    """Change in place, twice from the same original, and check what came out."""
    keys: ModelKeys = params.keys
    before = gates.state(model)
    key: dict[str, Any] = {"seed": params.seed, "subject": keys.subject}

    def draw() -> dict[str, Change]:
        return randomize(
            model,
            keys.variant,
            **key,
            draw=keys.draw,
            norm_policy=params.norm_parameters,
            first_random_block=first_random_block or 0,
        )

    def drawn() -> dict[str, Tensor]:
        return {name: p.detach().cpu() for name, p in model.named_parameters()}

    draw()
    first = gates.fingerprints(drawn())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    changes = draw()
    after = drawn()

    def names(change: Change) -> set[str]:
        return {name for name, found in changes.items() if found == change}

    checks = [
        gates.inventory(before, after),
        gates.changed(before, after, set(changes)),
    ]
    if redrawn := names("redrawn"):
        checks.append(gates.moments(before, after, redrawn))
    if names("initialized"):
        other = initial_parameters(model, **key, draw=keys.draw + 1)
        checks.append(gates.initializer(after, other))
    if permuted := names("permuted"):
        checks.append(gates.entries(before, after, permuted))
    if matched := names("matched"):
        checks.append(gates.spectrum(before, after, matched))
    if rows := names("rows"):
        checks.append(gates.rows_permuted(before, after, rows))
    if rotated := names("rotated"):
        checks.append(gates.rows_rotated(before, after, rotated))
    return [
        *checks,
        gates.uncorrelated(before, after, changes),
        gates.repeatable(first, gates.fingerprints(after)),
    ]


def _publish(
    model: Any,
    folder: Path,
    recipe: dict[str, Any],
    heldout: Tokens,
    device: torch.device,
    *,
    checks: list[gates.Gate],
) -> None:
    """Save, reload, gate and measure one variant; `gates.json` and `model.parquet` come last."""
    probe = torch.from_numpy(heldout.input_ids[:PROBE_CONTEXTS])
    contexts = range(len(probe))
    save_subject(model, folder, recipe)
    written = read_json(folder / "recipe.json", rebuild="")
    before = Subject(model=place(model, written, device), recipe=written, device=device)
    saved = before.logits(probe, split="eval", contexts=contexts)
    subject = load_subject(folder / "recipe.json", device)
    logits = subject.logits(probe, split="eval", contexts=contexts)
    sites = [f"resid_post.{layer}" for layer in range(len(subject.blocks))]
    activations = subject.activations(probe, split="eval", contexts=contexts, sites=sites)
    checks = [*checks, gates.reloads(saved, logits), gates.finite(activations, logits)]
    if written.get("embedding_noise_std") is not None:
        checks += _noise_gates(subject, probe)
    gates.require(checks, str(folder))

    loss, n_predicted = heldout_loss(subject, heldout)
    health = activation_health(subject, heldout)
    write_json(
        folder / "gates.json", {"gates": checks, "heldout_loss_nats": loss, "health": health}
    )
    row = {
        "n_parameters": sum(p.numel() for p in subject.model.parameters()),
        "heldout_loss_nats": loss,
        "unigram_loss_nats": heldout.manifest["unigram_loss_nats"],
        "bigram_loss_nats": heldout.manifest["bigram_loss_nats"],
        "n_heldout_tokens": n_predicted,
        "n_gates": len(checks),
        "gates_passed": True,
    }
    tables.write_table(folder / "model.parquet", [row], tables.cell_schema("models"))


def _noise_gates(subject: Subject, probe: Tensor) -> Sequence[gates.Gate]:
    """Look at the embeddings that the subject really sees, in two batch orders."""
    seen: list[Tensor] = []
    embedding = subject.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _m, _i, output: seen.append(output.cpu()))
    order = list(reversed(range(len(probe))))
    subject.logits(probe, split="eval", contexts=range(len(probe)))
    subject.logits(probe[order], split="eval", contexts=order)
    handle.remove()
    plain = embedding.weight[probe.to(subject.device, torch.int64)].cpu()
    std = subject.recipe["embedding_noise_std"]
    return gates.noise(seen[0], seen[1][order], plain, std)


def heldout_loss(subject: Subject, tokens: Tokens) -> tuple[float, int]:
    """Mean next-token loss over a split, in nats, and the number of predicted tokens.

    The first token of a context has no predecessor and is not predicted.
    """
    ids = torch.from_numpy(tokens.input_ids)
    context_bytes = ids.shape[1] * text_config(subject.model).vocab_size * 4
    n_batch = min(LOSS_BATCH_CONTEXTS, max(1, MAX_LOGIT_BYTES // context_bytes))
    total = 0.0
    for start in range(0, len(ids), n_batch):
        batch = ids[start : start + n_batch]
        contexts = range(start, start + len(batch))
        logits = subject.logits(batch, split="eval", contexts=contexts)[:, :-1].float()
        target = batch[:, 1:].to(logits.device, torch.int64)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        total += float(losses.double().sum())
    n = int(np.prod(tokens.input_ids[:, 1:].shape))
    loss = total / n
    if not math.isfinite(loss):
        raise UserError(f"{subject.recipe['variant']}: the held-out loss is {loss}")
    return loss, n


def activation_health(subject: Subject, tokens: Tokens) -> dict[str, Any]:
    """How the output of each block looks over the first `HEALTH_TOKENS` tokens of a split.

    Returns:
        `n_tokens`, and in `sites`, by name, the figures of `Moments.health`.
    """
    ids = torch.from_numpy(tokens.input_ids)
    context_tokens = ids.shape[1]
    n_tokens = min(HEALTH_TOKENS, ids.numel())
    n_contexts = math.ceil(n_tokens / context_tokens)
    batch_contexts = max(1, HEALTH_BATCH_TOKENS // context_tokens)
    sites = [f"resid_post.{layer}" for layer in range(len(subject.blocks))]
    moments: dict[str, Moments] = {}
    for start in range(0, n_contexts, batch_contexts):
        batch = ids[start : min(start + batch_contexts, n_contexts)]
        contexts = range(start, start + len(batch))
        found = subject.activations(batch, split="eval", contexts=contexts, sites=sites)
        for site in sites:
            x = found[site].flatten(0, 1)[: n_tokens - start * context_tokens]
            moments.setdefault(site, Moments(x.shape[1])).add(x)
    return {"n_tokens": n_tokens, "sites": {site: moments[site].health() for site in sites}}


def _check_tokens(model: Any, tokens: Tokens, *, where: str) -> None:
    """The corpus' token ids must fit the model's vocabulary and its longest context."""
    largest = int(tokens.input_ids.max())
    config = text_config(model)
    if largest >= config.vocab_size:
        raise UserError(
            f"{where}.corpus: token id {largest} is beyond the subject's vocabulary of "
            f"{config.vocab_size}; use the subject's own tokenizer in corpora.*.tokenizer"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokens.input_ids.shape[1] > longest:
        raise UserError(
            f"{where}.corpus: contexts of {tokens.input_ids.shape[1]} tokens, but the subject "
            f"reads at most {longest}; lower corpora.*.context_tokens"
        )
