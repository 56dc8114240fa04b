"""Hooks of mkdocs: add pages outside docs/ to the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

BESIDE = ("CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages at the top of the repository."""
    from mkdocs.structure.files import File

    top = Path(config.config_file_path).parent
    for name in BESIDE:
        files.append(File.generated(config, name, abs_src_path=str(top / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links between docs/ and the top of the repository lead to pages of the site.

    Links to other files at the top become plain names, as the site has no copy of them.
    """
    at_top = page.file.src_uri in BESIDE

    def of_site(link: re.Match[str]) -> str:
        text, path, anchor = link[1], link[2], link[3] or ""
        inside = at_top and path.startswith("docs/")
        name = path.removeprefix("docs/") if inside else path.removeprefix("../")
        outside = path.startswith("../") or (at_top and not inside)
        return text if outside and name not in BESIDE else f"[{text}]({name}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)", of_site, markdown)
