"""docs/python.md, run."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nullsae
from nullsae.config.corpora import TrainedTokenizer
from nullsae.core.files import write_json
from nullsae.core.randomness import torch_generator
from nullsae.corpus.tokenizer import train_tokenizer
from nullsae.sae.exchange.export import LAYOUTS
from nullsae.sae.initialization import initialize
from small_chain import D_MODEL, tiny_model

PAGE = Path(__file__).parents[2] / "docs/python.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
N_LATENTS = 48


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the page's names are a small model, an SAE and texts."""
    texts = [text.replace("\n\n", "\n") for text in topics.values()][:16]
    encoder = train_tokenizer(texts, TrainedTokenizer(kind="train", vocab_size=300))
    model = tiny_model("gpt_neox", num_hidden_layers=4, vocab_size=300, max_position_embeddings=128)
    at = tmp_path / "EleutherAI/pythia-70m"
    model.save_pretrained(at)
    encoder.tokenizer.save_pretrained(at)
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))

    ids = torch.from_numpy(np.concatenate(encoder.encode(texts))[:2048]).long()
    with torch.no_grad():
        states = model(ids.reshape(-1, 128), output_hidden_states=True).hidden_states[4]
    sae = initialize(
        states.flatten(0, 1), n_latents=N_LATENTS, k=4, generator=torch_generator(0, "docs")
    )
    config, tensors = LAYOUTS["sparsify"](sae)
    at = tmp_path / "EleutherAI/sae-pythia-70m-32k/layers.3"
    at.mkdir(parents=True)
    save_file(tensors, at / "sae.safetensors")
    write_json(at / "cfg.json", config)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def score_latents(model: Any) -> np.ndarray:
    """Somebody's pipeline: the share of tokens at which each dimension is above its mean."""
    ids = torch.randint(300, (8, 64), generator=torch_generator(0, "somebody"))
    with torch.no_grad():
        x = model(ids, output_hidden_states=True).hidden_states[4].flatten(0, 1)
    return (x > x.mean(0)).double().mean(0).numpy()


def test_all_code_of_the_page_runs_in_order(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"score_latents": score_latents}
    before = sorted(folder.rglob("*"))
    for number, block in enumerate(CODE, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    assert sorted(folder.rglob("*")) == before
    said = capsys.readouterr().out
    assert "Verdict(word=" in said
    assert names["real"].shape[0] == N_LATENTS
    assert names["real"].passes_filter.sum() > 10
    assert names["real"].next_token_auroc.notna().sum() == names["real"].passes_filter.sum()
    assert [p.n_latents for p in names["placebos"].values()] == [
        N_LATENTS,
        32,
        32,
        1 + int(names["ids"].max()),
        *(N_LATENTS, N_LATENTS),
    ]
    assert len(score_latents(names["model"])) == D_MODEL
    assert all(one.interval is not None for one in names["contrasts"])


def test_the_snippet_at_the_top_has_five_lines() -> None:
    assert len(CODE[0].splitlines()) == 5


def test_every_public_function_stands_in_the_table_of_the_page() -> None:
    functions = {name for name in nullsae.__all__ if name[0].islower()}
    listed = re.findall(r"^\| `(\w+)\(", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed) == functions


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)", PAGE.read_text(encoding="utf-8")))
def test_links_lead_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists()
