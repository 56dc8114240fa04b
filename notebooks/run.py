"""Run the notebooks and write their outputs: `make notebooks`, and tests.

Cells run in order in one namespace, as in Jupyter, but without its kernel. Their outputs are what
they print, and the value of the last line as text, and as HTML or a picture if it has these forms.
"""

from __future__ import annotations

import ast
import base64
import io
import os
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_output

FOLDER = Path(__file__).parent


def run_notebook(file: Path) -> Any:
    """Run a notebook; return it with the new outputs of its cells.

    Raises:
        Exception: whatever a cell raises.
    """
    notebook = nbformat.read(file, as_version=4)
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.path.insert(0, str(FOLDER))
    try:
        with chdir(FOLDER):
            cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
            for number, cell in enumerate(cells, 1):
                cell.execution_count = number
                cell.outputs = _run_cell(cell.source, f"{file.name}, cell {number}", names, number)
    finally:
        sys.path.remove(str(FOLDER))
    return notebook


def _run_cell(source: str, where: str, names: dict[str, Any], number: int) -> list[Any]:
    tree = ast.parse(source, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs = []
    if printed.getvalue():
        outputs.append(new_output("stream", name="stdout", text=printed.getvalue()))
    if value is not None:
        data = _shown(value)
        outputs.append(new_output("execute_result", data, execution_count=number))
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    """Return a value by the media types in which it can be shown."""
    found = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_") and (html := value._repr_html_()):
        found["text/html"] = html
    if hasattr(value, "_repr_mimebundle_"):
        bundle = value._repr_mimebundle_()
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle
        if "image/png" in bundle:
            png = bundle["image/png"]
            found = {"text/plain": f"<{type(value).__name__}>"}
            found["image/png"] = base64.b64encode(png).decode() if isinstance(png, bytes) else png
    return found


def main() -> None:
    """Run all notebooks and write them."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for file in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(run_notebook(file), file)
        print(file)


if __name__ == "__main__":
    main()
