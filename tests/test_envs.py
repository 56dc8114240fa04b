"""The environments for conda and containers: what they pin, and what they contain."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nullsae
from nullsae.jobs.entry import IMAGE, image

REPOSITORY = Path(__file__).parents[1]
ENVS = REPOSITORY / "envs"
PACKAGE = Path(nullsae.__file__).parent
# What a run reads at the top of a checkout.
COPIED, ALONE = ("src", "config", "envs", "profiles", "workflow"), ("Snakefile", "config.yaml")
# What each environment contains besides requirements.lock.
ADDED = {
    "nullsae": (),
    "nullsae-cpu": (),
    "nullsae-gpu": ("envs/requirements-gpu.txt",),
    "nullsae-slurm": ("envs/requirements-gpu.txt", "requirements-slurm.txt"),
}


def pins_of(lines: list[str]) -> dict[str, str]:
    """Return versions by canonical name; each line is a pin, and no name occurs twice."""
    requirements = [Requirement(line) for line in lines]
    found = {}
    for requirement in requirements:
        [specifier] = requirement.specifier
        assert specifier.operator == "=="
        found[str(canonicalize_name(requirement.name))] = specifier.version
    assert len(found) == len(lines)
    return found


def pins(name: str) -> dict[str, str]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return pins_of([line for line in lines if not line.startswith("#")])


def conda_pip(name: str) -> list[str]:
    """Return the requirements that a conda environment passes to pip."""
    described = yaml.safe_load((ENVS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert described["name"] == name
    assert described["channels"] == ["conda-forge", "nodefaults"]
    *conda, last = described["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert list(last) == ["pip"]
    return list(last["pip"])


@pytest.mark.parametrize("name", ADDED)
def test_a_conda_environment_has_the_versions_of_the_lock(name: str) -> None:
    expected = pins("requirements.lock")
    for file in ADDED[name]:
        assert not expected.keys() & pins(file).keys()
        expected |= pins(file)
    listed = conda_pip(name)
    if name == "nullsae-cpu":
        assert listed.pop(0) == "--extra-index-url https://download.pytorch.org/whl/cpu"
        expected["torch"] += "+cpu"
    assert pins_of(listed) == expected


def test_every_environment_is_compared() -> None:
    assert {file.stem for file in ENVS.glob("*.yaml")} == ADDED.keys()


def test_the_script_that_writes_the_environments_writes_these(tmp_path: Path) -> None:
    for name in ("requirements.lock", "requirements-slurm.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "envs").mkdir()
    for name in ("requirements-gpu.txt", "write_envs.py"):
        shutil.copy(ENVS / name, tmp_path / "envs")
    subprocess.run([sys.executable, tmp_path / "envs/write_envs.py"], check=True)
    for name in ADDED:
        written = (tmp_path / f"envs/{name}.yaml").read_text(encoding="utf-8")
        assert (ENVS / f"{name}.yaml").read_text(encoding="utf-8") == written


def test_the_lock_holds_versions_that_the_package_allows() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    given = pins("requirements.lock") | pins("requirements-slurm.txt")
    needed = [*project["dependencies"], *project["optional-dependencies"]["slurm"]]
    for requirement in map(Requirement, needed):
        assert given[canonicalize_name(requirement.name)] in requirement.specifier


def dockerfile() -> list[tuple[str, str]]:
    """Return instructions with their arguments, with continued lines joined."""
    text = (ENVS / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def dockerfile_copies() -> dict[str, str]:
    """Return what the image gets, by its path below /opt/nullsae."""
    copied, folder = {}, ""
    for word, rest in dockerfile():
        if word == "WORKDIR":
            folder = rest
        if word != "COPY":
            continue
        assert folder == "/opt/nullsae"
        *sources, target = shlex.split(rest)
        for source in sources:
            copied[f"{target}{source}" if target.endswith("/") else target] = source
    return {place.removeprefix("./"): source for place, source in copied.items()}


def sections() -> dict[str, list[str]]:
    """Return lines of the Apptainer definition by section, without comments; the header is ''."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in (ENVS / "nullsae.def").read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line
            found[name] = []
        elif line.strip() and not line.lstrip().startswith("#"):
            found[name].append(line.strip())
    return found


def installs(commands: str) -> list[list[str]]:
    """Return the arguments of each `pip install` in shell commands."""
    words = shlex.split(commands.replace("\\\n", " ").replace("&&", " ; ").replace("\n", " ; "))
    found: list[list[str]] = []
    for index, word in enumerate(words):
        if word == "install" and words[index - 1] == "pip":
            end = words.index(";", index) if ";" in words[index:] else len(words)
            found.append(words[index + 1 : end])
    return found


def test_the_two_containers_hold_the_same() -> None:
    copied = dict(reversed(line.split()) for line in sections()["%files"])
    assert {
        place.removeprefix("/opt/nullsae/"): source for place, source in copied.items()
    } == dockerfile_copies()
    [base] = [rest for word, rest in dockerfile() if word == "FROM"]
    assert sections()[""] == ["Bootstrap: docker", f"From: {base}"]
    [python] = re.findall(r"python:(\d+\.\d+)-", base)
    assert f"python={python}" in (ENVS / "nullsae.yaml").read_text(encoding="utf-8")


def test_a_container_installs_only_what_the_lock_pins() -> None:
    by_docker = installs("\n".join(rest for word, rest in dockerfile() if word == "RUN"))
    by_apptainer = installs("\n".join(sections()["%post"]).replace("\\\n", " "))
    quiet = {"--no-cache-dir", "--disable-pip-version-check"}
    code = ["--no-deps", "--no-build-isolation", "."]
    arguments = [rest for word, rest in dockerfile() if word == "ARG"]
    assert arguments == ["GPU_REQUIREMENTS=envs/requirements-gpu.txt", "PIP_EXTRA_INDEX_URL"]
    assert "gpu_requirements=envs/requirements-gpu.txt" in sections()["%arguments"]
    locked = ["-r", "requirements.lock", "-r"]
    assert [[w for w in words if w not in quiet] for words in by_docker] == [
        [*locked, "$GPU_REQUIREMENTS"],
        code,
    ]
    assert [[w for w in words if w not in quiet] for words in by_apptainer] == [
        ["--extra-index-url", "{{", "index", "}}", *locked, "{{", "gpu_requirements", "}}"],
        code,
    ]


def test_a_container_neither_runs_as_root_nor_looks_for_a_hub() -> None:
    last = dict(dockerfile())
    assert last["USER"].split(":")[0].isdigit()
    assert last["USER"].split(":")[0] != "0"
    assert {"HF_HUB_OFFLINE=1", "HF_DATASETS_OFFLINE=1"} <= set(last["ENV"].split())
    assert last["ENTRYPOINT"] == '["snakemake", "--snakefile", "/opt/nullsae/Snakefile"]'
    assert sections()["%runscript"] == ['exec snakemake --snakefile /opt/nullsae/Snakefile "$@"']
    assert "HF_HUB_OFFLINE" in "".join(sections()["%environment"])


def test_a_container_holds_every_file_that_the_workflow_reads(tmp_path: Path) -> None:
    """Its files, as they are copied, and a dry run of a study in another folder."""
    image, study = tmp_path / "opt/nullsae", tmp_path / "study"
    ignored = (ENVS / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for place, source in dockerfile_copies().items():
        assert f"!{Path(source).parts[0]}" in ignored
        target = image / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, target)
        else:
            shutil.copy(REPOSITORY / source, target)
    study.mkdir()
    shutil.copy(REPOSITORY / "config.yaml", study)
    quick = image / "config/quick.yaml"
    command = ["snakemake", "--snakefile", image / "Snakefile", "--configfile", quick, "-n"]
    bin_folder = Path(sys.executable).parent
    result = subprocess.run(
        [bin_folder / command[0], *command[1:]], cwd=study, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "train_sae" in result.stdout + result.stderr


# Stands in for Apptainer: it records its arguments, and runs nothing.
APPTAINER = """#!/bin/sh
case "$*" in
--version) echo apptainer version 1.4.0; exit ;;
pull*) touch "$3" ;;
esac
printf '%s\\n' "$*" >> {log}
"""


def test_jobs_run_in_the_image_of_this_version_where_that_is_asked_for(tmp_path: Path) -> None:
    """Without `--sdm apptainer` no image is used, and the jobs are the same."""
    bins, log = tmp_path / "bin", tmp_path / "log"
    bins.mkdir()
    (bins / "apptainer").write_text(APPTAINER.format(log=log), encoding="utf-8")
    (bins / "apptainer").chmod(0o755)
    target = "results/corpus/corpus=sotu/split=eval/manifest.json"
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--cores", "1"]

    def run(*arguments: str) -> str:
        return subprocess.run(
            [*command, *arguments, target],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{bins}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout

    assert "prepare_corpus" in run("-n")
    assert not log.exists()
    run("--sdm", "apptainer", "--apptainer-args=--nv", "--latency-wait", "0")
    pulled, ran = log.read_text(encoding="utf-8").splitlines()
    assert pulled.startswith("pull ")
    assert pulled.endswith(f" {IMAGE}:{nullsae.__version__}")
    assert re.match(rf"exec --home {tmp_path} --nv .*/{pulled.split()[2]} bash -c .*nullsae ", ran)


def test_the_environment_can_name_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLSAE_IMAGE", "/images/own.sif")
    assert image() == "/images/own.sif"


def test_the_automation_builds_the_image_that_jobs_run_in(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n'
        'for word; do case "$word" in *:/study) folder=${word%:/study}/results/report;'
        ' mkdir -p "$folder"; echo x > "$folder/index.html";; esac; done\n',
        encoding="utf-8",
    )
    (tmp_path / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    name = f"{IMAGE.removeprefix('docker://')}:{nullsae.__version__}"
    for arguments, pushed in (([], []), (["--push"], [f"push {name}-cpu", f"push {name}"])):
        (tmp_path / "log").unlink(missing_ok=True)
        subprocess.run([REPOSITORY / ".ci/image", *arguments], env=environment, check=True)
        said = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
        assert [line for line in said if line.startswith("push")] == pushed
        built = [line for line in said if line.startswith("build --file envs/Dockerfile ")]
        assert [line.split()[4] for line in built] == [f"{name}-cpu", name]


def test_the_package_holds_every_file_when_it_is_not_installed_in_place(tmp_path: Path) -> None:
    """Containers install it; everybody else runs it from the checkout, and would not notice."""
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=skipped)
    for name in (*ALONE, "pyproject.toml", "setup.py", "README.md"):
        shutil.copy(REPOSITORY / name, tmp_path)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--no-index", "-w", tmp_path, tmp_path], check=True)
    [wheel] = tmp_path.glob("nullsae-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("nullsae/")}
    source = tmp_path / "src"
    files = {str(f.relative_to(source)) for f in source.rglob("*") if f.is_file()}
    expected = {name for name in files if name.startswith("nullsae/")}
    for name in COPIED[1:]:
        found = (f for f in (tmp_path / name).rglob("*") if f.is_file())
        expected |= {f"nullsae/checkout/{f.relative_to(tmp_path)}" for f in found}
    assert held == expected | {f"nullsae/checkout/{name}" for name in ALONE}


def test_snakemake_installs_the_checkout_only_from_within_it(tmp_path: Path) -> None:
    script = ENVS / "nullsae.post-deploy.sh"
    assert (ENVS / script.name.replace(".post-deploy.sh", ".yaml")).is_file()
    result = subprocess.run(["sh", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == (
        f"--sdm conda: start snakemake in the checkout of nullsae, not in {tmp_path}\n"
    )
