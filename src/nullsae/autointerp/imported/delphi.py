"""The folder of a run of EleutherAI's delphi: a small JSON file for each latent.

RUN/explanations/<hookpoint>_latent<number>.txt         a text
RUN/scores/<detection or fuzz>/<...>.txt                a list of judged windows
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nullsae.autointerp.imported.layout import (
    About,
    JudgedWindow,
    Layout,
    Said,
    Scored,
    judged_window,
)
from nullsae.autointerp.imported.reading import (
    fail,
    files_in,
    flag_of,
    json_file,
    latent_of,
    list_of,
    share_of,
)

NAME = re.compile(r"(.*)_latent(\d+)\.txt\Z", re.DOTALL)
# What delphi writes if it could not parse an explanation.
NO_EXPLANATION = "Explanation could not be parsed."


class Delphi(Layout):
    """A run's folder."""

    def explanations(self, path: Path, about: About) -> Mapping[int, Said]:
        found = {}
        for latent, file in latent_files(path / "explanations", about).items():
            text = json_file(file)
            if text is not None and not isinstance(text, str):
                fail(file, "not a JSON text, as delphi writes an explanation")
            found[latent] = Said(None if text == NO_EXPLANATION else text, None)
        return found

    def scores(self, path: Path, about: About) -> Mapping[int, Scored]:
        folder = path / "scores" / (about.scores or _only_folder(path / "scores"))
        found = {}
        for latent, file in latent_files(folder, about).items():
            rows = json_file(file)
            if not isinstance(rows, list):
                fail(file, "not a JSON list of judged windows, as delphi writes")
            found[latent] = Scored(judged_windows(rows, file))
        return found


def latent_files(folder: Path, about: About) -> dict[int, Path]:
    """Return the file of each latent of the requested hookpoint, by default the only one."""
    if not folder.is_dir():
        fail(folder, "no such folder; delphi writes it in a run's folder")
    of_module: dict[str, dict[int, Path]] = {}
    for file in files_in(folder, "*.txt"):
        name = NAME.match(file.name)
        if name is None:
            fail(file, "its name is not <hookpoint>_latent<number>.txt, as delphi writes it")
        own = of_module.setdefault(name[1], {})
        latent = latent_of(name[2], about.n_latents, file)
        if latent in own:
            fail(file, f"latent {latent} has one already, in {own[latent].name}; remove one")
        own[latent] = file
    if not of_module:
        fail(folder, "no file <hookpoint>_latent<number>.txt in it, as delphi writes")
    names = ", ".join(sorted(of_module))
    if about.source is not None:
        # delphi replaces slashes in the file names of scores.
        wanted = (about.source, about.source.replace("/", "--"))
        if not (chosen := [of_module[name] for name in wanted if name in of_module]):
            fail(folder, f"has no latents of {about.source}, only of {names}; see `source`")
        return chosen[0]
    if len(of_module) > 1:
        fail(folder, f"latents of several hookpoints ({names}); name one with `source`")
    return next(iter(of_module.values()))


def judged_windows(rows: list[Any], where: object) -> list[JudgedWindow]:
    """Read the windows of delphi's `ClassifierOutput`, which Neuronpedia stores as well.

    The prediction is used, as 0 or 1, if probabilities are missing, or all equal while predictions
    are not: some versions write 0 if they requested none.
    """
    windows, labels = [], []
    for number, row in enumerate(rows, 1):
        place = f"{where}, window {number}"
        if not isinstance(row, dict):
            fail(place, "not an object with activating, prediction and str_tokens")
        windows.append(_window(row, place))
        said = row.get("prediction")
        labels.append(math.nan if said is None else float(flag_of(said, "prediction", place)))
    answered = [i for i, label in enumerate(labels) if not math.isnan(label)]
    given = {windows[i].probability for i in answered}
    is_label = any(map(math.isnan, given)) or (
        len(given) == 1 and len({labels[i] for i in answered}) > 1
    )
    if not is_label:
        return windows
    return [
        window._replace(probability=label, is_label=True)
        for window, label in zip(windows, labels, strict=True)
    ]


def _window(row: dict[str, Any], place: str) -> JudgedWindow:
    """Return a window with its probability, NaN if that or the prediction is missing."""
    said = row.get("activating", row.get("ground_truth"))
    if said is None:
        fail(place, "activating is missing: whether the latent is active in the window")
    active = flag_of(said, "activating", place)
    tokens = list_of(row.get("str_tokens") or [], str, "str_tokens", place)
    values = list_of(row.get("activations") or [], float, "activations", place)
    given = row.get("probability")
    failed = given is None or row.get("prediction", False) is None
    probability = math.nan if failed else share_of(given, "probability", place)
    return judged_window(active, probability, tokens, values, place)


def _only_folder(folder: Path) -> str:
    if not folder.is_dir():
        fail(folder, "no such folder; delphi writes it in a run's folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(names) != 1:
        fail(folder, f"scores of {len(names)} kinds ({', '.join(names)}); name one with `scores`")
    return names[0]
