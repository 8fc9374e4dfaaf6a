"""What a render-only installation lacks: the packages of `lora-drift[check]` and `lora-drift[server]`."""

from importlib.util import find_spec

MODULES = {
    "check": ("flip_evaluator", "jinja2", "lpips", "pandas", "pytest", "skimage", "xdist"),
    "server": ("fastapi", "httpx2", "multipart", "prometheus_client", "pydantic_settings", "sqlalchemy", "uvicorn"),
}
"""Extra -> the modules of its packages that are imported."""


def lacking(extra: str) -> str:
    """ "needs pandas, which is not installed: pip install 'lora-drift[check]'"; empty if nothing is lacking."""
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return f"needs {', '.join(missing)}, which {verb} not installed: pip install 'lora-drift[{extra}]'"
