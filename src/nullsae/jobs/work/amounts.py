"""What passes through transformers and SAEs compute and move: the parts that jobs consist of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nullsae.config.model_size import BYTES, Size
from nullsae.config.saes import Sae, recipe_name
from nullsae.config.study import Config
from nullsae.jobs.grid import Keys

# Passes over the logits of a token in float32, for a loss.
LOGIT_PASSES = 6
# An SAE's batch outside training, and the entries of its pre-activations at once.
BATCH_TOKENS, CHUNK_ENTRIES, CHUNK_ROWS, GPU_CHUNK_ENTRIES = 4096, 2**20, 256, 2**28
# What a block holds of a token at once, about, in numbers for each dimension.
BLOCK_NUMBERS = 20.0
# What a job may load first, from the quickest on.
IMPORTS = ("light", "torch", "optimizer", "transformers", "all")
# What adds up over the parts of a job.
SUMMED = ("forward_flops", "forward_elements", "product_flops", "moved_bytes", "host_seconds")


@dataclass(frozen=True)
class Work:
    """What one job takes."""

    tokens: int = 0
    """Tokens of the corpus that it goes through, each pass counted."""
    forward_flops: float = 0.0
    """Of transformers, in their own type."""
    forward_elements: float = 0.0
    """Tokens x blocks x width: what is read and written beside the products."""
    product_flops: float = 0.0
    """Dense products in float32, of SAEs above all."""
    moved_bytes: float = 0.0
    """Read and written in memory."""
    host_seconds: float = 0.0
    """Python and NumPy on a core of the reference CPU."""
    imports: str = "light"
    """What it loads first: light, torch, torch with an optimizer, transformers, or all."""
    written_bytes: float = 0.0
    """That stay."""
    work_bytes: float = 0.0
    """That it keeps in `results/work` until it ends."""
    held_bytes: float = 0.0
    """Of memory that it holds at its highest, beside Python and its libraries."""
    gpu_bytes: float = 0.0
    """Of a GPU's memory that its tensors hold at their highest, where it runs on one."""
    gpu: bool = False
    """Whether it runs on the GPU where there is one."""
    dtype: str = "float32"
    """Of the transformer."""

    @property
    def flops(self) -> float:
        """All operations."""
        return self.forward_flops + self.product_flops

    def shared(self, n_jobs: int) -> Work:
        """One of n jobs that share this work, whose result another job keeps."""
        parts = {name: getattr(self, name) / n_jobs for name in SUMMED}
        return replace(self, **parts, tokens=self.tokens // n_jobs, written_bytes=0.0)


@dataclass(frozen=True)
class CorpusSize:
    """Tokens of a corpus."""

    sae_train_tokens: int
    eval_tokens: int
    read_tokens: int
    """That have to be read to find these."""
    counted: bool
    """Counted in `results/`, or by the config; else estimated from the number of characters."""

    def of(self, split: str) -> int:
        """Tokens of a split."""
        return self.sae_train_tokens if split == "sae_train" else self.eval_tokens


@dataclass(frozen=True)
class SizedStudy:
    """A config with the sizes of what it names."""

    config: Config
    sizes: Mapping[str, Size]
    corpora: Mapping[str, CorpusSize]
    judges: Mapping[str, Size] = field(default_factory=dict)
    """Of the models that scorers run in their jobs, by scorer."""

    @property
    def on_cpu(self) -> bool:
        return self.config.compute.device == "cpu"

    def corpus(self, keys: Keys) -> CorpusSize:
        """Of a job's subject."""
        return self.corpora[self.config.subjects[keys["subject"]].corpus]

    def context_tokens(self, keys: Keys) -> int:
        return self.config.corpora[self.config.subjects[keys["subject"]].corpus].context_tokens

    def cached(self, keys: Keys, split: str) -> int:
        """Tokens of a split whose activations are kept."""
        whole = self.corpus(keys)
        if split == "eval":
            return whole.eval_tokens
        context = self.context_tokens(keys)
        kept = min(self.config.activations.cached_tokens, whole.sae_train_tokens)
        return kept // context * context

    def trained_tokens(self, keys: Keys) -> int:
        """Tokens that SAEs are trained on, in one epoch."""
        whole = self.corpus(keys).sae_train_tokens
        return min(self.config.activations.sae_train_tokens, whole)

    def recipe(self, keys: Keys) -> Sae:
        """How an SAE is made; of one that is made from another, how that one is."""
        found = self.config.saes[recipe_name(keys["sae"])]
        source = found.origin.source
        return found if source is None else self.config.saes[source]

    def sae(self, keys: Keys) -> tuple[Sae, int, int]:
        """Recipe, width of its site, and latents of an SAE."""
        recipe = self.recipe(keys)
        return recipe, self.site_width(keys), self.width(keys, recipe)

    def site_width(self, keys: Keys) -> int:
        """Dimensions of a job's site."""
        return self.sizes[keys["subject"]].width(keys["site"])

    def chunk(self, keys: Keys) -> int:
        """Tokens that are captured, sampled or read at once."""
        kept = self.cached(keys, keys.get("split", "sae_train"))
        return min(self.config.activations.shard_tokens, kept)

    def pass_bytes(self, keys: Keys, n_contexts: int, *, head: bool) -> float:
        """A subject and one batch through it: a block's tensors, `BLOCK_NUMBERS` d a token.

        What is not read of a file that is mapped takes no memory.
        """
        size, tokens = self.sizes[keys["subject"]], n_contexts * self.context_tokens(keys)
        number = size.d_model * BYTES[size.dtype]
        logits = tokens * size.logit_bytes if head else 0.0
        unread = size.vocab_size * number if self.on_cpu and not head else 0.0
        return size.weight_bytes - unread + tokens * BLOCK_NUMBERS * number + logits

    def width(self, keys: Keys, recipe: Sae) -> int:
        """Latents of an SAE; 16 times the site's width for a pretrained one, which alone knows."""
        d, size = self.site_width(keys), self.sizes[keys["subject"]]
        return recipe.width(d, size.vocab_size) or 16 * d


def sharing_passes(study: SizedStudy, cells: Sequence[Keys]) -> list[list[Keys]]:
    """SAEs of a job in groups that share what computes activations; each alone if they are kept."""
    settings = study.config.activations
    if settings.kept:
        return [[cell] for cell in cells]
    groups: dict[tuple[str, str], list[Keys]] = {}
    for cell in cells:
        site = "" if settings.sites_together else cell["site"]
        groups.setdefault((cell["variant"], site), []).append(cell)
    return list(groups.values())


def forward(
    size: Size, n_tokens: float, context: int, *, blocks: int | None = None, head: bool = False
) -> Work:
    """A forward pass: 2 operations per weight and token, and 4 T d for attention over T tokens.

    Kaplan et al. 2020 (arXiv 2001.08361), table 1, without the embeddings, which are looked up, and
    with all T keys per query: masked ones are computed too.
    """
    n = size.n_layers if blocks is None else blocks
    per_token = n * (2.0 * size.block_weights + 4.0 * context * size.attention_width)
    moved = 0.0
    if head:
        per_token += 2.0 * size.d_model * size.vocab_size
        moved = n_tokens * LOGIT_PASSES * 4.0 * size.vocab_size
    return Work(
        tokens=int(n_tokens),
        forward_flops=n_tokens * per_token,
        forward_elements=float(n_tokens) * n * size.d_model,
        moved_bytes=moved,
        dtype=size.dtype,
    )


def together(*parts: Work, **given: Any) -> Work:
    """The sum of several parts of one job; `given` is added, or says what is no sum."""
    added = {n: sum(getattr(part, n) for part in parts) + given.pop(n, 0.0) for n in SUMMED}
    dtype = next((part.dtype for part in parts if part.forward_flops), "float32")
    return Work(**{"tokens": sum(part.tokens for part in parts), "dtype": dtype, **added, **given})


def in_turn(parts: Sequence[Work]) -> Work:
    """One job that does several things after each other: it starts once, and holds the largest.

    It imports what the one imports that needs most.
    """
    return together(
        *parts,
        imports=max((part.imports for part in parts), key=IMPORTS.index),
        written_bytes=sum(part.written_bytes for part in parts),
        work_bytes=max(part.work_bytes for part in parts),
        held_bytes=max(part.held_bytes for part in parts),
        gpu_bytes=max(part.gpu_bytes for part in parts),
        gpu=any(part.gpu for part in parts),
    )


def encoding(recipe: Sae, d: int, m: int, n_tokens: float) -> Work:
    """Encode and decode n tokens by an SAE of m latents at a width of d.

    One product, one read of its result for the choice, two passes over the rows of the hits; the
    nulls that are not trained look up or project.
    """
    k = recipe.kept
    product = 2.0 * d * m * recipe.origin.product_share
    moved = 4.0 * m * (product > 0) + 8.0 * k * d + 16.0 * d
    return Work(product_flops=n_tokens * product, moved_bytes=n_tokens * moved)


def sae_bytes(d: int, m: int, dtype: str = "float32") -> float:
    """sae.safetensors: two matrices, and two vectors in float32."""
    return BYTES[dtype] * 2.0 * m * d + 4.0 * (m + d)


def coding_bytes(recipe: Sae, d: int, m: int) -> float:
    """An SAE that encodes: 1.5 times its weights, a batch, pre-activations."""
    batch = BATCH_TOKENS * (10.0 * d + 12.0 * recipe.kept)
    return 1.5 * sae_bytes(d, m) + batch + 8.0 * max(CHUNK_ENTRIES, CHUNK_ROWS * m)


def coding_gpu_bytes(recipe: Sae, d: int, m: int) -> float:
    """The same on a GPU, which takes more tokens' pre-activations at once."""
    batch = BATCH_TOKENS * (10.0 * d + 12.0 * recipe.kept)
    return 1.5 * sae_bytes(d, m) + batch + 8.0 * min(BATCH_TOKENS * m, GPU_CHUNK_ENTRIES)
