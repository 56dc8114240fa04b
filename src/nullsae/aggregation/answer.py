"""The file with a study's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.study import Config
from nullsae.config.variants import is_positive_control
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, rebuild_command, write_json
from nullsae.statistics.answer import Answer, answer


def write_answer(
    config: Config, root: Path, contrasts: Sequence[Mapping[str, Any]], words: Sequence[str]
) -> None:
    """Write a study's answer; `words` are the verdicts of its contrasts, of any stage."""
    placebos = {name for name, one in config.explainers.items() if one.exchanges is not None}
    controls = set(filter(is_positive_control, config.variants))
    saes = config.answering_saes
    found = answer(contrasts, words, controls=controls, placebos=placebos, saes=saes)
    write_json(root / paths.ANSWER, found.as_json())


def read_answer(root: Path) -> Answer:
    """Read the answer of the study in a folder.

    Raises:
        UserError: it is missing, damaged or from another version.
    """
    rebuild = rebuild_command(paths.ANSWER)
    try:
        return Answer.of_json(read_json(root / paths.ANSWER, rebuild=rebuild))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{root / paths.ANSWER}: not of this version ({error}); rebuild it with: {rebuild}"
        ) from None
