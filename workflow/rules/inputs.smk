"""Functions of wildcards: inputs of jobs, and how many may run at once. No rules here."""


def corpus_file(pattern, **keys):
    """Return a function of wildcards: a file of the corpus that the job's subject reads."""

    @known
    def path(wildcards):
        corpus = STUDY.subjects[wildcards.subject].corpus
        return pattern.format(corpus=corpus, **{**dict(wildcards), **keys})

    return path


def looked_up_tokens(split):
    """Return a function of wildcards: the corpus' tokens of a split, if needed.

    They are needed if an SAE's codes depend on them and, for `sae_train`, if a pretrained SAE is
    compared with what it is fed.
    """

    @known
    def path(wildcards):
        recipe = STUDY.saes[wildcards.sae]
        given = recipe.pretrained is not None and wildcards.variant == "trained"
        if not recipe.origin.reads_tokens and not (given and split == "sae_train"):
            return []
        return corpus_file(paths.CORPUS_MANIFEST, split=split)(wildcards)

    return path


def source_sae(pattern):
    """Return a function of wildcards: a file of the SAE that another one is made from."""
    return known(
        lambda wildcards: pattern.format(**source_cell(STUDY, dict(wildcards)))
    )


@known
def given_sae(wildcards):
    """Return the pretrained SAE whose L0 an SAE aims at, if any."""
    return given_saes(STUDY, [dict(wildcards)])


def captured(split):
    """Return a function of wildcards: manifests of an SAE's activations, as in `captured_by`."""
    return known(
        lambda wildcards: captured_for_sae(STUDY, {**dict(wildcards), "split": split})
    )


@known
def captured_of_all_variants(wildcards):
    """Return the `eval` activations that an SAE is cross-evaluated on."""
    return [
        manifest
        for cell in cross_cells(STUDY, dict(wildcards))
        for manifest in captured_for_sae(
            STUDY,
            {**cell, "split": "eval", "site": wildcards.site, "sae": wildcards.sae},
        )
    ]


@known
def saes_of_recipe(wildcards):
    """Return the SAEs that are compared with each other."""
    return [
        paths.SAE_CONFIG.format(**wildcards, **cell)
        for cell in matched_cells(
            STUDY, wildcards.subject, wildcards.site, wildcards.sae
        )
    ]


@known
def trained_recipe(wildcards):
    """Return the trained variant that a randomization starts from; none if read from a source."""
    own = wildcards.subject in trained_here(STUDY)
    if not own and VARIANTS[wildcards.variant].origin == "source":
        return []
    return paths.RECIPE.format(subject=wildcards.subject, variant="trained", draw=0)


@known
def read_in_training(wildcards):
    """Return the tokens that a subject is trained on; none if it is trained elsewhere."""
    if wildcards.subject not in trained_here(STUDY):
        return []
    return corpus_file(paths.CORPUS_MANIFEST, split="sae_train")(wildcards)


@known
def compared_recipe(wildcards):
    """Return the subject that another training is compared with; none if both are trained here."""
    if wildcards.subject in trained_here(STUDY):
        return []
    return paths.RECIPE.format(subject=wildcards.subject, variant="trained", draw=0)


@known
def model_recipe(wildcards):
    """Return the variant's weights; none if there are only activations."""
    return paths.RECIPE.format(**wildcards) if has_model(wildcards.variant) else []


@known
def borrowed_weights(wildcards):
    """Return the recipe of the trained weights if a variant has none of its own; else none.

    It is no option of a verb: the variant's own recipe says where the weights are.
    """
    if not runs_on_trained(wildcards.variant):
        return []
    return paths.RECIPE.format(subject=wildcards.subject, variant="trained", draw=0)


@known
def fitted_activations(wildcards):
    """Return the manifest of the activations that Gaussian ones are fitted to."""
    return paths.ACTIVATIONS_MANIFEST.format(**fitted_keys(dict(wildcards)))


@known
def how_to_ask(wildcards, input):
    """Return the settings for endpoints.

    They change no answer and must make no job run again: Snakemake does not record params that are
    functions of a job's inputs.
    """
    return STUDY.llm.model_dump_json()


@known
def base_explanations(wildcards):
    """Return the explanations that an explainer exchanges; none if it writes its own."""
    base = STUDY.explainers[wildcards.explainer].exchanges
    if base is None:
        return []
    return paths.EXPLANATIONS.format(**{**dict(wildcards), "explainer": base})


@known
def judged_explanations(wildcards):
    """Return what a language model wrote of what a scorer judges; the job itself does the rest.

    So a file that several explainers share, and that is rewritten when one is added, makes no judge
    answer again.
    """
    writer = paid_writer(STUDY, wildcards.explainer)
    if writer is None:
        return []
    return paths.EXPLANATIONS.format(**{**dict(wildcards), "explainer": writer})


@known
def judge_in_process(wildcards):
    """Return the model that a job runs itself; none if the scorer asks, or shards ran it."""
    model = STUDY.scorers[wildcards.scorer].model_in_job
    if model is None or scored_shards(wildcards):
        return []
    return paths.JUDGE_MANIFEST.format(**wildcards)


@known
def judging_threads(wildcards):
    return STUDY.compute.threads if judge_in_process(wildcards) else 1


@known
def judging_gpus(wildcards):
    return GPUS if judge_in_process(wildcards) else 0


def asks_a_model(rule):
    """Return a function: 1 for a job with requests; `--resources llm=2` lets two run at once."""
    shards = explained_shards if rule == "explain_latents" else scored_shards
    return known(
        lambda wildcards: int(
            asks(STUDY, rule, dict(wildcards)) and not shards(wildcards)
        )
    )


def shard_tables(pattern, wildcards):
    """Return a table of each job that shares an SAE's latents; none for such a job itself."""
    each = STUDY.autointerp.latents_per_job
    if each is None or "shard" in wildcards.keys():
        return []
    n_shards = -(-STUDY.latents.n_sampled // each)
    return [pattern.format(**wildcards, shard=shard) for shard in range(n_shards)]


@known
def explained_shards(wildcards):
    """Return the tables to join an SAE's explanations from, if several jobs make them."""
    if not is_shared_out(STUDY, "explain_latents", dict(wildcards)):
        return []
    return shard_tables(paths.EXPLANATIONS_SHARD, wildcards)


@known
def scored_shards(wildcards):
    """Return the tables to join an SAE's scores from, if several jobs make them."""
    if not is_shared_out(STUDY, "score_latents", dict(wildcards)):
        return []
    return shard_tables(paths.SCORES_SHARD, wildcards)


@known
def shard_options(wildcards, input):
    """Return `--shard` for each folder of tables to join."""
    return " ".join(option("shard", Path(table).parent) for table in input.shards)


@known
def ranks_of_shard(wildcards):
    """Return which of an SAE's sampled latents a job is for: FIRST:END."""
    each = STUDY.autointerp.latents_per_job or STUDY.latents.n_sampled
    return f"{int(wildcards.shard) * each}:{(int(wildcards.shard) + 1) * each}"


def shared_inputs(job):
    """Return the inputs of a job that trains several SAEs, by name."""
    found = sae_inputs(STUDY, job.keys, job.sites, job.recipes)
    cells = [job.params.cell_keys(cell).model_dump() for cell in job.params.cells]
    found["given"] = given_saes(STUDY, cells)
    return settled(found) if job.whole else found


def shared_options(job):
    """Return the options for the inputs that only some of these jobs have."""
    return " ".join(options_of(job.keys, shared_inputs(job)))


def cells_of(job):
    """Return a function of wildcards: the keys of each SAE that a job trains."""
    found = [job.params.cell_keys(cell).model_dump() for cell in job.params.cells]
    return lambda wildcards: found


def files_of(job, *patterns):
    """Return a function of wildcards: patterns filled in for each SAE of a `ModelRule`'s job."""
    return known(
        lambda wildcards: list(
            dict.fromkeys(
                pattern.format(**cell)
                for pattern in patterns
                for cell in job.cells_of(wildcards)
            )
        )
    )


def captured_for(job, split):
    """Return a function of wildcards: what the SAEs of a `ModelRule`'s job are evaluated on."""
    names = ("subject", "variant", "draw", "site")

    @known
    def manifests(wildcards):
        cells = [
            {name: c[name] for name in names} | {"site": site}
            for c in job.cells_of(wildcards)
            for site in (
                c["site"],
                STUDY.saes[recipe_name(c["sae"])].output_of(c["site"]),
            )
        ]
        sites = {tuple(cell.values()): cell for cell in cells}
        # One per site, even if all are the split's manifest, so that the number of inputs stays the
        # same once every site has its own.
        return [captured_by(STUDY, {**cell, "split": split}) for cell in sites.values()]

    return manifests


def written_explanations(job):
    """Return a function of wildcards: the language model's explanations that a job exchanges."""
    if job.writer is None:
        return []
    return files_of(job, paths.EXPLANATIONS.replace("{explainer}", job.writer))


def keys_of_free(job):
    """Return the keys in the log names of a job without endpoints."""
    return str(Path(paths.MODEL_KEYS, f"explainer={job.writer}" if job.writer else ""))
