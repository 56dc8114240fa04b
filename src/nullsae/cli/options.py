"""Options that verbs share, their help texts, and how they are parsed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer.core
from typer import Argument, Option

from nullsae.core.errors import UserError
from nullsae.core.folders import expanded

if TYPE_CHECKING:
    from nullsae.autointerp.llm.session import Session
    from nullsae.config.section import Section
    from nullsae.core.progress import Bar

    S = TypeVar("S", bound=Section)

Maybe = Path | None
Params = Annotated[
    str, Option(help="The stage's slice of the config: JSON text, or a .json or .yaml file.")
]
Manifest = Annotated[Path, Option(help="manifest.json of that split of the corpus.")]
Captured = Annotated[Path, Option(help="manifest.json of that split's activations.")]
ManyCaptured = Annotated[
    list[Path], Option(help="manifest.json of one variant's eval activations; repeatable.")
]
OfVariants = Annotated[
    str, Option(help="manifest.json of that split's activations; {variant} is filled in.")
]
Fitted = Annotated[
    Path, Option(help="manifest.json of the trained variant's sae_train activations.")
]
SaeFile = Annotated[Path, Option(help="cfg.json of the SAE.")]
Recipe = Annotated[Path, Option(help="recipe.json of the variant.")]
SomeTokens = Annotated[
    Maybe, Option(help="Corpus manifest of that split (token_lookup; sae_train for a stream).")
]
SomeRecipe = Annotated[Maybe, Option(help="recipe.json; gaussian has none.")]
Output = Annotated[Path, Option(help="Output path.")]
Table = Annotated[Path, Option(help="Output table (Parquet).")]
Root = Annotated[Path, Option(help="Folder with results/.")]
Study = Annotated[
    Path, Argument(help="Folder of the study (default: the current one).", show_default=False)
]
Overlays = Annotated[list[Path] | None, Option(help="Overlays, as for snakemake; repeatable.")]
Windows = Annotated[Path, Option(help="windows.parquet of the SAE.")]
Work = Annotated[Path, Option(help="Folder for checkpoints.")]
Tokenizer = Annotated[Path, Option(help="tokenizer.json of the corpus.")]
SomeLlm = Annotated[
    str | None,
    Option(help="Settings for endpoints, as in the config's section llm: JSON text or a file."),
]
SomeBase = Annotated[Maybe, Option(help="explanations.parquet with the explanations to exchange.")]
SomeExplanations = Annotated[
    Maybe, Option(help="explanations.parquet, if the scorer needs explanations.")
]
SomeJudge = Annotated[
    Maybe, Option(help="manifest.json written by prepare_judge, if the scorer runs a model.")
]
SomeTrained = Annotated[Maybe, Option(help="recipe.json of the trained variant.")]
SomeFitted = Annotated[
    Maybe, Option(help="The trained variant's sae_train activations (stream of gaussian).")
]
Costs = Annotated[
    Maybe, Option(help="Output file for calls, tokens and money of language models (JSON).")
]
Kept = Annotated[
    Maybe, Option(help="Folder with copies of each SAE's outputs, which are not made again.")
]
KeptCode = Annotated[str, Option(help="Hash of the code that the copies in --kept must match.")]
SomeRanks = Annotated[str | None, Option(help="Only these sampled latents, such as 0:25.")]
SomeShards = Annotated[
    list[Path] | None, Option(help="Folder of tables made with --ranks, to join; repeatable.")
]
SomePortion = Annotated[str | None, Option(help="This job's share of the shards, such as 0/4.")]


@contextmanager
def in_study(folder: Path, overlays: Sequence[Path] = ()) -> Iterator[None]:
    """Work in a study's folder, as its jobs do: paths in its config are relative to it.

    Args:
        folder: as given on the command line.
        overlays: what its config is merged with, from `seen_from`.

    Raises:
        UserError: there is no such folder, or the block raised one. Its lines name files relative
            to where the command was given, and the file of the config instead of `config`.
    """
    if not folder.is_dir():
        way = f"nullsae init {quote(str(folder))}"
        raise UserError(f"{folder}: no such folder; `{way}` writes a study there")
    try:
        with chdir(folder):
            yield
    except UserError as error:
        if folder == Path():
            raise
        said = (_from_outside(line, folder, overlays) for line in str(error).splitlines())
        raise UserError("\n".join(said)) from None


def _from_outside(line: str, folder: Path, overlays: Sequence[Path]) -> str:
    """Return an error line with its file, or its config key's file, as seen from outside."""
    from nullsae.config.read import giver, study_files

    name, _, rest = line.partition(": ")
    if name == "config":
        key = rest.partition(":")[0].partition(",")[0]
        return f"{giver(study_files(folder, overlays), key)}: {rest}"
    is_inside = name == Path(name).name and os.path.lexists(folder / name)
    return f"{folder / name}: {rest}" if is_inside or name.startswith("results/") else line


def seen_from(folder: Path, *files: Path) -> list[Path]:
    """Return files named on the command line as paths that `in_study` can open."""
    here = folder == Path()
    return [file if here else expanded(file).absolute() for file in files]


class Verb(typer.core.TyperCommand):
    """A command whose help also lists the fields of its `--params`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the usual help, then the fields."""
        super().format_help(ctx, formatter)
        from nullsae.cli.describe import describe
        from nullsae.jobs.rules import rules

        if self.name in rules():
            print("Fields of --params:\n")
            for line in describe(rules()[self.name].params):
                print(f"  {line}")


def read_params(model: type[S], given: str, option: str = "--params") -> S:
    """Parse an option's value: JSON text, or the path of a .json or .yaml file.

    Raises:
        UserError: the value cannot be read or is not what the verb takes; names the file or key.
    """
    from nullsae.config.parse import parse_section
    from nullsae.config.plain import read_yaml

    is_file = given.endswith((".json", ".yaml", ".yml"))
    where = given if is_file else option
    found = read_yaml(Path(given)) if is_file else _json(given, option)
    return parse_section(model, found, where=where)


def _json(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option}: not JSON ({error}), nor a .json or .yaml file") from None


def session_of(llm: str | None, costs: Path | None, progress: Bar) -> Session:
    """Return a session with the given settings for endpoints, or the defaults."""
    from nullsae.autointerp.llm.session import Session
    from nullsae.config.llm import Llm

    def settings() -> Llm:
        return Llm() if llm is None else read_params(Llm, llm, "--llm")

    return Session(settings, progress=progress, costs=costs)
