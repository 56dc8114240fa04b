"""The jobs of a study and what each waits for, worked out from the config alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nullsae.config.saes import AT, recipe_name
from nullsae.config.study import NO_EXPLAINER
from nullsae.config.variants import VARIANTS, fitted_to, has_model
from nullsae.jobs.grid import (
    Keys,
    cell_files,
    cross_cells,
    explainer_cells,
    floor_cells,
    matched_cells,
    model_cells,
    recipe_cells,
    sae_cells,
    scorer_cells,
    trained_here,
    trained_together,
    variant_cells,
)
from nullsae.planning.amounts import Study, Work
from nullsae.planning.making import train_saes
from nullsae.planning.measuring import n_shards
from nullsae.planning.work import WORK

SPLITS = ("sae_train", "eval")
# Of all SAEs' files, those that only a job which trains several makes.
Name = tuple[str, ...]


@dataclass
class Job:
    """One job."""

    rule: str
    keys: Keys
    work: Work
    needs: list[int] = field(default_factory=list)
    """Indices of the jobs that it waits for, all before its own."""
    activations: Name | None = None
    """What it captures or samples: variant's keys and split."""
    reads: tuple[Name, ...] = ()
    """The activations that it reads."""


class Graph:
    """Jobs in an order in which they can run."""

    def __init__(self, study: Study) -> None:
        """Work out all jobs of a study that has no results yet."""
        self.study = study
        self.jobs: list[Job] = []
        self._made_by: dict[Name, int] = {}
        self._models()
        self._activations()
        self._saes()
        self._measures()
        self._judging()
        last = self._add("aggregate", {}, range(len(self.jobs)))
        self._add("report", {}, [last])

    def _add(self, rule: str, keys: Keys, needs: Iterable[int], work: Work | None = None) -> int:
        found = work or WORK[rule](self.study, keys)
        self.jobs.append(Job(rule, keys, found, sorted(set(needs))))
        return len(self.jobs) - 1

    def _models(self) -> None:
        config = self.study.config
        for corpus in self.study.corpora:
            self._made_by["corpus", corpus] = self._add("prepare_corpus", {"corpus": corpus}, [])
        own = trained_here(config)
        for subject in own:
            job = self._add("train_subject", {"subject": subject}, [self._corpus(subject)])
            for variant in (name for name in VARIANTS if VARIANTS[name].by_training):
                self._made_by["model", subject, variant, "0"] = job
        for keys in model_cells(config):
            name = ("model", *_variant(keys))
            if name in self._made_by:
                continue
            needs = [self._corpus(keys["subject"])]
            if VARIANTS[keys["variant"]].origin == "trained":
                needs.append(self._made_by["model", keys["subject"], "trained", "0"])
            self._made_by[name] = self._add("randomize_model", keys, needs)

    def _corpus(self, subject: str) -> int:
        return self._made_by["corpus", self.study.config.subjects[subject].corpus]

    def _activations(self) -> None:
        floors = {_variant(keys): keys for keys in floor_cells(self.study.config)}
        wanted = [
            *variant_cells(self.study.config),
            *({k: keys[k] for k in ("subject", "variant", "draw")} for keys in floors.values()),
        ]
        # What Gaussian data are fitted to comes first.
        for keys in sorted(wanted, key=lambda keys: not has_model(keys["variant"])):
            for split in SPLITS:
                cell = {**keys, "split": split}
                name = (*_variant(keys), split)
                needs, reads = [self._corpus(keys["subject"])], []
                fitted = fitted_to(keys["variant"], int(keys["draw"]))
                if fitted:
                    source = (keys["subject"], fitted[0], str(fitted[1]), "sae_train")
                    needs.append(self._made_by["activations", *source])
                    reads.append(source)
                else:
                    needs.append(self._made_by["model", *_variant(keys)])
                chunks = self.study.config.activations.chunks
                if chunks > 1 and not fitted:
                    needs = [self._add("capture_portion", cell, needs) for _ in range(chunks)]
                job = self._add("sample_gaussian" if fitted else "cache_activations", cell, needs)
                self._made_by["activations", *name] = job
                self.jobs[job].activations, self.jobs[job].reads = name, tuple(reads)

    def _captured(self, keys: Keys) -> tuple[list[int], tuple[Name, ...]]:
        """The jobs that make both splits of a variant's activations, and these."""
        names = tuple((*_variant(keys), split) for split in SPLITS)
        return [self._made_by["activations", *name] for name in names], names

    def _saes(self) -> None:
        config, settings = self.study.config, self.study.config.activations
        stream = settings.mode == "stream"
        grouped: dict[Name, list[Keys]] = {}
        for cell in trained_together(config, {}):
            group = _variant(cell)
            if not (stream and settings.sites_together):
                group = (*group, cell["site"])
            if not (stream or settings.shared_pass):
                group = _sae(cell)
            grouped.setdefault(group, []).append(cell)
        for cells in grouped.values():
            keys = cells[0]
            needs, reads = self._captured(keys)
            if stream and has_model(keys["variant"]):
                needs.append(self._made_by["model", *_variant(keys)])
            elif stream and (fitted := fitted_to(keys["variant"], int(keys["draw"]))):
                source = (keys["subject"], fitted[0], str(fitted[1]), "sae_train")
                needs.append(self._made_by["activations", *source])
                reads = (*reads, source)
            job = self._add("train_sae", keys, needs, train_saes(self.study, cells))
            self.jobs[job].reads = reads
            for cell in cells:
                self._made_by["sae", *_sae(cell)] = job
        for cell in sae_cells(config):
            if AT in cell["sae"]:
                whole = {**cell, "sae": recipe_name(cell["sae"])}
                job = self._add("take_checkpoint", cell, [self._made_by["sae", *_sae(whole)]])
                self._made_by["sae", *_sae(cell)] = job

    def _measures(self) -> None:
        config = self.study.config
        for cell in (*sae_cells(config), *floor_cells(config)):
            needs, reads = self._captured(cell)
            needs.append(self._made_by["sae", *_sae(cell)])
            if has_model(cell["variant"]):
                needs.append(self._made_by["model", *_variant(cell)])
            job = self._add("evaluate_sae", cell, needs)
            self.jobs[job].reads = reads
        for cell in sae_cells(config):
            made = self._made_by["sae", *_sae(cell)]
            if config.evaluation.cross_tokens is not None:
                names = tuple(
                    (*_variant({k: str(v) for k, v in c.items()}), "eval")
                    for c in cross_cells(config, cell)
                )
                job = self._add(
                    "cross_evaluate",
                    cell,
                    [made, *(self._made_by["activations", *name] for name in names)],
                )
                self.jobs[job].reads = names
            needs, reads = self._captured(cell)
            job = self._add("collect_latents", cell, [made, needs[1]])
            self.jobs[job].reads = reads[1:]
            self._made_by["latents", *_sae(cell)] = job
        if "overlap" in cell_files(config):
            for keys in recipe_cells(config):
                saes = [
                    self._made_by[
                        "sae",
                        *_sae({**keys, **{name: str(value) for name, value in each.items()}}),
                    ]
                    for each in matched_cells(config, keys["sae"])
                ]
                self._add("match_dictionaries", keys, saes)

    def _judging(self) -> None:
        config = self.study.config
        for name, scorer in config.scorers.items():
            if scorer.model_in_job is not None:
                self._made_by["judge", name] = self._add("prepare_judge", {"scorer": name}, [])
        # A placebo waits for what it exchanges, wherever the config names it.
        placebos = [n for n, e in config.explainers.items() if e.exchanges is not None]
        for cell in sorted(explainer_cells(config), key=lambda cell: cell["explainer"] in placebos):
            needs = [self._made_by["latents", *_sae(cell)]]
            explainer = config.explainers[cell["explainer"]]
            if explainer.exchanges is not None:
                needs.append(self._made_by["explanations", *_sae(cell), explainer.exchanges])
            job = self._shared("explain", cell, needs)
            self._made_by["explanations", *_sae(cell), cell["explainer"]] = job
        for cell in scorer_cells(config):
            needs = [self._made_by["latents", *_sae(cell)]]
            if cell["explainer"] != NO_EXPLAINER:
                needs.append(self._made_by["explanations", *_sae(cell), cell["explainer"]])
            if ("judge", cell["scorer"]) in self._made_by:
                needs.append(self._made_by["judge", cell["scorer"]])
            self._shared("score", cell, needs)

    def _shared(self, what: str, cell: Keys, needs: list[int]) -> int:
        """The job that explains or scores an SAE's latents, or joins what others made of them."""
        shards = n_shards(self.study, cell)
        if shards == 0:
            return self._add(f"{what}_latents", cell, needs)
        made = [self._add(f"{what}_shard", cell, needs) for _ in range(shards)]
        joined = Work(written_bytes=WORK[f"{what}_latents"](self.study, cell).written_bytes)
        return self._add(f"{what}_latents", cell, [*made, needs[0]], joined)

    def by_rule(self) -> dict[str, list[Job]]:
        """The jobs of each rule, in the order in which data flows."""
        found: dict[str, list[Job]] = {rule: [] for rule in WORK}
        for job in self.jobs:
            found[job.rule].append(job)
        return {rule: jobs for rule, jobs in found.items() if jobs}


def _variant(keys: Keys) -> Name:
    return (keys["subject"], keys["variant"], str(keys["draw"]))


def _sae(keys: Keys) -> Name:
    return (*_variant(keys), keys["site"], keys["sae"], str(keys["seed"]))
