"""Tasks done by a Ray cluster: the same function as on one machine, retried where a node is lost.

Only tasks and their marks travel; files lie in the pipeline's folder, which all nodes must see
under one path. A worker under watch does each task there as here. Ray runs whatever code reaches
its port: use it in networks that you trust.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rslm._rslm import VERSION
from rslm.data.pipeline.marks import Mark, Task
from rslm.data.pipeline.plan import Plan, read_plan
from rslm.data.pipeline.supervisor import StoppedError, Worker, do_task

_POLL_SECONDS = 0.2
_MAX_RETRIES = 3
_CONNECT_SECONDS = 10.0
# What travels is small; Ray would take a third of the memory by default.
_OBJECT_STORE_BYTES = 128 << 20

# The worker of a process of Ray, with what it was started for, kept from task to task.
_kept: dict[tuple[str, str], tuple[Plan, Worker]] = {}


class RayBackend:
    """A cluster, or one of this machine alone, which lives while the block does.

    Args:
        plan: the plan, which `plan.json` holds already.
        address: of a cluster; None starts one here.
        n_workers: cores of one that is started here.
        is_stopped: asked a few times a second.

    Raises:
        ValueError: Ray is not installed, or a node has another version of rslm.
        ConnectionError: there is no cluster at the address.
    """

    def __init__(
        self, plan: Plan, address: str | None, n_workers: int, is_stopped: Callable[[], bool]
    ) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ValueError("backend ray needs Ray: pip install 'rslm[ray]'") from error
        self._ray: Any = ray
        self._plan, self._is_stopped = plan, is_stopped
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _require_cluster(address)
            here: dict[str, Any] = {
                "num_cpus": n_workers,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
            ray.init(
                address=address or "local",
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **({} if address else here),
            )
        self._do: Any = ray.remote(
            num_cpus=1, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD"
        )(do_remotely)

    def __enter__(self) -> Self:
        try:
            self._check_versions()
        except BaseException:
            self._shut_down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shut_down()

    def _shut_down(self) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def _check_versions(self) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        version_of = self._ray.remote(num_cpus=0)(_version)
        for node in self._ray.nodes():
            if not node["Alive"]:
                continue
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            found = self._ray.get(version_of.options(scheduling_strategy=on_node).remote())
            if found != VERSION:
                raise ValueError(
                    f"every node must have rslm {VERSION}, "
                    f"got {found} on {node['NodeManagerAddress']}"
                )

    def run(self, tasks: Sequence[Task]) -> Iterator[Mark]:
        """The marks of the tasks as they are finished.

        Raises:
            StoppedError: `is_stopped` said so.
            ConnectionError: nodes were lost too often.
            OSError, ValueError: a task failed.
        """
        waiting, running = list(reversed(tasks)), list[Any]()
        try:
            while waiting or running:
                while waiting and len(running) < self._n_in_flight():
                    running.append(self._submit(waiting.pop()))
                done, running = self._ray.wait(running, timeout=_POLL_SECONDS)
                if self._is_stopped():
                    raise StoppedError
                yield from map(self._result, done)
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    def _n_in_flight(self) -> int:
        """Twice what runs at once, so that no core waits for the driver."""
        return 2 * max(int(self._ray.cluster_resources().get("CPU", 1)), 1)

    def _submit(self, task: Task) -> Any:
        folder, cwd = os.path.abspath(self._plan.folder), os.getcwd()
        return self._do.remote(folder, cwd, task, VERSION)

    def _result(self, reference: Any) -> Mark:
        errors = self._ray.exceptions
        try:
            mark: Mark = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise ConnectionError(f"Ray lost a task: {str(error).splitlines()[0]}") from error
        return mark


def _require_cluster(address: str | None) -> None:
    """Fails at once where nothing listens; Ray itself would ask for a minute and more."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "://" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"address must be of a Ray cluster, got {address}: {error}"
        ) from error


def do_remotely(folder: str, cwd: str, task: Task, version: str) -> Mark:
    """Does a task on a node, by a worker that this process of Ray keeps."""
    if version != VERSION:
        # Of a node that joined later.
        raise ValueError(f"every node must have rslm {version}, got {VERSION}")
    if (folder, cwd) not in _kept:
        _kept[folder, cwd] = read_plan(Path(folder)), Worker(Path(folder), cwd)
    plan, worker = _kept[folder, cwd]
    return do_task(plan, task, worker)


def _version() -> str:
    return VERSION
