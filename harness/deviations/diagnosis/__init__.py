"""Why is this picture another one? Looks for the variations that make ours theirs (docs/diagnose.md).

    from lora_drift.harness.deviations.diagnosis import pictures, search
    found = search.diagnose(Subject.of(pipeline, request), pictures.read(path))

`pictures` (and `webp`) reads files and knows their codecs, `search` looks, `reuse` keeps what was computed, `words`
says it.
"""
