"""What a subject predicts after one token's activation at a site was changed.

Only the part after the site is computed: earlier blocks pass on their outputs of a clean pass, and
the head reads only the changed token. Whether a model allows this is tested, not assumed from its
name; models that do not allow it run whole passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nullsae.config.sites import site_kind, site_layer
from nullsae.core.randomness import torch_generator
from nullsae.subjects.families import attach, find_site
from nullsae.subjects.loading import PROBE_TOKENS, Subject

log = logging.getLogger(__name__)

# Contexts may be cut after a multiple of this many tokens: noise that replaces embeddings is drawn
# in pieces of 16 numbers, so a cut context gets the same noise.
CUT_TOKENS = 16
# Allowed rounding between passes from the site and whole ones, as a share of the logits.
TOLERANCE, ROUNDINGS = 1e-3, 8


class Interventions:
    """Next-token logits at tokens whose activation at one site has something added to it.

    Contexts are of the split `eval`. What follows a token is never computed, since models are
    causal.
    """

    def __init__(self, subject: Subject, site: str) -> None:
        """Find out how little of a model must run; see `Subject` for names of sites.

        Raises:
            UserError: the model has no such site.
        """
        self.subject, self.site = subject, site
        self._point = find_site(subject.model, site)
        self._head = subject.model.get_output_embeddings()
        # The first block that runs; its input is the output of the previous one.
        self._first = site_layer(site) + (site_kind(site) == "resid_post")
        # How many things each earlier block returns besides activations; None for a plain tensor.
        self._others: list[int | None] = [None] * self._first
        self.from_site = self._agrees()
        """Whether passes begin at the site."""
        if not self.from_site:
            log.info("%s: passes of this model cannot begin there; running whole passes", site)

    def states(self, input_ids: Tensor, contexts: Sequence[int]) -> Tensor | None:
        """Return what passes from the site need of whole contexts; None if they need nothing.

        Args:
            input_ids: integers [contexts, tokens].
            contexts: index of each row in the split.

        Returns:
            [contexts, tokens, d_model] in the subject's dtype, on its device.
        """
        if not (self.from_site and self._first):
            return None
        before = f"resid_post.{self._first - 1}"
        return self.subject.activations(input_ids, split="eval", contexts=contexts, sites=[before])[
            before
        ]

    @torch.inference_mode()
    def logits(
        self,
        input_ids: Tensor,
        contexts: Sequence[int],
        states: Tensor | None,
        at: Tensor,
        added: Tensor,
    ) -> Tensor:
        """Return logits of the token after the changed one: [rows, vocab] in the subject's dtype.

        Args:
            input_ids: integers [rows, tokens], contexts from their start; see `CUT_TOKENS`.
            contexts: index of each row's context in the split.
            states: of these rows and tokens, from `states`.
            at: int64 [rows], the token that is changed.
            added: float32 [rows, width of the site], added to its activation.
        """
        subject, rows = self.subject, torch.arange(len(at))

        def change(x: Tensor) -> Tensor:
            changed = x.reshape(*input_ids.shape, -1).clone()
            token = rows.to(x.device), at.to(x.device)
            changed[token] = (changed[token].float() + added.to(x.device)).to(x.dtype)
            return changed.reshape(x.shape)

        if not self.from_site:
            where: dict[str, Any] = {"split": "eval", "contexts": contexts}
            whole = subject.logits(input_ids, **where, site=self.site, replace=change)
            return whole[rows.to(whole.device), at.to(whole.device)]

        def only_changed(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0]
            return (hidden[rows.to(hidden.device), at.to(hidden.device)][:, None], *args[1:])

        with ExitStack() as stack:
            for layer, others in enumerate(self._others):
                given = states if layer == self._first - 1 else None
                stack.enter_context(_hands_on(subject.blocks[layer], given, others))
            stack.enter_context(attach(self._point, change))
            stack.callback(self._head.register_forward_pre_hook(only_changed).remove)
            found: Tensor = subject.model(
                input_ids=subject.placed(input_ids, "eval", contexts), use_cache=False
            ).logits
        return found.reshape(len(at), -1).to(subject.device)

    def _agrees(self) -> bool:
        """Test on a probe whether a pass from the site gives the result of a whole one."""
        subject = self.subject
        ids = torch.arange(2 * PROBE_TOKENS).reshape(2, -1) % subject.recipe.get("vocab_size", 8)
        at = torch.tensor([PROBE_TOKENS // 2, PROBE_TOKENS - 1])
        where: dict[str, Any] = {"split": "eval", "contexts": [0, 1]}
        site = subject.activations(ids, **where, sites=[self.site])[self.site].float()
        drawn = torch.randn(2, site.shape[-1], generator=torch_generator(0, "intervention"))
        added = drawn.to(site) * site.std()
        self.from_site = False
        whole = self.logits(ids, [0, 1], None, at, added).float()
        self.vocab_size = whole.shape[1]
        """Logits per token."""
        self.from_site = True
        try:
            self._see_others(ids)
            quick = self.logits(ids, [0, 1], self.states(ids, [0, 1]), at, added).float()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            # A model may do anything when it is used in an unforeseen way.
            return False
        if quick.shape != whole.shape:
            return False
        allowed = max(TOLERANCE, ROUNDINGS * torch.finfo(self.subject.model.dtype).eps)
        return bool((quick - whole).abs().max() <= allowed * whole.abs().max())

    def _see_others(self, ids: Tensor) -> None:
        """Record what blocks before the site return."""

        def look(layer: int) -> Any:
            def see(_module: nn.Module, _args: Any, output: Any) -> None:
                self._others[layer] = None if isinstance(output, Tensor) else len(output) - 1

            return see

        with ExitStack() as stack:
            for layer in range(self._first):
                hook = self.subject.blocks[layer].register_forward_hook(look(layer))
                stack.callback(hook.remove)
            self.subject.logits(ids, split="eval", contexts=[0, 1])


@contextmanager
def _hands_on(block: nn.Module, given: Tensor | None, others: int | None) -> Iterator[None]:
    """Make a block return `given`, or its input, without computing anything."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        x = hidden if given is None else given.to(hidden.device).reshape(hidden.shape)
        return x if others is None else (x, *[None] * others)

    # Some libraries (accelerate) replace a module's `forward`.
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own
