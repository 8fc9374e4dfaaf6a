"""Where things lie: in a checkout beside this folder; for an installed wheel, in the folder that one works in."""

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

HARNESS = Path(__file__).resolve().parent
IN_CHECKOUT = not (HARNESS.parent / "__init__.py").is_file()
"""Is this the folder of a checkout, and not part of the installed package `lora_drift`?"""
ROOT = HARNESS.parent if IN_CHECKOUT else Path.cwd()
"""The folder with cases/, goldens/ and reports/: never a folder of installed packages."""


def homepage() -> str:
    """The project's repository, as the installed package names it."""
    try:
        urls = metadata("lora-drift").get_all("Project-URL") or []
    except PackageNotFoundError:  # a checkout on the path that nobody installed
        urls = []
    return dict(url.split(", ", 1) for url in urls).get("Homepage", "its repository")


def elsewhere(what: str, folder: Path, options: str) -> str:
    """What to say where there is no folder of "cases" or "goldens"."""
    return (
        f"no {what} at {folder}: those of lora-drift are kept in its repository (git clone {homepage()}); "
        f"name a folder of your own with {options}"
    )
