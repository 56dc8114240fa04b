"""The command line: one verb per rule of the workflow, each usable by hand."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from nullsae import __version__
from nullsae.cli import latents, options, saes, studies, study, subjects, tools, toy
from nullsae.core.errors import UserError
from nullsae.core.files import FULL, is_full
from nullsae.core.memory import collect_rarely
from nullsae.core.visible import show_only_visible

ABOUT = (
    "Placebo-controlled interpretability of sparse autoencoders.\n\n"
    "`nullsae init STUDY` writes a new study, `nullsae run STUDY` runs it, `nullsae verdicts "
    "STUDY` prints its answer.\n\n"
    "Each rule of the workflow is a verb too, listed in the order of the data flow. Snakemake "
    "calls these. `snakemake -n -p` prints each command with its files and params, ready to run "
    "by hand."
)
# The verbs for people, in the order in which a study meets them.
STUDIES = (
    *("init", "check", "plan", "run", "watch", "verdicts", "report", "diff"),
    *("prune", "fetch", "export", "accept"),
)
# A file or folder of the wrong kind, or one that this user may not read or write.
OF_PLACES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG),
)
PANELS = ("Studies", "Machines", "Rules of the workflow")


class Verbs(TyperGroup):
    """All verbs, those for people first, each kind in a panel of its own."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for name, command in self.commands.items():
            is_rule = isinstance(command, options.Verb) and name not in STUDIES
            kind = 0 if name in STUDIES else 2 if is_rule else 1
            command.rich_help_panel = PANELS[kind]  # type: ignore[attr-defined]
            # The terminal wraps the lines itself.
            command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or "")
        order = {name: place for place, name in enumerate(STUDIES)}
        self.commands = dict(
            sorted(self.commands.items(), key=lambda item: order.get(item[0], len(order)))
        )

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in order."""
        return list(self.commands)


app = typer.Typer(
    cls=Verbs,
    help=ABOUT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Set up what all verbs share."""
    if version:
        print(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for client in ("httpx", "httpx2"):  # a line per request, of which there are thousands
        logging.getLogger(client).setLevel(logging.WARNING)


for part in (studies, tools, subjects, saes, latents, study, toy):
    app.add_typer(part.verbs)


def main() -> None:
    """Run the command line; a `UserError` or an inaccessible file is one line and exit code 2."""
    collect_rarely()
    # Torch reads it as it loads: spinning barriers cost more than they save if jobs share cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Kernels are code: download none just because a model's family has one.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    show_only_visible()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except UserError as error:
        _end(error)
    except Exception as error:
        place = getattr(error, "filename", None)
        if is_full(error):
            _end(UserError(f"{place or 'results/, or TMPDIR'}: {FULL}"))
        if not isinstance(error, OSError) or error.errno not in OF_PLACES or place is None:
            raise
        _end(UserError(f"{place}: {error.strerror}"))


def _end(error: UserError) -> NoReturn:
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    print(f"nullsae {verb}: error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
