"""Tasks done by processes of this machine: one for each core, one task in each at a time."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from rslm.data.pipeline.marks import Mark, Task
from rslm.data.pipeline.plan import Plan
from rslm.data.pipeline.supervisor import Worker, do_task

_POLL_SECONDS = 0.2


class LocalBackend:
    """Workers of this machine, which live while the block does.

    Each is watched by a thread of this process. They are processes started anew, not forked: the
    interpreter's lock is held by some of the steps, and a fork takes locks of threads with it.

    Args:
        plan: the plan, which `plan.json` holds already.
        n_workers: how many.
        is_stopped: asked a few times a second.
    """

    def __init__(self, plan: Plan, n_workers: int, is_stopped: Callable[[], bool]) -> None:
        self._plan, self._n_workers, self._is_stopped = plan, n_workers, is_stopped
        self._failed = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(n_workers)
        self._of_thread, self._workers = threading.local(), list[Worker]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What is under way ends at once, and nothing of it is in its place.
        self._failed.set()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[Mark]:
        """The marks of the tasks as they are finished.

        Raises:
            StoppedError: `is_stopped` said so.
            OSError, ValueError: a task failed.
        """
        waiting, running = list(reversed(tasks)), set[concurrent.futures.Future[Mark]]()
        while waiting or running:
            # One more than are done at once, so that no worker waits for this loop.
            while waiting and len(running) <= self._n_workers:
                running.add(self._pool.submit(self._do, waiting.pop()))
            done, running = concurrent.futures.wait(
                running, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                yield future.result()

    def _do(self, task: Task) -> Mark:
        if not hasattr(self._of_thread, "worker"):
            self._of_thread.worker = Worker(self._plan.folder, os.getcwd())
            self._workers.append(self._of_thread.worker)
        return do_task(self._plan, task, self._of_thread.worker, self._must_stop)

    def _must_stop(self) -> bool:
        return self._failed.is_set() or self._is_stopped()
