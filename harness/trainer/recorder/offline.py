"""transformers 5 offline as it is online: it looks for a config.json beside a tokenizer.

That there is none is fine online and in a folder; offline it raises before it comes to that (utils/hub.py
`cached_files`).
"""

from typing import Any


def as_online() -> None:
    """Let tokenizers in subfolders without a config.json (Z-Image, LTX-2) load from the mini hub."""
    from transformers.utils import hub

    original = hub.cached_files

    def cached_files(path_or_repo_id: Any, filenames: Any, **options: Any) -> Any:
        try:
            return original(path_or_repo_id, filenames, **options)
        except OSError:
            if list(filenames) != ["config.json"]:
                raise
            return None

    hub.cached_files = cached_files
