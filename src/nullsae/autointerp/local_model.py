"""A causal language model that judges explanations in the job's own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from nullsae.config.corpora import GgufTokenizer, PretrainedTokenizer
from nullsae.config.model_files import find_gguf
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.core.errors import UserError
from nullsae.core.files import (
    atomic_folder,
    checksum,
    read_json,
    rebuild_command,
    verify,
    write_json,
)
from nullsae.core.provenance import note_revision
from nullsae.corpus.tokenizer import Encoder, load_tokenizer
from nullsae.jobs.autointerp import PrepareJudgeParams
from nullsae.subjects.families import context_limit
from nullsae.subjects.loading import DTYPES, fetch, place

WHERE = "config: scorers.*.model"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class LocalJudge:
    """A causal language model and its tokenizer, ready to run."""

    model: Any
    """A Hugging Face causal language model in evaluation mode."""
    tokenizer: Tokenizer
    name: str
    """For tables: the hub id or folder, or the name of the GGUF file."""
    device: torch.device
    """The device for its inputs."""

    @property
    def context_tokens(self) -> int | None:
        """The most tokens that it reads at once; None if its config has no limit."""
        return context_limit(self.model)


def prepare_judge(params: PrepareJudgeParams, output: Path) -> None:
    """Check that a judge can be loaded, and record how.

    A GGUF file is converted once, to a checkpoint folder next to the manifest, because reading one
    takes minutes. A pretrained model is not copied: the manifest pins the commit that was found.
    The manifest `output` is written last, so a folder without one is unfinished. Raises a
    `UserError` if the model or its tokenizer cannot be loaded, or weights are missing.
    """
    source = params.model
    output.unlink(missing_ok=True)
    encoder, model = _fetch_tokenizer(source), _fetch_model(source)
    manifest: dict[str, Any] = {"source": source.model_dump(mode="json")}
    if isinstance(source, GgufSource):
        manifest["name"] = find_gguf(source, where=WHERE).name
        manifest["files"] = _save(model, encoder, output.parent / CHECKPOINT)
    else:
        manifest["name"] = source.path
        # The main branch may change between the jobs of a study.
        manifest["commit"] = getattr(model.config, "_commit_hash", None)
        note_revision(f"model {source.path}", manifest["commit"])
    write_json(output, manifest)


def load_judge(manifest: Path, device: torch.device) -> LocalJudge:
    """Load a judge by the manifest that `prepare_judge` wrote, and verify the files it made.

    Raises a `UserError` if a file is missing or damaged, or the model can no longer be loaded.
    """
    from transformers import AutoModelForCausalLM

    rebuild = rebuild_command(manifest)
    described = read_json(manifest, rebuild=rebuild)
    model: Any
    if described["source"]["kind"] == "gguf":
        folder = manifest.parent / CHECKPOINT
        for name, expected in described["files"].items():
            verify(folder / name, expected, rebuild=rebuild)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[described["source"]["dtype"]],
            use_safetensors=True,
            trust_remote_code=False,
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        source = PretrainedSource(**described["source"])
        if described["commit"] is not None:
            source = source.model_copy(update={"revision": described["commit"]})
        tokenizer = _fetch_tokenizer(source).tokenizer.backend_tokenizer
        model = _fetch_model(source)
    model = place(model.eval().requires_grad_(False), described, device)
    return LocalJudge(model, tokenizer, described["name"], device)


def _fetch_model(source: PretrainedSource | GgufSource) -> Any:
    try:
        return fetch(source)
    except UserError as error:
        said = str(error).replace("config: subjects.*.source", WHERE).replace("subject ", "judge ")
        raise UserError(said) from None


def _fetch_tokenizer(source: PretrainedSource | GgufSource) -> Encoder:
    kind = GgufTokenizer if isinstance(source, GgufSource) else PretrainedTokenizer
    shared = source.model_dump(include=set(kind.model_fields))
    return load_tokenizer(kind(**shared), where=WHERE)


def _save(model: Any, encoder: Encoder, folder: Path) -> dict[str, str]:
    """Write a checkpoint folder, replacing an old one; return each file's checksum."""
    with atomic_folder(folder) as made:
        model.save_pretrained(made)
        encoder.tokenizer.save_pretrained(made)
    return {file.name: checksum(file) for file in sorted(folder.iterdir())}
