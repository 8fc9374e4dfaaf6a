"""The report: one self-contained HTML page and a small committed summary, made from result records alone.

`render.render` writes all of it. `scale` turns metrics into what a reader sees (bars, rounded numbers, order),
`pictures` turns image files into data URIs, `summary` writes what git keeps.
"""

from pathlib import Path

PAGES = Path(__file__).parent / "pages"
"""The catalogue, a Markdown file a model: a link to docs/models, and in an installed wheel a copy of it."""
