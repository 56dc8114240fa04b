"""The L0 of an SAE made elsewhere, which the training of its nulls aims at."""

from __future__ import annotations

from pathlib import Path

from nullsae import tables
from nullsae.activations.store import BATCH_TOKENS
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, rebuild_command
from nullsae.jobs.saes import Aim
from nullsae.sae.exchange.pretrained import read_pretrained
from nullsae.sae.training_run import Cell


def l0_of(cell: Cell, aim: Aim, given: Path | None) -> float:
    """Return the L0, on `trained`, of the SAE that a cell is aimed at.

    For `trained` it is measured here, on tokens of `eval`; for other variants it is read from the
    SAE's history. `given` is its `cfg.json`, in which {site}, {sae} and {seed} are filled in.

    Raises:
        UserError: the file does not exist, or belongs to another SAE than the config's.
    """
    if cell.keys.variant == "trained":
        sae = read_pretrained(aim.pretrained, cell.keys.site, where=cell.where)
        x, _ = next(cell.heldout.batches(aim.heldout_tokens))
        batches = x.float().split(BATCH_TOKENS)  # type: ignore[no-untyped-call]
        return sum(int((sae.encode(batch)[0] != 0).sum()) for batch in batches) / len(x)
    if given is None:
        raise UserError(
            f"--given: missing; {cell.where} is aimed at the L0 that {aim.sae} has on trained"
        )
    folder = str(given)
    keys = {"site": cell.keys.site, "sae": aim.sae, "seed": aim.seed}
    for name, value in keys.items():
        folder = folder.replace(f"{{{name}}}", str(value))
    file = Path(folder)
    rebuild = rebuild_command(file)
    if read_json(file, rebuild=rebuild).get("key") != aim.key:
        raise UserError(f"{file}: not the SAE that the config names; rebuild it with: {rebuild}")
    schema = tables.cell_schema("history")
    history = tables.read_table(file.with_name("history.parquet"), schema, rebuild=rebuild)
    return float(history["heldout_l0"][-1].as_py())
