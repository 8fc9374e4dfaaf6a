"""What a pytest run was asked for, in words of ours; imports nothing else of ours, as plugin.py must not."""

from pathlib import Path

import pytest


def folder(config: pytest.Config, what: str) -> Path | None:
    """The folder of "cases" or "goldens" that the command line names, or else pytest.ini."""
    given: Path | None = config.getoption(f"--drift-{what}")
    if given is not None:
        return (config.invocation_params.dir / given).resolve()
    said: str = config.getini(f"drift_{what}")
    return ((config.inipath or config.rootpath / "x").parent / said).resolve() if said else None


def device(config: pytest.Config) -> str:
    """Where cases run."""
    chosen: str | None = config.getoption("--drift-device")
    if chosen:
        return chosen
    return "cuda" if asked(config, "gpu") or asked(config, "full") else "cpu"


def asked(config: pytest.Config, marker: str) -> bool:
    """Does `-m` name the marker, and not after a `not`?"""
    words = str(config.getoption("markexpr", "")).replace("(", " ").replace(")", " ").split()
    return marker in words and words[max(0, words.index(marker) - 1)] != "not"
