"""Connection to Ray: a Ray of our own on this machine, or a cluster that is running already."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mertool.errors import MertoolError

CORES_PER_WORKER = 2  # without a GPU: one core encodes, one decodes
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 << 20  # for a Ray of our own: only paths and statistics pass through it
VALID_ADDRESSES = "give auto, HOST:PORT or ray://HOST:PORT"


@contextmanager
def connected_ray(address: str | None) -> Iterator[Any]:
    """Yield the module ray, connected to the cluster at `address`, or to a Ray of our own if it is None.

    A connection that this process has already is used and left open. Raises MertoolError if Ray is not installed or
    the address cannot be reached.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def worker_resources(ray: Any, device: torch.device) -> tuple[int, dict[str, int]]:
    """Return the number of workers that the machines have room for, and the resources of each of them."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if device.type != "cuda":
        num_cpus = max(1, min(CORES_PER_WORKER, *cores))
        return max(1, sum(count // num_cpus for count in cores)), {"num_cpus": num_cpus}
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if not any(gpus):
        raise MertoolError(f"none of the {len(nodes)} machines of the Ray cluster has a GPU: give --device cpu")
    num_cpus = min(n_cores // n_gpus for n_cores, n_gpus in zip(cores, gpus, strict=True) if n_gpus)
    return sum(gpus), {"num_cpus": num_cpus, "num_gpus": 1}


def _import_ray() -> Any:
    # Read when ray is imported: no statistics are sent, and no warning of a change to come is printed.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # twenty would take a quarter of an hour
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MertoolError("engine 'ray' needs Ray, which is not installed: pip install 'mertool[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Ray counts the cores of the machine, of which this process may use fewer.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        ray.init("local", include_dashboard=False, num_cpus=cores, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        return
    if address != "auto":
        _check_reachable(ray, address)
    try:
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise MertoolError(
            f"cannot connect to Ray at '{address}' ({reason}): {VALID_ADDRESSES} of a running cluster"
        ) from error


def _check_reachable(ray: Any, address: str) -> None:
    """Raise MertoolError if no server accepts connections at the address; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise MertoolError(f"Ray address '{address}' cannot be read: {VALID_ADDRESSES}")
    hosts = [host.strip("[]")]
    if host in ("localhost", "127.0.0.1"):
        hosts.append(ray.util.get_node_ip_address())  # Ray may listen only there, and replaces a loopback address by it
    for name in hosts:
        try:
            socket.create_connection((name, int(port)), CONNECT_SECONDS).close()
            return
        except (OSError, OverflowError) as error:
            reason = error
    raise MertoolError(f"cannot reach Ray at '{address}' ({reason}): {VALID_ADDRESSES} of a running cluster")
