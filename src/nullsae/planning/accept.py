"""Which jobs of a study a code upgrade affects, and which results may be kept."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.study import Config
from nullsae.config.subjects import TrainSource
from nullsae.config.variants import is_positive_control
from nullsae.core.files import content_key, key_in
from nullsae.jobs import rules as jobs
from nullsae.jobs.accepted import AcceptedCode, in_use, job_name
from nullsae.jobs.activations import fitted_key, key_of, shards_key_by
from nullsae.jobs.code_changes import is_other_code, recorded_cells, recorded_code
from nullsae.jobs.code_record import Record, changed_files
from nullsae.jobs.grid import of_model
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.saes import train_sae
from nullsae.jobs.shared_training import PREFIX
from nullsae.planning.made import MadeJob

CAPTURES = ("cache_activations", "sample_gaussian")
Keys = dict[str, Any]


@dataclass
class Change:
    """A rule whose code changed since its files were made."""

    rule: str
    present: str
    recorded: str
    jobs: list[Keys] = field(default_factory=list)
    """Keys of the jobs that can be kept."""
    n_files: int = 0
    n_lost: int = 0
    """Jobs that run again anyway: more than their code changed, or their inputs are made again."""


class Comparison:
    """Compares the current code of a study with the code that made its files.

    For accepted rules, it adds what is kept to `accepted.in_use()` as it goes, because keys of
    activations decide whether what was made from them is kept too.
    """

    def __init__(self, config: Config, accepted: Iterable[str], record: Record, root: Path) -> None:
        """Prepare the comparison.

        Args:
            config: the checked config, sites resolved.
            accepted: the rules whose current code should count as the older code.
            record: the files that each hash covers.
            root: the folder with `results/`.
        """
        self.config, self.accepted, self.root = config, set(accepted), root
        self.record = record
        self.changes: dict[tuple[str, str, str], Change] = {}
        self.activations: dict[str, str] = {}
        """Older keys of shards by the current ones."""
        self.others: set[str] = set()
        """Rules whose code changed too, but is not accepted."""
        self.again: Counter[str] = Counter()
        """Jobs per rule that run again although their code is the same."""
        self._known: dict[str, list[str]] = {rule: list(codes) for rule, codes in record.items()}
        self._dirty: set[str] = set()

    def look_at(self, made: list[MadeJob]) -> None:
        """Compare all jobs, which must come after the jobs that they read from."""
        for job in made:
            for code in map(recorded_code, job.recorded.values()):
                if code is not None:
                    self._known.setdefault(job.rule, []).append(code)
        for job in made:
            if job.rule in CAPTURES and job.outputs:
                self._find_key(job)
            lost = not self._dirty.isdisjoint(job.inputs)
            if job.name.startswith(PREFIX) and job.outputs:
                self._look_at_cells(job, lost)
            elif job.recorded:
                self._look_at_job(job, lost)
            elif lost:
                self._dirty.update(job.outputs)

    def _look_at_job(self, job: MadeJob, lost: bool) -> None:
        recorded = next(iter(job.recorded.values()))
        present = jobs.rules()[job.rule].present_code(self.config, job.keys)
        then = recorded_code(recorded) or present
        change = self._change(job.rule, job.keys, present, then)
        added = change is not None and job.rule in self.accepted
        if added:
            in_use().add_code(job.rule, job.keys, present, then)
        if lost or job.differs or not self._is_as_recorded(job, recorded):
            self._dirty.update(job.outputs)
            if added:
                in_use().add_code(job.rule, job.keys, present, present)
            self._lose(job.rule, change)
        elif change:
            change.jobs.append(job.keys)
            change.n_files += len(job.outputs)

    def _is_as_recorded(self, job: MadeJob, recorded: list[str]) -> bool:
        """Return whether a job's params will match those that Snakemake recorded."""
        own = {repr(jobs.job_code(self.config, job.rule, job.keys))}
        if job.has_config:
            own.add(repr(jobs.rule_params(self.config, job.rule, job.keys)))
        return set(recorded) == own | set(job.others)

    def _look_at_cells(self, job: MadeJob, lost: bool) -> None:
        """Compare each SAE of a job that trains several, by the key in its `cfg.json`."""
        keys = of_model(job_keys(job))
        params = train_sae(self.config, keys)
        for cell in params.cells:
            whole = {**keys, "site": cell.site, "sae": cell.sae, "seed": str(cell.seed)}
            file = paths.SAE_CONFIG.format(**whole)
            if file not in job.outputs:
                continue
            files = [name for name in job.outputs if Path(name).parent == Path(file).parent]
            recorded = recorded_cells(job.recorded.get(file)).get((cell.site, cell.sae, cell.seed))
            known = (params.code(cell), recorded, *self._known.get("train_sae", ()))
            found = key_in(self.root / file)
            then = next((c for c in known if c and params.cell_key(cell, c) == found), None)
            present = jobs.rules()["train_sae"].present_code(self.config, whole)
            change = self._change("train_sae", whole, present, then or recorded or present)
            if lost or then is None or (change and "train_sae" not in self.accepted):
                self._dirty.update(files)
                self._lose("train_sae", change)
            elif change:
                in_use().add_code("train_sae", whole, present, then)
                change.jobs.append(whole)
                change.n_files += len(files)

    def _change(self, rule: str, keys: Keys, present: str, then: str) -> Change | None:
        """Return the change of a job's code; None if there is none, or it was accepted."""
        if in_use().code(rule, keys, present) == then:
            return None
        change = Change(rule, present, then)
        return self.changes.setdefault((rule, present, then), change)

    def _lose(self, rule: str, change: Change | None) -> None:
        """Count a job that runs again, because of its code or only for other reasons."""
        if change is None:
            self.again[rule] += 1
        elif is_other_code(change.rule, change.present, change.recorded, self.record):
            change.n_lost += 1
            if change.rule not in self.accepted:
                self.others.add(change.rule)

    def _find_key(self, job: MadeJob) -> None:
        """Let activations keep their key if only accepted code changed it.

        The key in a manifest is a hash, so it is recomputed for each code that its rules are known
        to have had.
        """
        if job.keys.keys() != {"subject", "variant", "draw", "split"}:
            return  # a portion
        keys, split = ModelKeys.of(job.keys), job.keys["split"]
        found = key_in(self.root / paths.ACTIVATIONS_MANIFEST.format(**job.keys))
        if found in (None, key_of(self.config, keys, split)):
            return
        exclude = self.config.activations.exclude.model_dump(mode="json")
        upstream = self._upstream(keys, split)
        for codes in itertools.product(*(self._codes(rule, own) for rule, own in upstream.items())):
            given = jobs.Codes(tuple(zip(upstream, codes, strict=True)))
            shards = shards_key_by(self.config, keys, split, given)
            if content_key([shards, exclude]) == found:
                present = shards_key_by(self.config, keys, split)
                self.activations[present] = in_use().keys[present] = shards
                return

    def _upstream(self, keys: ModelKeys, split: str) -> dict[str, Keys]:
        """Return the rules whose code is in the key of activations, with their jobs' keys."""
        own = {**keys.model_dump(mode="json"), "draw": str(keys.draw)}
        if fitted_key(self.config, keys):
            return {"sample_gaussian": {**own, "split": split}}
        subject = self.config.subjects[keys.subject]
        again = is_positive_control(keys.variant)
        made_by = "retrain_subject" if again else "randomize_model"
        found = {"prepare_corpus": {"corpus": subject.corpus}, made_by: own}
        if isinstance(subject.source, TrainSource) and not again:
            found["train_subject"] = {"subject": keys.subject}
        return {**found, "cache_activations": {**own, "split": split}}

    def _codes(self, rule: str, keys: Keys) -> list[str]:
        """Return the hashes that a job's code may count as, the current one first."""
        present = jobs.rules()[rule].present_code(self.config, keys)
        known = self._known.get(rule, []) if rule in self.accepted else []
        return list(dict.fromkeys([present, in_use().code(rule, keys, present), *known]))

    def codes(self, noted: Record) -> Iterator[AcceptedCode]:
        """Yield what to record about the jobs that are kept."""
        for change in self.changes.values():
            if change.rule in self.accepted and change.jobs:
                yield AcceptedCode(
                    rule=change.rule,
                    present=change.present,
                    accepted=change.recorded,
                    files=tuple(differing_files(change, self.record, noted) or ()),
                    jobs=tuple(map(job_name, change.jobs)),
                )


def differing_files(change: Change, record: Record, noted: Record) -> list[str] | None:
    """Return the files that changed; None if no run noted the files of the older code."""
    before = record.get(change.rule, {}).get(change.recorded)
    now = noted.get(change.rule, {}).get(change.present)
    return None if before is None or now is None else changed_files(before, now)


def job_keys(job: MadeJob) -> Keys:
    """Return the keys in the path of a job's first output."""
    return paths.partition_keys(next(iter(job.outputs), "")) or job.keys
