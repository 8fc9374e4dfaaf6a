"""The report: one self-contained HTML page and a small committed summary, made from result records alone.

`render.render` writes all of it. `scale` turns metrics into what a reader sees (bars, rounded numbers, order),
`pictures` turns image files into data URIs, `summary` writes what git keeps.
"""
