"""An attribute of a library is another one while somebody needs it, and no longer."""

from types import SimpleNamespace

import pytest

from lora_drift.pipelines.shared_patch import SharedPatch


def test_the_last_who_leaves_puts_the_original_back() -> None:
    owner = SimpleNamespace(name=(original := object()))
    made: list[object] = []

    def make(of: object) -> object:
        made.append(of)
        return ("instead of", of)

    patch = SharedPatch("name", make)
    for _ in range(2):  # and all of it once more
        first, second, third = patch.on(owner), patch.on(owner), patch.on(owner)
        first.__enter__()
        assert owner.name == ("instead of", original)
        second.__enter__()
        first.__exit__(None, None, None)
        third.__enter__()
        assert owner.name == ("instead of", original)
        second.__exit__(None, None, None)
        assert owner.name == ("instead of", original)
        third.__exit__(None, None, None)
        assert owner.name is original
    assert made == [original, original]


def test_an_error_leaves_the_original() -> None:
    owner = SimpleNamespace(name=1)
    patch = SharedPatch("name", lambda of: of + 1)
    with pytest.raises(ZeroDivisionError), patch.on(owner):
        assert owner.name == 2
        raise ZeroDivisionError
    assert owner.name == 1
