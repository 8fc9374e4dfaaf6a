"""What pyproject.toml cannot say: on PyPI, README's links to files of the repository must be absolute."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def description() -> str:
    """README.md with absolute links."""
    (home,) = re.findall(r'^Homepage = "(.+)"$', (HERE / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    text = (HERE / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^]]*\]\()(?!https?://|#)", rf"\1{home}/raw/HEAD/", text)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!https?://|#)", rf"\1{home}/blob/HEAD/", text)


setup(long_description=description(), long_description_content_type="text/markdown")
