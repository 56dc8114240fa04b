"""The package as installed by pip, in an environment and folder without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet

import nullsae
from nullsae import paths
from nullsae.jobs.rules import rules

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""
CODES = """
import json
from nullsae.jobs.rules import rules
print(json.dumps({name: rule.code() for name, rule in rules().items()}))
"""
TRAINED = paths.RECIPE.format(subject="small", variant="trained", draw=0)


@dataclass(frozen=True)
class Installed:
    """An environment with the built package, and an empty folder to work in."""

    bin: Path
    folder: Path
    sdist: Path
    wheel: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return variables without the checkout, and without the environment's `bin` in PATH."""
        without = ("PYTHONPATH", "VIRTUAL_ENV")
        return {name: value for name, value in os.environ.items() if name not in without}

    def run(self, *command: object, code: int = 0) -> str:
        """Return a command's output and errors; it must exit with this code."""
        done = subprocess.run(
            [self.bin / str(command[0]), *map(str, command[1:])],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=580,
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel made from the sdist; libraries are the current environment's."""
    made = tmp_path_factory.mktemp("made")
    tree = made / "tree"
    ignored = shutil.ignore_patterns(
        *(".git", ".venv*", "results", "build", "dist", "__pycache__", "*.egg-info", ".*cache")
    )
    shutil.copytree(REPOSITORY, tree, ignore=ignored)
    said = subprocess.run(
        [sys.executable, "-c", BUILD, made], cwd=tree, capture_output=True, text=True, check=True
    )
    sdist = made / said.stdout.splitlines()[-1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = ["--quiet", "--no-index", "--no-deps"]
    wheel_of = [*pip, "wheel", *quiet, "--no-build-isolation", "-w", made, sdist]
    subprocess.run(wheel_of, check=True)
    [wheel] = made.glob("*.whl")
    environment = made / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    subprocess.run([*pip, "--python", python, "install", *quiet, wheel], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    Path(site.stdout.strip(), "main.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = tmp_path_factory.mktemp("empty")
    return Installed(python.parent, folder, sdist, wheel)


def test_sdist_and_wheel_say_what_they_are(installed: Installed) -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    with zipfile.ZipFile(installed.wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        of_wheel = Metadata.from_email(archive.read(name), validate=True)
    with tarfile.open(installed.sdist) as archive:
        top = installed.sdist.name.removesuffix(".tar.gz")
        file = archive.extractfile(f"{top}/PKG-INFO")
        assert file is not None
        of_sdist = Metadata.from_email(file.read(), validate=True)
    for found in (of_wheel, of_sdist):
        assert str(found.version) == nullsae.__version__ == citation["version"]
        assert found.requires_python == SpecifierSet(">=3.11,<3.14")
        assert {"saelens", "gguf", "slurm", "local-llm", "multi-gpu", "dev", "docs"} <= {
            *(found.provides_extra or ())
        }
        assert found.description
        assert found.description_content_type == "text/markdown"
    if shutil.which("twine"):
        subprocess.run(["twine", "check", "--strict", installed.sdist, installed.wheel], check=True)


def test_the_installed_package_is_whole_and_has_the_code_of_the_checkout(
    installed: Installed,
) -> None:
    place = "from nullsae.core.home import workflow_folder as w; print(w())"
    home = Path(installed.run("python", "-c", place).strip())
    assert home.is_relative_to(installed.bin.parent)
    here = {name: rule.code() for name, rule in rules().items()}
    assert json.loads(installed.run("python", "-c", CODES)) == here
    assert installed.run("nullsae", "--version").strip() == nullsae.__version__


def test_a_study_that_comes_with_nullsae_is_planned_and_listed(installed: Installed) -> None:
    said = installed.run("nullsae", "init", "quick", "--from", "quick")
    assert said == "quick/study.yaml: quick. Next: nullsae run quick\n"
    assert "train_sae" in installed.run("nullsae", "plan", "quick")
    dry = installed.run("nullsae", "run", "quick", "--", "-n", "--quiet", "rules")
    # Its overlay counts: three variants at one site, without floors. A dry run says it twice.
    trained = {line for line in dry.splitlines() if line.startswith("train_saes_")}
    assert [line.split()[1] for line in trained] == ["1"] * 3
    assert not (installed.folder / "quick/results").exists()
    installed.run("nullsae", "run", "quick", "--", "--no-such-option", code=2)


def test_ctrl_c_ends_snakemake_itself_and_frees_the_folder(installed: Installed) -> None:
    installed.run("nullsae", "init", "stopped", "--from", "quick")
    # Tests that a script runs in the background would pass on that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [installed.bin / "nullsae", "run", "stopped"],
        cwd=installed.folder,
        env=installed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    study = installed.folder / "stopped"
    while process.poll() is None and not any((study / "results/logs").rglob("*.log")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said
    assert "Terminating processes on user request" in said
    assert not [*(study / ".snakemake").glob("locks/*")]


@pytest.mark.weekly
def test_a_local_model_is_answered_in_two_commands(installed: Installed) -> None:
    """The model is the quick study's, saved with its tokenizer as a user would."""
    folder = installed.folder
    installed.run("nullsae", "init", "source", "--from", "quick")
    installed.run("nullsae", "run", "source", "--", TRAINED)
    model = folder / "mine"
    shutil.copytree((folder / "source" / TRAINED).parent, model)
    tokenizer = folder / "source" / paths.TOKENIZER.format(corpus="sotu")
    for file in tokenizer.iterdir():
        shutil.copy(file, model)
    said = installed.run("nullsae", "init", "study", "--model", "mine")
    assert "(2 blocks of 64 dimensions), at resid_post.1." in said
    assert "Next: nullsae run study" in said
    overlay = folder / "study/study.yaml"
    # What was guessed is for an hour; this is for a minute.
    text = yaml.safe_load(overlay.read_text(encoding="utf-8"))
    text["variants"] = ["trained", "rerandomized"]
    text["corpora"]["text"] |= {"sae_train_tokens": 60_000, "eval_tokens": 16_384}
    text["activations"]["sae_train_tokens"] = 50_000
    text["saes"]["topk"] |= {"n_latents": 128, "batch_tokens": 512}
    text["evaluation"] |= {"gaussian_floors": False, "fidelity_tokens": 2048}
    text["statistics"] = {"n_resamples": 200}
    overlay.write_text(yaml.safe_dump(text), encoding="utf-8")
    installed.run("nullsae", "run", "study")
    assert "Report: " in installed.run("nullsae", "verdicts", "study")
    page = Path(installed.run("nullsae", "report", "study").strip())
    assert page == folder / "study" / paths.REPORT
    assert page.stat().st_size > 10_000
    assert "Nothing to be done" in installed.run("nullsae", "run", "study", "--", "--quiet", "host")
    assert "Verdicts: the same." in installed.run("nullsae", "diff", "study", "study")
    assert "results/:" in installed.run("nullsae", "prune", "study")
