"""A ComfyUI of one's own: started from a checkout, on the CPU, with a folder of its own for all that it reads and
writes; graphs are posted as the browser does."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 300.0
"""Seconds for the start, and for a graph."""


class Failed(RuntimeError):
    """ComfyUI did not start, or did not do what a graph asks."""


class ComfyUI:
    """Attributes:
    folder: of its models, custom_nodes, input, output.
    log: file of what it prints.
    process: to be terminated by whoever started it (`close`).
    """

    def __init__(
        self,
        checkout: Path,
        python: str,
        folder: Path,
        nodes: Mapping[str, Path],
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. `nodes`: name -> folder or file that is linked into custom_nodes."""
        self.checkout, self.folder, self.log = checkout, folder, folder / "server.log"
        for name in ("custom_nodes", "models/loras", "input", "output", "user"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, path in nodes.items():
            (folder / "custom_nodes" / name).symlink_to(path)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command: list[Any] = [python, checkout / "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
                   "--base-directory", folder, "--database-url", f"sqlite:///{folder}/user/comfyui.db",
                   "--disable-api-nodes", "--disable-auto-launch", *options]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, **(environment or {})}, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Until it answers.

        Raises:
            Failed: it ended, or took longer than `PATIENCE`.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.call("/system_stats")
                return
            except OSError:
                time.sleep(0.5)
        raise Failed(f"ComfyUI did not start:\n{self.said()}")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def call(self, path: str, content: Any = None) -> Any:
        """What the server answers; of a refusal, too."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "text/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                said = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read()
        except http.client.HTTPException as error:
            raise OSError(error) from error
        return json.loads(said) if said else None

    def post(self, graph: Mapping[str, Any]) -> str:
        """The id under which its result will be found.

        Raises:
            Failed: the graph is refused.
        """
        answer = self.call("/prompt", {"prompt": graph})
        if "prompt_id" not in answer:
            raise Failed(json.dumps(answer))
        return str(answer["prompt_id"])

    def result(self, prompt: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            found: dict[str, Any] = self.call(f"/history/{prompt}")
            if found:
                return dict(found[prompt])
            time.sleep(0.05)
        raise Failed(f"no result:\n{self.said()}")

    def run(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a graph: node -> what it saved or shows.

        Raises:
            Failed: a node failed.
        """
        result = self.result(self.post(graph))
        if result["status"]["status_str"] != "success":
            errors = [data for kind, data in result["status"]["messages"] if kind == "execution_error"]
            raise Failed("; ".join(f"{data['node_type']}: {data['exception_message'].strip()}" for data in errors))
        outputs: dict[str, Any] = result["outputs"]
        return outputs

    def file(self, saved: Mapping[str, str]) -> Path:
        return self.folder / saved["type"] / saved["subfolder"] / saved["filename"]
