"""What is given on the command line: the params of a verb, their help, the merged config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer.core
import yaml

from nullsae.errors import UserError

if TYPE_CHECKING:
    from nullsae.config import Config
    from nullsae.inputs import Section

    S = TypeVar("S", bound=Section)

# What `--params` holds, per verb: a class of `nullsae.params`.
PARAMS = {
    "prepare_corpus": "PrepareCorpusParams",
    "train_subject": "TrainSubjectParams",
    "randomize_model": "RandomizeModelParams",
    "cache_activations": "CacheActivationsParams",
    "sample_gaussian": "SampleGaussianParams",
    "train_sae": "TrainSaeParams",
    "evaluate_sae": "EvaluateSaeParams",
    "cross_evaluate": "CrossEvaluateParams",
    "collect_latents": "CollectLatentsParams",
    "explain_latents": "ExplainLatentsParams",
    "score_latents": "ScoreLatentsParams",
    "aggregate": "AggregateParams",
    "report": "ReportParams",
}


class Verb(typer.core.TyperCommand):
    """A command whose help also lists the fields of its `--params`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the usual help, then the fields."""
        super().format_help(ctx, formatter)
        if self.name in PARAMS:
            from nullsae import params

            print("Fields of --params:\n")
            for line in params.describe(getattr(params, PARAMS[self.name])):
                print(f"  {line}")


def read_params(model: type[S], given: str) -> S:
    """Parse `--params`: JSON text, or the path of a .json or .yaml file.

    Raises:
        UserError: not readable, or not what the verb takes; names the file or the key.
    """
    from nullsae.validation import parse_section

    is_file = given.endswith((".json", ".yaml", ".yml"))
    where = given if is_file else "--params"
    return parse_section(model, _read_yaml(Path(given)) if is_file else _json(given), where=where)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"--params: not JSON ({error}), nor a .json or .yaml file") from None


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def read_config(path: Path) -> Config:
    """Read and check the merged config of a study."""
    from nullsae.validation import parse_config

    return parse_config(_read_yaml(path))
