"""`lora-drift` and `python FILE` for a script of many commands: each call forks a process that has imported torch.

Importing it takes most of the time of a command on a miniature model. Run by the Python of the environment in question:

    preloaded.py SOCKET serve           prints a line when it is ready
    preloaded.py SOCKET lora-drift ...  runs that in a fork, with the caller's folder, environment, input and output
"""

import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence

LIMIT = 1 << 20
"""Bytes of a request."""


def ask(path: str, command: Sequence[str]) -> int:
    """The exit code."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = json.dumps([command, os.getcwd(), dict(os.environ)]).encode()  # noqa: PTH109
        socket.send_fds(server, [request], [0, 1, 2])
        return int(server.recv(8) or 70)  # nothing comes from a fork that was killed


def serve(path: str) -> None:
    from lora_drift.harness import hf_logging

    hf_logging.quiet()
    import diffusers
    import torchvision  # noqa: F401
    import transformers

    from lora_drift import pipelines
    from lora_drift.harness.cli import main  # noqa: F401

    for name in ("StableDiffusionPipeline", "FluxPipeline", "AutoencoderKL"):
        getattr(diffusers, name)
    _ = (transformers.CLIPTextModel, transformers.T5EncoderModel, pipelines.load)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            caller, _ = listener.accept()
            request, streams, _, _ = socket.recv_fds(caller, LIMIT, 3)
            if os.fork() == 0:
                listener.close()
                run(caller, streams, *json.loads(request))
            caller.close()
            for stream in streams:
                os.close(stream)


def run(
    caller: socket.socket, streams: list[int], command: list[str], folder: str, environment: dict[str, str]
) -> None:
    """In a fork, which ends here."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code: object = 0
    try:
        if command[0] == "python":
            sys.argv = command[1:]
            runpy.run_path(command[1], run_name="__main__")
        else:
            from lora_drift.harness.cli.main import main

            sys.argv = command
            main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - the caller sees it
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    caller.send(str(code if isinstance(code, int) else 1).encode())
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[2:] == ["serve"]:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
