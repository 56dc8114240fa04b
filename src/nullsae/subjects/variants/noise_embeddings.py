"""A trained subject that sees noise instead of tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from nullsae.config.randomization import Randomization
from nullsae.config.variants import Look, Variant
from nullsae.core.randomness import torch_generator
from nullsae.core.registry import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nullsae.subjects import families, forward_gates, gates
    from nullsae.subjects.loading import Subject
else:
    torch, gates = lazy("torch"), lazy("nullsae.subjects.gates")
    families = lazy("nullsae.subjects.families")
    forward_gates = lazy("nullsae.subjects.forward_gates")


class NoiseEmbeddings(Variant):
    """The weights are the trained ones; new noise is drawn for each context of a split."""

    name = "noise_embeddings"
    position = 11
    group = "embeddings"
    text = (
        "All weights as trained, but each occurrence of a token gets fresh noise as its embedding "
        "(standard deviation {noise}): no token has an embedding of its own."
    )
    look = Look("#555b66", "#7f8794", "cross", (4, 4))
    reads = ("embedding_noise_std",)
    purpose = "embedding_noise"
    changes_weights = False

    @classmethod
    def describe(cls, randomization: Randomization) -> str:
        return cls.text.format(noise=f"{randomization.embedding_noise_std:g}")

    @classmethod
    def install(cls, subject: Subject) -> None:
        """Replace embeddings [batch, tokens, d] by noise keyed by (draw, split, context).

        For further tables indexed by token ids, such as those of Gemma 3n's blocks, the noise has
        the table's own standard deviation and a key with its name.
        """
        recipe, own = subject.recipe, subject.model.get_input_embeddings()

        def noise(std: float, name: tuple[str, ...], _m: Any, _i: Any, output: Tensor) -> Tensor:
            rows = []
            of = (recipe["seed"], cls.purpose, recipe["draw"], subject.split)
            for context in subject.contexts:
                generator = torch_generator(*of, context, *name)
                rows.append(torch.randn(output.shape[1:], generator=generator))
            drawn: Tensor = torch.stack(rows) * std
            return drawn.to(output)

        for name, table in families.token_tables(subject.model).items():
            if table is own:
                hook = partial(noise, recipe["embedding_noise_std"], ())
            else:
                scale = float(getattr(table, "embed_scale", 1.0))
                hook = partial(noise, scale * float(table.weight.float().std()), (name,))
            table.register_forward_hook(hook)

    @classmethod
    def gates(cls, subject: Subject, probe: Tensor) -> list[gates.Gate]:
        """Check the embeddings that the subject really sees, in two batch orders."""
        seen: list[Tensor] = []
        embedding = subject.model.get_input_embeddings()

        def see(_module: Any, _inputs: Any, output: Tensor) -> None:
            seen.append(output.to("cpu", copy=True))  # some models later write into it

        handle = embedding.register_forward_hook(see)
        order = list(reversed(range(len(probe))))
        subject.logits(probe, split="eval", contexts=range(len(probe)))
        subject.logits(probe[order], split="eval", contexts=order)
        handle.remove()
        plain = embedding.weight[probe.to(embedding.weight.device, torch.int64)].cpu()
        std = subject.recipe["embedding_noise_std"]
        return [
            *gates.noise(seen[0], seen[1][order], plain, std),
            forward_gates.reads_no_text(subject, probe),
        ]
