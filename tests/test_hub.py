"""The hub is asked first, once for each repository, and its answer is told in words that say what to do."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from lora_drift.pipelines import RequestError, hub, loading
from lora_drift.pipelines.registry import spec_of

Asked = list[tuple[str, dict[str, Any]]]


def raised(kind: type[Exception], words: str) -> Exception:
    """As the library would raise it, without the answer of a server."""
    error = kind.__new__(kind)
    Exception.__init__(error, words)
    return error


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """Let the hub answer with this, or raise it; returns what it is asked."""

    def prepared(found: Any, access: Exception | None = None) -> Asked:
        asked: Asked = []

        class Api:
            def model_info(self, repo: str, **options: Any) -> Any:
                asked.append((repo, options))
                if isinstance(found, Exception):
                    raise found
                return found

            def auth_check(self, repo: str) -> None:
                asked.append((repo, {"auth": True}))
                if access is not None:
                    raise access

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        return asked

    return prepared


def test_what_the_hub_says_is_returned_and_it_is_asked_for_two_seconds(answer: Callable[..., Asked]) -> None:
    open_: Any = SimpleNamespace(gated=False)
    gated: Any = SimpleNamespace(gated="auto")
    asked = answer(open_)
    assert hub.info("org/name") is open_ and hub.info("org/name", files=True) is open_
    assert asked == [("org/name", {"files_metadata": files, "timeout": 2.0}) for files in (False, True)]
    asked = answer(gated)
    assert hub.info("org/name") is gated and asked[1:] == [("org/name", {"auth": True})]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (raised(RepositoryNotFoundError, "404"), r"org/name: the hub has no such repository, or it is private \(http"),
        (raised(OfflineModeIsEnabled, "offline"), "org/name: HF_HUB_OFFLINE is set, so the hub is not asked"),
        (raised(HfHubHTTPError, "500\nsecond line"), r"org/name: the hub answered 500; try again later"),
        (ConnectionError("no route\nto there"), r"cannot be reached \(no route\), and org/name is not in the cache"),
        (TimeoutError(), r"cannot be reached \(TimeoutError\)"),
    ],
)
def test_each_error_of_the_hub_has_its_words(error: Exception, words: str, answer: Callable[..., Asked]) -> None:
    answer(error)
    with pytest.raises(RequestError, match=words):
        hub.info("org/name")


@pytest.mark.parametrize(("token", "then"), [("secret", "wait until access is granted"), (None, "run `hf auth login`")])
@pytest.mark.parametrize("late", [False, True])
def test_a_gated_repository_says_what_to_do_with_a_token_and_without(
    late: bool, token: str | None, then: str, answer: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    error = raised(GatedRepoError, "gated")
    answer(SimpleNamespace(gated="auto"), error) if late else answer(error)
    with pytest.raises(RequestError, match=f"org/name is gated: accept its licence at http.*org/name, and .*{then}"):
        hub.info("org/name")


@pytest.mark.parametrize(
    ("offline", "cached", "asks"),
    [(False, None, True), (False, "c0ffee", False), (True, None, False), (True, "c", False)],
)
def test_only_what_is_not_in_the_cache_is_asked_for(
    offline: bool, cached: str | None, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(loading, "revision", lambda repo: cached)
    monkeypatch.setattr(hub, "info", asked.append)
    hub.check("org/name")
    assert asked == ["org/name"] * asks


def test_what_is_no_hub_id_is_left_to_whoever_looks_for_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def invalid(repo: str) -> None:
        raise HFValidationError(repo)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "info", invalid)
    hub.check("no/such/folder")


def test_each_repository_of_a_model_is_asked_once_and_folders_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "check", asked.append)
    spec = spec_of("wan22_14b_t2v")
    hub.check_all(spec, spec.base)
    assert asked == [spec.base, *dict.fromkeys(spec.components.values())] and len(asked) == 3
    asked.clear()
    (tmp_path / "vae").mkdir()
    hub.check_all(spec, str(tmp_path))
    assert asked == ["ai-toolkit/umt5_xxl_encoder"]
