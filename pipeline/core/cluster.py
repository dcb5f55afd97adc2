"""A Dask cluster as a place to work: reach it, hand it tasks, and say in one line what is wrong with it.

Clusters are made with Dask's own commands (``dask scheduler``, ``dask worker``); here are only the client's side, and
the check that a worker has this machine's libraries. A Dask cluster runs whatever its clients send, by design.
"""

from __future__ import annotations

import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from .errors import ClusterError, PipelineError
from .machine import installed

# their versions decide what a worker computes, or whether it understands the client at all
LIBRARIES = ("image-feature-pipeline", "torch", "torchvision", "timm", "openvino", "scikit-learn", "numpy", "pillow",
             "distributed")  # fmt: skip
CONNECT, NO_WORKER = 10.0, 60.0  # seconds after which a scheduler is given up, and a cluster without workers
TICK = 2.0  # seconds between looks at who is there
AHEAD = 2  # tasks handed out for each thread of the cluster: the next one is there before the last one is done
LOGGERS = ("distributed", "distributed.client", "distributed.core", "distributed.comm", "tornado.application")


class Cluster:
    """A cluster that this process is connected to; made by `connected`.

    Attributes
    ----------
    scheduler : str
        Its address.
    client : distributed.Client
    """

    def __init__(self, scheduler: str, client: Any):
        self.scheduler, self.client = scheduler, client
        self._looked, self._threads, self._seen = -TICK, 0, time.monotonic()

    def threads(self) -> int:
        """Return how many tasks the workers run at once, as of a moment ago.

        Raises
        ------
        ClusterError
            If the scheduler is gone, or no worker was there for a minute.
        """
        now = time.monotonic()
        if now - self._looked > TICK:
            with self.reached():
                self._threads = sum(self.client.nthreads().values())
            self._looked = now
            if self._threads:
                self._seen = now
        if now - self._seen > NO_WORKER:
            raise ClusterError(f"The cluster at {self.scheduler} has had no worker for {NO_WORKER:.0f} s; start some "
                               f"with `dask worker {self.scheduler}`. What is done is kept.")
        return self._threads

    def require_same(self) -> None:
        """Make sure that the workers that are there have this machine's libraries.

        Raises
        ------
        ClusterError
            Naming the differences.
        """
        with self.reached():
            found = self.client.run(differing, versions(), on_error="return")
        for worker, different in found.items():
            if isinstance(different, BaseException):
                raise ClusterError(f"Worker {worker} cannot work for this machine: it lacks this package, or has "
                                   f"another version of it ({_why(different)}).")
            if different:
                raise _unfit(worker, different)

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple]) -> Iterator[Any]:
        """Call `function` with each of the arguments on some worker; results come as they are done.

        A task whose worker dies runs on another. Only a few tasks, and so results, are ahead of the consumer.

        Raises
        ------
        ClusterError
            If the cluster is gone, or a task has taken several workers with it. What a function raises is raised here.
        """
        from distributed import wait

        tasks, pending = iter(tasks), set[Any]()
        while True:
            room = max(1, AHEAD * self.threads()) - len(pending)
            with self.reached():
                pending |= {self.client.submit(function, *task, pure=False) for task in islice(tasks, max(0, room))}
                if not pending:
                    return
                try:
                    with self.client.as_current():
                        done = wait(pending, TICK, "FIRST_COMPLETED").done
                except TimeoutError:
                    continue
            pending -= done
            # what is well done first, so that it is not lost to an error beside it
            for future in sorted(done, key=lambda future: future.status != "finished"):
                yield self._result(future)

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker

        try:
            with self.reached(OSError):
                return future.result()
        except KilledWorker as error:
            raise ClusterError(f"{error.allowed_failures + 1} workers of the cluster at {self.scheduler} died over the "
                               "same work, for want of memory perhaps; their logs tell. What is done is kept."
                               ) from error
        except ImportError as error:
            raise ClusterError(f"A worker of the cluster at {self.scheduler} lacks this package, or has "
                               f"another version of it ({error}). Install the same on all workers and the scheduler."
                               ) from error
        except RuntimeError as error:
            if "Scheduler and Client have different environments" not in str(error):
                raise
            raise ClusterError(f"The scheduler at {self.scheduler} lacks this package, or has another version of it. "
                               "Install the same on all workers and the scheduler.") from error

    @contextmanager
    def reached(self, but: type[Exception] = ClusterError) -> Iterator[None]:
        """Explain that the scheduler is gone; `but` is an error that tells something else."""
        from distributed import CancelledError
        from distributed.client import ClosedClientError

        try:
            yield
        except but:
            raise
        except (CancelledError, ClosedClientError, OSError, TimeoutError) as error:
            raise self._lost(isinstance(error, CancelledError)) from error

    def _lost(self, cancelled: bool) -> ClusterError:
        """Tell whether the scheduler is gone, or, where a task was cancelled, all workers and what they were sent."""
        with suppress(Exception):
            if cancelled and not self.client.nthreads():
                return ClusterError(f"All workers of the cluster at {self.scheduler} have died. What is done is kept: "
                                    f"start some with `dask worker {self.scheduler}`, and run the same command.")
        return ClusterError(f"The connection to the Dask scheduler at {self.scheduler} is lost. What is done is kept: "
                            "start the cluster again, and run the same command.")


@contextmanager
def connected(scheduler: str) -> Iterator[Cluster]:
    """Connect to the Dask scheduler at an address such as ``tcp://host:8786`` and yield the cluster.

    Raises
    ------
    ClusterError
        If Dask is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError("A cluster takes Dask's library: pip install 'image-feature-pipeline[dask]'.") from error
    with _quiet():
        try:
            client = Client(scheduler, timeout=CONNECT, set_as_default=False, name="pipeline")
        except (OSError, ValueError, TypeError, TimeoutError) as error:
            raise ClusterError(f"No Dask scheduler answers at {scheduler!r} ({_why(error)}). `dask scheduler` starts "
                               "one and prints its address; `dask worker ADDRESS` joins it.") from error
        try:
            cluster = Cluster(scheduler, client)
            cluster.require_same()
            yield cluster
        finally:
            client.close(timeout=1)


@contextmanager
def joblib_backend(scheduler: str, shared: Any) -> Iterator[None]:
    """Let joblib work on a cluster; `shared` goes to each worker once, wherever it is an argument of a task."""
    from joblib import parallel_config

    with connected(scheduler) as cluster:
        with cluster.reached():
            backend = parallel_config("dask", client=cluster.client, scatter=[shared])
        with backend, cluster.reached(PipelineError):
            yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from logging what the one error line says."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, LOGGERS)}
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="distributed")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def versions() -> dict[str, str]:
    """Return this machine's versions of Python and of `LIBRARIES`; a build's mark, such as ``+cpu``, is left out."""
    found = {"python": platform.python_version().rpartition(".")[0]}
    return found | {library: installed(library).partition("+")[0] or "not installed" for library in LIBRARIES}


def differing(theirs: Mapping[str, str]) -> list[str]:
    """On a worker: name each difference between its client's `versions` and its own."""
    ours = versions()
    return [f"{library} {ours.get(library)} there, {wanted} here" for library, wanted in theirs.items()
            if ours.get(library) != wanted]


def require_same(theirs: Mapping[str, str]) -> None:
    """On a worker, in a task: refuse to work for a client that has other versions.

    A worker may have joined after the client looked; so every task looks again.

    Raises
    ------
    ClusterError
        Naming each difference.
    """
    if different := differing(theirs):
        raise _unfit(address(), different)


def _unfit(worker: str, different: list[str]) -> ClusterError:
    return ClusterError(f"Worker {worker} has other libraries than this machine: {'; '.join(different)}. "
                        "Install the same versions on every worker.")


def address() -> str:
    """On a worker: return its address."""
    from distributed import get_worker

    return get_worker().address
