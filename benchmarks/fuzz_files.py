"""Targets of `fuzz.py`: configs, prompts, the files of models, and text."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml

ROOT = Path(__file__).parents[1]
D_MODEL = 16


class Configs:
    """`config.yaml`, as all commands read it."""

    name: ClassVar[str] = "config"

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """The study's own files: as they are, and as JSON, whose values are changed one by one."""
        files = [ROOT / "config.yaml", *sorted((ROOT / "config").glob("*.yaml"))]
        texts = [file.read_bytes() for file in files]
        return (*texts, *(json.dumps(yaml.safe_load(text)).encode() for text in texts))

    def read(self, data: bytes, folder: Path) -> None:
        """Merge it into the default config; list what it is trusted with."""
        from nullsae.config.read import read_merged_config
        from nullsae.planning.trusted import trusted_keys

        file = folder / "config.yaml"
        file.write_bytes(data)
        config = read_merged_config([ROOT / "config.yaml", file])
        trusted_keys(config)
        config.model_dump_json()


class Prompts:
    """Prompt files. Their templates are rendered by a process that is started once."""

    name: ClassVar[str] = "prompt"
    allowed: ClassVar[tuple[str, ...]] = ("subprocess.Popen", "os.posix_spawn")

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """The prompts of nullsae."""
        folder = ROOT / "src/nullsae/autointerp/prompts"
        kinds = ("detection", "explain", "fuzzing", "intruder")
        return tuple((folder / f"{kind}.txt").read_bytes() for kind in kinds)

    def read(self, data: bytes, folder: Path) -> None:
        """Read and render one prompt."""
        from nullsae.autointerp.prompting import load_prompt

        file = folder / "mine.txt"
        file.write_bytes(data)
        load_prompt.cache_clear()
        load_prompt("detection", str(file)).check(explanation="E", windows=["a", "b"])


class Beside:
    """A file in a folder whose other files are valid; the folder is made once."""

    name: str
    file: str

    @cached_property
    def folder(self) -> Path:
        """The folder of valid files; removed with the process."""
        self._kept = tempfile.TemporaryDirectory(prefix="fuzz.made.")
        made = Path(self._kept.name)
        self.make(made)
        return made

    def make(self, folder: Path) -> None:
        """Write the whole folder."""
        raise NotImplementedError

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """The valid file."""
        return ((self.folder / self.file).read_bytes(),)

    def placed(self, data: bytes, folder: Path) -> Path:
        """Return the folder with this content of the file."""
        made = folder / "made"
        shutil.copytree(self.folder, made)
        (made / self.file).write_bytes(data)
        return made


class Models(Beside):
    """A file of a subject whose weights are split over several files."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.name = "model_config" if file == "config.json" else "index"

    def make(self, folder: Path) -> None:
        """Save a tiny GPT-NeoX of random weights, in several files."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        sizes: dict[str, Any] = {"hidden_size": D_MODEL, "intermediate_size": 2 * D_MODEL}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
        config = transformers.GPTNeoXConfig(**sizes, max_position_embeddings=32)
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder, max_shard_size="8KB")
        assert (folder / "model.safetensors.index.json").is_file()

    def read(self, data: bytes, folder: Path) -> None:
        """Read it like `subjects.NAME.source`."""
        from nullsae.config.subjects import PretrainedSource
        from nullsae.subjects.loading import fetch

        fetch(PretrainedSource(kind="pretrained", path=str(self.placed(data, folder))))


class Texts:
    """A file of a corpus."""

    def __init__(self, suffix: str) -> None:
        self.suffix, self.name = suffix, f"text_{suffix.replace('.', '_')}"

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """A few documents in several alphabets."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [
            "It was the best of times.",
            "Ærø \U0001f600 \u05d0\u05d1",
            "",
            "def f():\n\treturn 1\n",
        ]
        if self.suffix == "jsonl":
            return ("".join(json.dumps({"text": text}) + "\n" for text in texts).encode(),)
        sink = pa.BufferOutputStream()
        if self.suffix == "parquet":
            pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), sink)
        else:
            codec = {"gz": "gzip", "zst": "zstd"}[self.suffix.split(".")[1]]
            with pa.CompressedOutputStream(sink, codec) as stream:
                stream.write("\r\n".join(texts).encode("utf-16"))
        return (sink.getvalue().to_pybytes(),)

    def read(self, data: bytes, folder: Path) -> None:
        """Read it like `corpora.NAME.source`."""
        from nullsae.config.corpora import FilesSource
        from nullsae.corpus.reading import Reader
        from nullsae.corpus.sources import documents

        file = folder / f"text.{self.suffix}"
        file.write_bytes(data)
        source = FilesSource(kind="files", paths=(str(file),))
        for document in Reader(documents(source, where="config: corpora.a.source"), 0.5):
            document.text.encode()


def targets() -> list[Any]:
    """Return the targets of this module."""
    models = [Models("model.safetensors.index.json"), Models("config.json")]
    texts = [Texts("jsonl"), Texts("parquet"), Texts("txt.gz"), Texts("txt.zst")]
    return [Configs(), Prompts(), *models, *texts]
