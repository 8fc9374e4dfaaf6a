"""What an installation without extras lacks: the packages of `lora-drift[check]` and `lora-drift[server]`."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement


def lacking(extra: str) -> str:
    """ "needs pandas, which is not installed: pip install 'lora-drift[check]'"; empty if nothing is lacking."""
    missing = [str(wanted) for wanted in _of(extra) if not _installed(wanted)]
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return f"needs {', '.join(missing)}, which {verb} not installed: pip install 'lora-drift[{extra}]'"


def _of(extra: str) -> list[Requirement]:
    """What the extra adds, without its markers."""
    try:
        every = [Requirement(line) for line in requires("lora-drift") or ()]
    except PackageNotFoundError:  # a checkout on the path that nobody installed
        return []
    found = []
    for wanted in every:
        marker, wanted.marker = wanted.marker, None
        if marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            found.append(wanted)
    return found


def _installed(wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False
