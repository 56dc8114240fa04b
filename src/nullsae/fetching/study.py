"""Fetches what a study reads from hubs, one by one, and prints how to use it elsewhere."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from nullsae.config.addresses import shown_address
from nullsae.config.check_pretrained import check_pretrained
from nullsae.config.corpora import HubSource, PretrainedTokenizer
from nullsae.config.endpoints import Endpoint
from nullsae.config.model_files import is_local
from nullsae.config.pretrained import FromObject, FromSaeLens, pretrained_sae_path
from nullsae.config.read import read_merged_config, study_files
from nullsae.config.study import Config
from nullsae.config.subjects import PretrainedSource
from nullsae.config.variants import VARIANTS
from nullsae.core.errors import UserError, first_line
from nullsae.core.files import content_key, write_text
from nullsae.core.folders import expanded
from nullsae.core.home import cache_folder
from nullsae.core.visible import visible
from nullsae.fetching.items import DataSet, Item, Model, PretrainedSae, ReleasedSae, TokenizerFiles
from nullsae.fetching.streams import Stream

# Other variables that move caches of the hub's libraries; only HF_HOME should.
OTHER_HOMES = (
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_DATASETS_DOWNLOADED_DATASETS_PATH",
    "HF_MODULES_CACHE",
    "HF_ASSETS_CACHE",
    "HF_XET_CACHE",
)
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def fetch_study(
    root: Path, overlays: list[Path], *, into: Path | None, models: Iterable[str] = ()
) -> None:
    """Download what a study reads from hubs, and print what was fetched and what to export.

    The hub's libraries must not be imported before this, because they read `HF_HOME` once.

    Args:
        root: the folder with `config.yaml`.
        overlays: further config files, merged in their order.
        into: folder to use as `HF_HOME`; by default the current one.
        models: further models, `ID` or `ID@REVISION`, such as those that jobs' own servers read.

    Raises:
        UserError: a mistake in the config, offline mode, or something could not be fetched; each
            such thing gets its own line first, and the others are fetched.
    """
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(
                f"{name} is set; unset it here, and set it on the machines without network"
            )
    if into is not None:
        into = expanded(into)
        _move_home(into)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    config = read_merged_config(study_files(root, overlays))

    from huggingface_hub import constants

    home = into if into is not None else Path(constants.HF_HOME)
    named, remarks = wanted(config, home / "nullsae")
    for given in models:
        path, _, revision = given.partition("@")
        named.append(Model(path, revision or None, False, "--model", "--model"))
    items = list(dict.fromkeys(named))
    for remark in remarks:
        print(visible(f"{'no fetch':<10}{remark}"), flush=True)
    failed = sum(not _fetch_one(item) for item in items)
    streams = [item for item in named if isinstance(item, Stream) and item.file.is_file()]
    if not items:
        print("This study reads nothing from hubs.")
    elif failed < len(items):
        print_use(streams, home)
    if failed:
        raise UserError(
            f"{failed} of {len(items)} could not be fetched, see above; run the same command "
            f"again to fetch the rest"
        )
    # What was fetched tells what an SAE was made on.
    check_pretrained(config)


def _move_home(into: Path) -> None:
    """Make the hub's libraries store everything in a folder, but keep the user's login."""
    before = expanded(os.environ.get("HF_HOME") or cache_folder() / "huggingface")
    os.environ.setdefault("HF_TOKEN_PATH", str(before / "token"))
    for name in OTHER_HOMES:
        os.environ.pop(name, None)
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--into: {str(into)!r} is not a folder: {error.strerror}") from None
    os.environ["HF_HOME"] = str(into.resolve())


def wanted(config: Config, home: Path) -> tuple[list[Item], list[str]]:
    """List what a study reads from hubs, and a line for each thing that is not fetched.

    Args:
        config: the merged config, with resolved sites.
        home: where documents of streams are saved.
    """
    items: list[Item] = []
    remarks: list[str] = []

    def model(source: Any, where: str, variants: Iterable[str] = ("trained",)) -> None:
        if not isinstance(source, PretrainedSource) or is_local(source.path):
            remarks.append(f"{where}: {source.at_hand}")
            return
        key, code = f"config: {where}", source.trust_remote_code
        each = [
            (VARIANTS[variant], draw)
            for variant in variants
            for draw in VARIANTS[variant].draws(source, config.draws)
        ]
        for of, draw in each:
            path, revision, path_key, revision_key = of.weights_of(of.source_of(source, draw))
            if is_local(path):
                remarks.append(f"{where}.{path_key}: {source.at_hand}")
                continue
            items.append(Model(path, revision, code, f"{key}.{path_key}", f"{key}.{revision_key}"))

    for name, corpus in config.corpora.items():
        where, source, tokenizer = f"corpora.{name}", corpus.source, corpus.tokenizer
        key = f"config: {where}.source"
        if not isinstance(source, HubSource) or is_local(source.path):
            remarks.append(f"{where}.source: {source.at_hand}")
        elif source.streaming:
            items.append(Stream(corpus, source, home, name, key))
        else:
            items.append(DataSet(source, key))
        if isinstance(tokenizer, PretrainedTokenizer) and not is_local(tokenizer.path):
            items.append(TokenizerFiles(tokenizer, f"config: {where}.tokenizer"))
        else:
            remarks.append(f"{where}.tokenizer: {tokenizer.at_hand}")
    read = [v for v in VARIANTS if v in config.variants and VARIANTS[v].origin == "source"]
    for name, subject in config.subjects.items():
        model(subject.source, f"subjects.{name}.source", read)
    for name, sae in config.saes.items():
        if sae.pretrained is None:
            continue
        for site in dict.fromkeys(s for subject in config.subjects.values() for s in subject.sites):
            if not sae.is_made(site, "trained"):
                continue
            if isinstance(sae.pretrained, FromSaeLens):
                key = f"config: saes.{name}.pretrained"
                items.append(ReleasedSae(sae.pretrained.at(site), key))
            elif isinstance(sae.pretrained, FromObject):
                remarks.append(f"saes.{name}.pretrained: a Python object, for {site}")
            elif is_local(pretrained_sae_path(sae.pretrained, site)[0]):
                remarks.append(f"saes.{name}.pretrained: local, for {site}")
            else:
                items.append(PretrainedSae(sae.pretrained, site, f"config: saes.{name}.pretrained"))
    for name, scorer in config.scorers.items():
        judge = scorer.model_in_job
        if judge is not None:
            where = f"scorers.{name}.model"
            model(judge, where)
            if isinstance(judge, PretrainedSource) and not is_local(judge.path):
                given = PretrainedTokenizer(
                    kind="pretrained", path=judge.path, revision=judge.revision
                )
                items.append(TokenizerFiles(given, f"config: {where}"))
    remarks += [_endpoint_remark(*named) for named in config.endpoints().items()]
    return items, remarks


def _endpoint_remark(where: str, endpoint: Endpoint) -> str:
    if endpoint.server is None:
        address = shown_address(endpoint.address)
        return f"{where}: asks {address}, which the machines of the study must reach"
    command = endpoint.server.command[0]
    return f"{where}.server: if {command} reads a model of a hub, name that with --model"


def _fetch_one(item: Item) -> bool:
    """Fetch an item and print one line about it; return whether it worked."""
    import huggingface_hub

    try:
        fetched = item.fetch()
    except UserError as error:
        message = str(error)
    except Exception as error:  # anything that foreign repositories and HTTP clients raise
        message = f"{item.where}: {item.describe()} could not be fetched: {_reason(error)}"
    else:
        how = "was there" if fetched.was_there else "fetched"
        size = f"{fetched.n_bytes / 1e6:,.1f} MB"
        print(visible(f"{how:<10}{item.describe()}: {size} in {fetched.folder}"), flush=True)
        return True
    # Servers may echo what they were sent.
    if token := huggingface_hub.get_token():
        message = message.replace(token, "(token)")
    print(visible(f"{'failed':<10}{message}"), file=sys.stderr, flush=True)
    return False


def _reason(error: BaseException) -> str:
    """Return the original reason: the last error raised says only that something failed."""
    from huggingface_hub.errors import HfHubHTTPError

    while True:
        if isinstance(error, HfHubHTTPError):
            said = error.server_message or first_line(error)
            return f"HTTP {error.response.status_code}, {said}"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return "the disk is full"
        if error.__cause__ is None:
            return first_line(error)
        error = error.__cause__


def print_use(streams: list[Stream], home: Path) -> None:
    """Print what to export, and write the overlay that replaces streams by saved documents."""
    variables = {name: os.environ[name] for name in OTHER_HOMES if name in os.environ}
    variables = {"HF_HOME": str(home.resolve()), **variables}
    print("Where there is no network:")
    for name, value in {**variables, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}.items():
        print(f"  export {name}={quote(value)}")
    if streams:
        corpora = {stream.name: {"source": stream.overlay()} for stream in streams}
        text = yaml.safe_dump({"corpora": corpora}, sort_keys=False)
        file = home / "nullsae" / f"offline-{content_key(corpora)}.yaml"
        write_text(file, f"# Streamed data sets, read from what `nullsae fetch` saved.\n{text}")
        print(f"and, for streamed data sets, add after your other --configfile files:\n  {file}")
