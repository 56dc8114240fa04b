"""Targets of `fuzz.py`: configs, prompts, and the files of SAEs and models."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml

ROOT = Path(__file__).parents[1]
D_MODEL, N_LATENTS, SITE = 16, 32, "resid_post.1"


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
        """Merge it into the default config; name what it is trusted with."""
        from nullsae.config.read import read_merged_config
        from nullsae.planning.trusted import trusted_keys

        file = folder / "config.yaml"
        file.write_bytes(data)
        config = read_merged_config([ROOT / "config.yaml", file])
        trusted_keys(config)
        config.model_dump_json()


class Prompts:
    """Prompt files. Their templates are rendered by a process, which is started once."""

    name: ClassVar[str] = "prompt"
    allowed: ClassVar[tuple[str, ...]] = ("subprocess.Popen", "os.posix_spawn")

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """Those of nullsae."""
        folder = ROOT / "src/nullsae/autointerp/prompts"
        kinds = ("detection", "explain", "fuzzing", "intruder")
        return tuple((folder / f"{kind}.txt").read_bytes() for kind in kinds)

    def read(self, data: bytes, folder: Path) -> None:
        """Read and render one."""
        from nullsae.autointerp.prompting import load_prompt

        file = folder / "mine.txt"
        file.write_bytes(data)
        load_prompt.cache_clear()
        load_prompt("detection", str(file)).check(explanation="E", windows=["a", "b"])


class Beside:
    """A file among others that are as they should be: a folder of them, made once."""

    name: str
    file: str

    @cached_property
    def folder(self) -> Path:
        """What stands beside the file; removed with the process."""
        self._kept = tempfile.TemporaryDirectory(prefix="fuzz.made.")
        made = Path(self._kept.name)
        self.make(made)
        return made

    def make(self, folder: Path) -> None:
        """Write the whole folder."""
        raise NotImplementedError

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """The file as it should be."""
        return ((self.folder / self.file).read_bytes(),)

    def placed(self, data: bytes, folder: Path) -> Path:
        """The folder with this content of the file."""
        made = folder / "made"
        shutil.copytree(self.folder, made)
        (made / self.file).write_bytes(data)
        return made


class Saes(Beside):
    """A file of an SAE in one of the formats that are read."""

    def __init__(self, layout: str, file: str) -> None:
        self.layout, self.file = layout, file
        self.name = f"{layout}_{file.split('.')[0]}"

    def make(self, folder: Path) -> None:
        """Write a TopK SAE of random weights."""
        import torch

        from nullsae.jobs.keys import CellKeys
        from nullsae.sae.autoencoder import Autoencoder
        from nullsae.sae.exchange.export import export_sae
        from nullsae.sae.files import save_sae

        g = torch.Generator().manual_seed(0)
        shapes = ((N_LATENTS, D_MODEL), (N_LATENTS,), (N_LATENTS, D_MODEL), (D_MODEL,))
        sae = Autoencoder("topk", *(torch.randn(*s, generator=g) for s in shapes), k=4)
        keys = CellKeys(subject="s", variant="trained", draw=0, site=SITE, sae="a", seed=0)
        described: dict[str, Any] = {"dictionary": "learned", "keys": keys, "seed": 0}
        described |= {"activations_key": "a", "key": "k", "input_norm": 1.0, "training": {}}
        own = folder if self.layout == "nullsae" else folder / "own"
        own.mkdir(exist_ok=True)
        save_sae(sae, own, n_steps=1, **described)
        if self.layout != "nullsae":
            export_sae(own / "cfg.json", self.layout, folder)
            shutil.rmtree(own)

    def read(self, data: bytes, folder: Path) -> None:
        """As `saes.NAME.pretrained` is read."""
        from nullsae.sae.exchange.pretrained import read_pretrained

        read_pretrained(str(self.placed(data, folder)), SITE, where="config: saes.a.pretrained")


class Models(Beside):
    """A file of a subject whose weights lie in several files."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.name = "model_config" if file == "config.json" else "index"

    def make(self, folder: Path) -> None:
        """Save a tiny GPT-NeoX of random weights, in pieces."""
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
        """As `subjects.NAME.source` is read."""
        from nullsae.config.subjects import PretrainedSource
        from nullsae.subjects.loading import fetch

        fetch(PretrainedSource(kind="pretrained", path=str(self.placed(data, folder))))


def targets() -> list[Any]:
    """All of this module."""
    saes = [Saes(layout, "cfg.json") for layout in ("nullsae", "saelens", "sparsify")]
    weights = [Saes("nullsae", "sae.safetensors"), Saes("saelens", "sae_weights.safetensors")]
    models = [Models("model.safetensors.index.json"), Models("config.json")]
    return [Configs(), Prompts(), *saes, *weights, *models]
