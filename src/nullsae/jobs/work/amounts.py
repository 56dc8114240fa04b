"""Work of passes through transformers and SAEs, the parts that jobs consist of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nullsae.config.model_size import BYTES, Size
from nullsae.config.saes import Sae, recipe_name
from nullsae.config.study import Config
from nullsae.jobs.grid import Keys

# Passes over the logits of a token in float32, for a loss.
LOGIT_PASSES = 6
# An SAE's batch outside training, and the entries of pre-activations held at once.
BATCH_TOKENS, CHUNK_ENTRIES, CHUNK_ROWS, GPU_CHUNK_ENTRIES = 4096, 2**20, 256, 2**28
# About how many numbers a block holds at once per token and dimension.
BLOCK_NUMBERS = 20.0
# What a job may load first, fastest first.
IMPORTS = ("light", "torch", "optimizer", "transformers", "all")
# Fields that add up over the parts of a job.
SUMMED = ("forward_flops", "forward_elements", "product_flops", "moved_bytes", "host_seconds")


@dataclass(frozen=True)
class Work:
    """The work of one job."""

    tokens: int = 0
    """Tokens of the corpus that it processes, summed over passes."""
    forward_flops: float = 0.0
    """Operations of transformers, in their own dtype."""
    forward_elements: float = 0.0
    """Tokens x blocks x width: a measure of memory traffic besides the products."""
    product_flops: float = 0.0
    """Operations of dense products in float32, mostly of SAEs."""
    moved_bytes: float = 0.0
    """Bytes read and written in memory."""
    host_seconds: float = 0.0
    """Time of Python and NumPy on a core of the reference CPU."""
    imports: str = "light"
    """What it loads first: light, torch, torch with an optimizer, transformers, or all."""
    written_bytes: float = 0.0
    """Bytes on disk that stay."""
    work_bytes: float = 0.0
    """Bytes in `results/work` until it ends."""
    held_bytes: float = 0.0
    """Peak memory, without Python and its libraries."""
    gpu_bytes: float = 0.0
    """Peak memory of its tensors on a GPU, if it runs on one."""
    gpu: bool = False
    """Whether it runs on the GPU if there is one."""
    dtype: str = "float32"
    """Type of the transformer."""

    @property
    def flops(self) -> float:
        """All operations."""
        return self.forward_flops + self.product_flops

    def shared(self, n_jobs: int) -> Work:
        """Return the work of one of n jobs that share this, whose result another job keeps."""
        parts = {name: getattr(self, name) / n_jobs for name in SUMMED}
        return replace(self, **parts, tokens=self.tokens // n_jobs, written_bytes=0.0)


@dataclass(frozen=True)
class CorpusSize:
    """Tokens of a corpus."""

    sae_train_tokens: int
    eval_tokens: int
    read_tokens: int
    """Tokens to read to get these."""
    counted: bool
    """Whether counted in `results/` or set by the config, not estimated from characters."""

    def of(self, split: str) -> int:
        """Return the tokens of a split."""
        return self.sae_train_tokens if split == "sae_train" else self.eval_tokens


@dataclass(frozen=True)
class SizedStudy:
    """A config with the sizes of its models and corpora."""

    config: Config
    sizes: Mapping[str, Size]
    corpora: Mapping[str, CorpusSize]
    judges: Mapping[str, Size] = field(default_factory=dict)
    """Sizes of the models that scorers run in their jobs, by scorer."""

    @property
    def on_cpu(self) -> bool:
        return self.config.compute.device == "cpu"

    def corpus(self, keys: Keys) -> CorpusSize:
        """Return the corpus of a job's subject."""
        return self.corpora[self.config.subjects[keys["subject"]].corpus]

    def context_tokens(self, keys: Keys) -> int:
        return self.config.corpora[self.config.subjects[keys["subject"]].corpus].context_tokens

    def cached(self, keys: Keys, split: str) -> int:
        """Return the tokens of a split whose activations are kept."""
        whole = self.corpus(keys)
        if split == "eval":
            return whole.eval_tokens
        context = self.context_tokens(keys)
        kept = min(self.config.activations.cached_tokens, whole.sae_train_tokens)
        return kept // context * context

    def trained_tokens(self, keys: Keys) -> int:
        """Return the tokens that SAEs are trained on, in one epoch."""
        whole = self.corpus(keys).sae_train_tokens
        return min(self.config.activations.sae_train_tokens, whole)

    def recipe(self, keys: Keys) -> Sae:
        """Return the recipe of an SAE, or of the SAE that it is made from."""
        found = self.config.saes[recipe_name(keys["sae"])]
        source = found.origin.source
        return found if source is None else self.config.saes[source]

    def sae(self, keys: Keys) -> tuple[Sae, int, int]:
        """Return an SAE's recipe, width of its site, and number of latents."""
        recipe = self.recipe(keys)
        return recipe, self.site_width(keys), self.width(keys, recipe)

    def site_width(self, keys: Keys) -> int:
        """Return the dimensions of a job's site."""
        return self.sizes[keys["subject"]].width(keys["site"])

    def chunk(self, keys: Keys) -> int:
        """Return how many tokens are captured, sampled or read at once."""
        kept = self.cached(keys, keys.get("split", "sae_train"))
        return min(self.config.activations.shard_tokens, kept)

    def block_bytes(self, keys: Keys, widths: Iterable[float]) -> float:
        """Return the memory of the blocks of a training, at sites of these widths.

        On a CPU these are two. On a GPU, two are in memory that it reads directly, which PyTorch
        rounds up to a power of two, and one more is permuted on its way there.
        """
        plain = [d * self.chunk(keys) * BYTES[self.config.activations.dtype] for d in widths]
        if self.on_cpu:
            return 2.0 * sum(plain)
        return sum(plain) + 2.0 * sum(2.0 ** math.ceil(math.log2(n)) for n in plain)

    def pass_bytes(self, keys: Keys, n_contexts: int, *, head: bool) -> float:
        """Return the memory of a subject and a batch in it: `BLOCK_NUMBERS` d per token of a block.

        Parts of a mapped file that are not read take no memory.
        """
        size, tokens = self.sizes[keys["subject"]], n_contexts * self.context_tokens(keys)
        number = size.d_model * BYTES[size.dtype]
        logits = tokens * size.logit_bytes if head else 0.0
        unread = size.vocab_size * number if self.on_cpu and not head else 0.0
        return size.weight_bytes - unread + tokens * BLOCK_NUMBERS * number + logits

    def width(self, keys: Keys, recipe: Sae) -> int:
        """Return the latents of an SAE; 16 times the site's width for a pretrained one."""
        d, size = self.site_width(keys), self.sizes[keys["subject"]]
        return recipe.width(d, size.vocab_size) or 16 * d


def sharing_passes(study: SizedStudy, cells: Sequence[Keys]) -> list[list[Keys]]:
    """Group a job's SAEs by shared passes that compute activations; one each if these are kept."""
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
    """Return the work of a forward pass.

    It takes 2 operations per weight and token, and 4 T d for attention over T tokens: Kaplan et al.
    2020 (arXiv 2001.08361), table 1, without the embeddings, which are looked up, and with all T
    keys per query, as masked ones are computed too.
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
    """Sum the parts of one job; `given` is added, or sets the fields that are not sums."""
    added = {n: sum(getattr(part, n) for part in parts) + given.pop(n, 0.0) for n in SUMMED}
    dtype = next((part.dtype for part in parts if part.forward_flops), "float32")
    return Work(**{"tokens": sum(part.tokens for part in parts), "dtype": dtype, **added, **given})


def in_turn(parts: Sequence[Work]) -> Work:
    """Return the work of one job that runs several parts in sequence.

    It starts once, with the imports of the part that needs most, and its memory is the largest.
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
    """Return the work to encode and decode n tokens with an SAE of m latents and width d.

    One product, one read of its result to select, two passes over the rows of the hits; untrained
    nulls look up or project.
    """
    k = recipe.kept
    product = 2.0 * d * m * recipe.origin.product_share
    moved = 4.0 * m * (product > 0) + 8.0 * k * d + 16.0 * d
    return Work(product_flops=n_tokens * product, moved_bytes=n_tokens * moved)


def sae_bytes(d: int, m: int, dtype: str = "float32") -> float:
    """Return the size of sae.safetensors: two matrices, and two vectors in float32."""
    return BYTES[dtype] * 2.0 * m * d + 4.0 * (m + d)


def coding_bytes(recipe: Sae, d: int, m: int) -> float:
    """Return the memory to encode: 1.5 times the SAE's weights, a batch, pre-activations."""
    batch = BATCH_TOKENS * (10.0 * d + 12.0 * recipe.kept)
    return 1.5 * sae_bytes(d, m) + batch + 8.0 * max(CHUNK_ENTRIES, CHUNK_ROWS * m)


def coding_gpu_bytes(recipe: Sae, d: int, m: int) -> float:
    """Return the same for a GPU, which computes more tokens' pre-activations at once."""
    batch = BATCH_TOKENS * (10.0 * d + 12.0 * recipe.kept)
    return 1.5 * sae_bytes(d, m) + batch + 8.0 * min(BATCH_TOKENS * m, GPU_CHUNK_ENTRIES)
