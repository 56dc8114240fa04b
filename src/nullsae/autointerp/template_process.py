"""Renders templates in a restricted process that is killed if one takes too much.

    python template_process.py folder ...

The folders contain jinja2 and markupsafe. Each line of standard input is a request as JSON,
`source` and `values`; each line of standard output is its answer, `text` or `error`. Templates see
only JSON values, in Jinja's sandbox, which blocks Python's own attributes. The kernel kills this
process if one exceeds its CPU time. The process ends with its standard input.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from functools import cache
from typing import Any

MEMORY_BYTES = 512 << 20
CPU_SECONDS = 2.0
MAX_CHARACTERS = 4_000_000


def main(folders: list[str]) -> None:
    """Answer requests until there are none."""
    sys.path += folders
    # The parent closes its input. Signals to the group must not end the process before that.
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)
    load()
    for limited, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limited, (value, value))
    if sys.platform == "linux":  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # CPU time, so that a busy machine does not matter; SIGPROF is not caught.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = answered(request["source"], request["values"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


@cache
def load() -> Any:
    """Create the sandbox."""
    import jinja2.sandbox

    return jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )


def answered(source: str, values: dict[str, Any]) -> dict[str, str]:
    """Return a template's text for values, or what is wrong with it: a `kind` and an `error`."""
    import jinja2

    try:
        pieces, size = [], 0
        for piece in compiled(source).generate(**values):
            size += len(piece)
            if size > MAX_CHARACTERS:
                return {"kind": "size", "error": ""}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except jinja2.TemplateSyntaxError as error:
        return {"kind": "syntax", "error": str(error)}
    except jinja2.UndefinedError as error:
        return {"kind": "undefined", "error": str(error)}
    except MemoryError:
        return {"kind": "memory", "error": ""}
    except Exception as error:  # anything that a template makes Python raise
        return {"kind": "other", "error": str(error) or type(error).__name__}


@cache
def compiled(source: str) -> Any:
    """Parse a template, once."""
    return load().from_string(source)


if __name__ == "__main__":
    main(sys.argv[1:])
