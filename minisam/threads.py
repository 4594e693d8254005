"""One pool of threads for the whole package, and who may use how many cores.

Two libraries that each start their own threads fight: they spin while they wait, and take the cores
from one another. So the work is cut up here, in Python threads; each of them calls BLAS, limited to
one thread, and Numba kernels that release the interpreter's lock.
"""

from __future__ import annotations

import contextvars
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from .errors import MinisamError

T = TypeVar("T")
CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
LINE = 16  # floats of a line of the cache, 64 bytes


# ---------------------------------------------------------------------- how many


def thread_count() -> int:
    """Give the number of threads that work is cut up for.

    Returns
    -------
    int
        ``MINISAM_THREADS`` if set, else `physical_cores`.

    Raises
    ------
    MinisamError
        ``MINISAM_THREADS`` is not a whole number above zero.
    """
    asked = os.environ.get("MINISAM_THREADS", "").strip()
    if not asked:
        return physical_cores()
    if not asked.isdecimal() or len(asked) > 9 or int(asked) < 1:
        raise MinisamError(f"MINISAM_THREADS is {asked!r}; expected a whole number, 1 or more")
    return int(asked)


@functools.cache
def physical_cores() -> int:
    """Count the cores that this process may keep busy.

    On Linux two hyper-threads of one core, which share its arithmetic units, count once, and the
    affinity mask and the CPU quota of a container are respected. Elsewhere all logical CPUs count.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
        cores = len({_core_of(cpu) for cpu in cpus})
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _core_of(cpu: int) -> str:
    """Name the core that a logical CPU belongs to, by the list of all CPUs on it."""
    try:
        return (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> float:
    """Cores' worth of time that the control groups of this process allow; infinite if unlimited."""
    allowed = [math.inf]
    for folder in _cgroup_folders():
        try:
            if (folder / "cpu.max").exists():  # version 2: "200000 100000" or "max 100000"
                quota, period = (folder / "cpu.max").read_text().split()
            else:  # version 1: -1 means no limit
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            if quota not in ("max", "-1"):
                allowed.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(allowed)


def _cgroup_folders() -> Iterator[Path]:
    """Every control group that holds this process, from its own up to the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        own = root / path.lstrip("/")
        yield own
        for parent in own.parents:
            if not parent.is_relative_to(root):
                break
            yield parent


# ---------------------------------------------------------------------- BLAS on one thread


class _BlasLimit:
    """BLAS on one thread while anybody works; as it was when the last one is done.

    The number of BLAS threads belongs to the whole process, so callers on several Python threads
    share one limit: the first sets it, the last lifts it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.limiter: Any = None

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.limiter = _controller().limit(limits=1, user_api="blas")
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.limiter.restore_original_limits()
                self.limiter = None


@functools.cache
def _controller() -> ThreadpoolController:
    # Looks through the loaded libraries: a millisecond, so once. NumPy's BLAS is among them; one
    # that another package loads later is none that is called here.
    return ThreadpoolController()


_blas = _BlasLimit()


def one_blas_thread() -> AbstractContextManager[None]:
    """Limit BLAS to one thread inside the ``with`` block; may be nested and used by many threads.

    `parallel` does so by itself. Around a series of short steps this spares setting the limit
    anew for each.
    """
    return _blas


# ---------------------------------------------------------------------- the pool

_lock = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None


def _helpers(count: int) -> ThreadPoolExecutor:
    """The pool of `count` threads that help the calling one; made anew when the count changes."""
    global _pool
    with _lock:
        if _pool is None or _pool[0] != count:
            _pool = count, ThreadPoolExecutor(count, thread_name_prefix="minisam")
        return _pool[1]


def parallel(task: Callable[[T], object], items: Iterable[T]) -> None:
    """Call ``task(item)`` for every item, on all cores, with BLAS on one thread each.

    Items are started in order, each by the next free thread; the calling thread takes its share.
    So a task may itself call `parallel`, and callers on several threads cannot block one another.

    Parameters
    ----------
    task : callable
        Results go into arrays that it holds; its return value is dropped.
    items : iterable

    Raises
    ------
    Exception
        One that a task raised, the calling thread's if it raised too; items not yet started are
        dropped.
    """
    todo = list(items)
    todo.reverse()  # list.pop takes from the end, in one step that no other thread can interrupt
    count = thread_count()
    helpers = min(count, len(todo)) - 1
    over: list[bool] = []

    def work() -> None:
        try:
            while todo:
                try:
                    item = todo.pop()
                except IndexError:  # another thread was quicker
                    return
                task(item)
        except BaseException:
            todo.clear()
            raise

    def help() -> None:
        if not over:  # one whose thread could not be started stays in the pool's queue
            work()

    futures: list[Future[None]] = []
    with _blas:
        try:
            if helpers > 0:
                pool = _helpers(count - 1)
                with suppress(RuntimeError):  # no more threads, or Python is about to end
                    for _ in range(helpers):
                        futures.append(pool.submit(contextvars.copy_context().run, help))
            work()
        finally:
            over.append(True)
            _finish(futures)
        for future in futures:
            if not future.cancelled():
                future.result()


def _finish(futures: list[Future[None]]) -> None:
    """Wait for those that have begun, whatever comes between: the arrays are not whole before."""
    interrupted: BaseException | None = None
    for future in futures:
        while not future.cancel() and not future.done():
            try:
                future.exception()
            except BaseException as error:  # Ctrl-C
                interrupted = error
    if interrupted is not None:
        raise interrupted


def blocks(count: int, most: int) -> list[slice]:
    """Cut ``range(count)`` into near-equal slices of at most `most`, about as many as occupy all
    threads equally long.

    Parameters
    ----------
    count : int
        Rows to share out.
    most : int
        Rows of one block.
    """
    threads = thread_count()
    rounds = max(1, math.ceil(count / (most * threads)))
    size = max(1, math.ceil(count / (rounds * threads)))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Workspaces(threading.local):
    def __init__(self) -> None:
        self.held: dict[str, np.ndarray] = {}


_workspaces = _Workspaces()


def workspace(name: str, *shape: int) -> np.ndarray:
    """Borrow this thread's float32 scratch array of that name; its contents are left-overs.

    Fresh memory is slow: the system hands it out page by page, zeroed, on first touch. A buffer
    that stays with the thread is touched once and then stays in cache. It begins with a line of
    the cache: of a vector that lies across two lines, both have to be fetched.

    Parameters
    ----------
    name : str
        Two arrays in use at once need two names, also those of a task that calls `parallel` and of
        the tasks in that, which may run on its thread.
    *shape : int
    """
    size = math.prod(shape)
    held = _workspaces.held.get(name)
    if held is None or held.size < size:
        room = np.empty(size + LINE, np.float32)
        start = -room.ctypes.data // room.itemsize % LINE
        held = _workspaces.held[name] = room[start : start + size]
    return held[:size].reshape(shape)


def _after_fork() -> None:
    """Start afresh in a forked child: it has none of the parent's threads and no work under way."""
    global _pool, _lock, _blas, _workspaces
    limiter = _blas.limiter
    _pool, _lock, _blas, _workspaces = None, threading.Lock(), _BlasLimit(), _Workspaces()
    physical_cores.cache_clear()  # a worker may be given fewer
    if limiter is not None:
        limiter.restore_original_limits()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
