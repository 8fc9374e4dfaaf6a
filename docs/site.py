"""README becomes the start of the site, and links to files that are no pages of it lead to GitHub."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ABOVE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie above docs/, and what they are called in the site."""
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, there in ABOVE.items():
        files.append(File.generated(config, there, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    above = {there: ROOT / name for name, there in ABOVE.items()}
    folder = above.get(here, DOCS / here).parent

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / found[1]))
        if "://" in found[1] or not target.exists():
            return found[1]  # mkdocs says what is not there
        name = str(target.relative_to(ROOT))
        if name in ABOVE:
            there = ABOVE[name]
        elif target.is_file() and target.is_relative_to(DOCS):
            there = str(target.relative_to(DOCS))
        else:
            return f"{config.extra['social'][0]['link']}/tree/main/{name}"
        return os.path.relpath(there, Path(here).parent)

    return LINK.sub(link, re.sub(r"\A<!--.*?-->\s*", "", markdown))  # before the heading, which names the page
