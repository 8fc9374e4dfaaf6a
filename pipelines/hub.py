"""The Hugging Face hub, asked first: what is wrong is said at once, not after the retries of every library."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_drift.pipelines.errors import RequestError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

    from lora_drift.pipelines.spec import ModelSpec

PATIENCE = 2.0
"""Seconds for an answer."""


def check(repo: str) -> None:
    """Ask whether `repo` (a hub id) can be had, if nothing of it is in the cache yet.

    Raises:
        RequestError: it cannot; the message begins with the cause.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    from lora_drift.pipelines.loading import revision

    if constants.HF_HUB_OFFLINE or revision(repo) is not None:
        return
    with suppress(HFValidationError):  # no hub id, so a folder that is not there: said when its files are looked for
        info(repo)


def check_all(spec: ModelSpec, base: str) -> None:
    """`check` each repository that the model is loaded from with this base (a hub id or folder)."""
    elsewhere = (repo for name, repo in spec.components.items() if not Path(base, name).is_dir())
    for repo in dict.fromkeys((base, *elsewhere)):
        if not Path(repo).exists():
            check(repo)


def info(repo: str, *, files: bool = False) -> ModelInfo:
    """What the hub says of a repository that may be read; with `files`, also their sizes.

    Raises:
        RequestError: there is no such repository, it is gated and this account has no access, or the hub cannot be
            reached.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    api, page = HfApi(), f"{constants.ENDPOINT}/{repo}"
    try:
        found = api.model_info(repo, files_metadata=files, timeout=PATIENCE)
        if found.gated:
            api.auth_check(repo)
    except GatedRepoError as error:
        then = (
            "wait until access is granted to the account of your token" if get_token() else "then run `hf auth login`"
        )
        raise RequestError(f"{repo} is gated: accept its licence at {page}, and {then}.") from error
    except RepositoryNotFoundError as error:
        raise RequestError(f"{repo}: the hub has no such repository, or it is private ({page}).", "base") from error
    except OfflineModeIsEnabled as error:
        raise RequestError(f"{repo}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it to download.") from error
    except HfHubHTTPError as error:
        raise RequestError(f"{repo}: the hub answered {first_line(error)}; try again later ({page}).") from error
    except errors() as error:
        raise RequestError(
            f"{constants.ENDPOINT} cannot be reached ({first_line(error)}), and {repo} is not in the cache. Check the "
            "network, a proxy (HTTPS_PROXY) or HF_ENDPOINT, or fetch it elsewhere and set HF_HOME."
        ) from error
    return found


def errors() -> tuple[type[Exception], ...]:
    """Of the HTTP library that huggingface_hub has: requests (OSError), or httpx under one of its names."""
    others = [sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, *others)


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
