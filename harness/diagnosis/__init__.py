"""Why is this picture another one? Looks for the variations that make ours theirs (docs/diagnose.md).

    from harness.diagnosis import diagnose, pictures
    found = diagnose(Subject.of(pipeline, request), pictures.read(path))

`pictures` reads files and knows their codecs, `search` looks, `reuse` keeps what was computed, `words` and `command`
are behind `lora-drift diagnose`.
"""

from harness.diagnosis.search import Candidate, Diagnosis, Search, diagnose

__all__ = ["Candidate", "Diagnosis", "Search", "diagnose"]
