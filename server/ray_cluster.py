"""Joining a Ray cluster as what gives it work (`serve --ray`, `check --ray`)."""

import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor

PASSED_ON = ("HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "LORA_DRIFT_CACHE")
"""What of the environment the processes on the cluster have, too."""


class NoCluster(RuntimeError):
    """There is none at the address; says what to do."""


def connect(address: str) -> None:
    """Become a driver of the cluster at `HOST:PORT`, or with `auto`, of the one that this host belongs to.

    Raises:
        NoCluster: nobody answers there.
    """
    import ray

    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}

    def init() -> None:
        ray.init(address=address, namespace="lora-drift", log_to_driver=False, logging_level=logging.ERROR,
                 runtime_env={"env_vars": environment})  # fmt: skip

    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        with ThreadPoolExecutor(1) as apart:  # in the main thread, it would take SIGTERM from the program
            apart.submit(init).result()
    except (OSError, RuntimeError, ValueError) as error:
        raise NoCluster(
            f"no Ray cluster at {address} ({str(error).splitlines()[0]}); `ray start --head` starts one, "
            "`ray start --address=HOST:6379` joins it"
        ) from error
