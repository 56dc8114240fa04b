"""Null models in memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch

from nullsae.api.arguments import check_model, whole
from nullsae.config.parse import parse_section
from nullsae.config.randomization import Randomization, Settings
from nullsae.config.variants import VARIANTS, Variant
from nullsae.core.errors import UserError
from nullsae.core.randomness import torch_generator
from nullsae.subjects import gates
from nullsae.subjects.families import context_limit, text_config
from nullsae.subjects.loading import Subject
from nullsae.subjects.publish import PROBE_CONTEXTS, pass_gates, randomize_gated

Model = TypeVar("Model")
# How many tokens of each context the gates run on.
PROBE_TOKENS = 32


def randomize(
    model: Model,
    variant: str,
    draw: int = 0,
    seed: int = 0,
    *,
    subject: str = "",
    **settings: Any,
) -> Model:
    """Make a randomized copy of a model, with the gates of `nullsae randomize_model`.

    The given model does not change. Numbers are drawn on the CPU, keyed by `seed`, `variant`,
    `subject`, `draw` and the name of each parameter: the same call gives the same weights on every
    machine and device, and the same as a study with this `seed` and subject name.

    All gates except those about files run: exactly the intended tensors changed; each change keeps
    the properties it promises; changed tensors do not correlate with the original; a second draw
    gives the same bits; and on random token ids, a context gives the same alone as in a batch, no
    row sees later tokens, and activations are finite.

    Args:
        model: any causal `transformers.PreTrainedModel`, with or without a head, with all weights
            in memory, in any floating-point type.
        variant: one that changes weights, such as `rerandomized`, `permuted_weights` or `cascade`.
        draw: index of the randomization; each draw is another null of the same kind.
        seed: as in a config.
        subject: name of the subject, as in a config.
        settings: keys of the config's `randomization` that the variant depends on, such as
            `norm_parameters="keep"` or `first_random_block=3`.

    Returns:
        A new model of the same class, dtype and device, in evaluation mode. Making it needs CPU
        memory for two more copies of its weights.

    Raises:
        UserError: the variant or a setting is unknown, the model is of another kind, or a gate
            fails; the message names the tensor.
    """
    kind = _variant(variant, settings)
    draw, seed = whole(draw, "randomize: draw"), whole(seed, "randomize: seed")
    check_model(model, "randomize")
    given: Any = model
    for name, parameter in given.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            at = "not in memory" if parameter.is_meta else f"of {parameter.dtype}"
            raise UserError(f"randomize: {name} is {at}; load the complete model, unquantized")
    null = deepcopy(given).eval()
    section = parse_section(Randomization, settings, where="randomize")
    resolved = kind.resolve(null, Settings(**kind.settings(section)), subject)
    keys: dict[str, Any] = {"subject": subject, "variant": variant, "draw": draw}
    checks = randomize_gated(null, resolved, seed=seed, **keys)
    gates.require([*checks, *_pass_gates(null, kind, seed)], f"randomize: {variant}, draw {draw}")
    return null  # type: ignore[no-any-return]


def _variant(name: str, settings: dict[str, Any]) -> type[Variant]:
    """Return a variant that is made from a model's weights alone, if it reads the settings."""
    fitting = [
        other
        for other, kind in VARIANTS.items()
        if kind.changes_weights and kind.origin == "trained" and not kind.acts_on_passes()
    ]
    if name not in fitting:
        raise UserError(
            f"randomize: variant {name!r} is not one of those made from a model's weights alone: "
            f"{', '.join(fitting)}"
        )
    if unread := sorted(settings.keys() - set(VARIANTS[name].reads)):
        reads = ", ".join(VARIANTS[name].reads) or "no setting"
        raise UserError(f"randomize: {unread[0]}: {name} reads {reads}")
    return VARIANTS[name]


def _pass_gates(model: Any, kind: type[Variant], seed: int) -> list[gates.Gate]:
    """Run the gates on forward passes, over random token ids."""
    device = model.get_input_embeddings().weight.device
    subject = Subject(model=model, recipe={}, device=device)
    n_tokens = min(PROBE_TOKENS, context_limit(model) or PROBE_TOKENS)
    probe = torch.randint(
        text_config(model).vocab_size,
        (PROBE_CONTEXTS, n_tokens),
        generator=torch_generator(seed, "probe"),
    )
    of: dict[str, Any] = {"split": "eval", "contexts": range(len(probe))}
    found = pass_gates(subject, probe)
    activations = subject.activations(probe, **of, sites=subject.block_outputs)
    last = activations[subject.block_outputs[-1]]
    has_head = model.get_output_embeddings() is not None
    logits = subject.logits(probe, **of) if has_head else last
    return [*found, gates.finite(activations, logits), *kind.gates(subject, probe)]
