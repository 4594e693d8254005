"""One pool, BLAS limited only while it works, from any number of threads and processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minisam import threads
from minisam.dispatch import HOT
from minisam.errors import MinisamError

from .test_kernels_encoder import block_weights, draw


def blas_threads() -> list[int]:
    """Of the BLAS that was there first: other packages may have loaded one of their own since."""
    known = {lib["filepath"] for lib in threads._controller().info()}
    libs = [lib for lib in threadpool_info() if lib["filepath"] in known]
    return [lib["num_threads"] for lib in libs if lib["user_api"] == "blas"]


def test_every_item_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in ("1", "2", "7"):
        monkeypatch.setenv("MINISAM_THREADS", count)
        done: list[int] = []
        threads.parallel(done.append, range(50))
        assert sorted(done) == list(range(50))
        if count == "1":
            assert done == list(range(50)), "in order"
    threads.parallel(done.append, [])


def test_blas_is_limited_inside_and_as_before_after() -> None:
    inside: list[int] = []
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        if not before:
            pytest.skip("the threads of this BLAS cannot be counted")
        assert set(before) == {2}
        threads.parallel(lambda _: inside.extend(blas_threads()), range(4))
        assert set(inside) == {1}
        assert blas_threads() == before
        with threads.one_blas_thread():
            with threads.one_blas_thread():
                pass
            assert set(blas_threads()) == {1}
        assert blas_threads() == before


@pytest.mark.parametrize("count", ["1", "3"])
def test_an_error_reaches_the_caller_and_stops_the_rest(
    count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINISAM_THREADS", count)
    begun: list[int] = []

    def task(i: int) -> None:
        begun.append(i)
        if i == 3:
            raise KeyError("third")

    with threadpool_limits(2, "blas"):
        before = blas_threads()
        with pytest.raises(KeyError, match="third"):
            threads.parallel(task, range(10_000))
        assert blas_threads() == before
    if count == "1":
        assert begun == [0, 1, 2, 3]
    assert len(begun) < 10_000
    threads.parallel(begun.append, range(5))  # the pool still works


def test_without_more_threads_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISAM_THREADS", "5")
    pool, tries, done = ThreadPoolExecutor(4), [], []
    submit = pool.submit

    def no_more(*what: object) -> object:
        tries.append(what)
        if len(tries) > 1:
            raise RuntimeError("can't start new thread")
        return submit(*what)

    monkeypatch.setattr(pool, "submit", no_more)
    monkeypatch.setattr(threads, "_helpers", lambda _: pool)
    threads.parallel(done.append, range(40))
    assert len(tries) == 2 and sorted(done) == list(range(40))
    tries[1][1]()  # what was left in the pool's queue does nothing any more
    assert len(done) == 40
    pool.shutdown()


def test_an_interruption_waits_for_what_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISAM_THREADS", "2")
    here, begun, ended = threading.current_thread(), threading.Event(), threading.Event()

    def task(_: int) -> None:
        if threading.current_thread() is here:
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.2)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        threads.parallel(task, range(100))
    assert ended.is_set()


def test_after_the_interpreter_has_begun_to_end() -> None:
    code = """
import threading, time
from minisam import threads
done = []
def late():
    time.sleep(0.3)
    threads.parallel(done.append, range(10))
    print(len(done))
threads.parallel(len, ["a", "b"])
threading.Thread(target=late).start()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                         env=os.environ | {"MINISAM_THREADS": "2"},
                         cwd=Path(__file__).parents[1])  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("10\n", "")


def test_a_task_may_call_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISAM_THREADS", "2")
    done: list[int] = []
    threads.parallel(lambda _: threads.parallel(done.append, range(10)), range(10))
    assert sorted(done) == sorted(list(range(10)) * 10)


def test_eight_callers_at_once() -> None:
    p = block_weights(40, 2, 16, 70, (5, 5))
    inputs = [draw(i, 12, 13, 40) for i in range(8)]
    from minisam import kernels

    expected = [HOT["block"](x, p, heads=2, win=5) for x in inputs]
    start = threading.Barrier(8)

    def call(x: np.ndarray) -> list[np.ndarray]:
        start.wait()
        return [kernels.block(x, p, heads=2, win=5) for _ in range(10)]

    with threadpool_limits(2, "blas"):
        before = blas_threads()
        with ThreadPoolExecutor(8) as callers:
            results = list(callers.map(call, inputs))
        assert blas_threads() == before
    for several, wanted in zip(results, expected, strict=True):
        for result in several:
            np.testing.assert_allclose(result, wanted, atol=1e-4)


def _in_child(results: multiprocessing.SimpleQueue) -> None:
    from minisam import kernels

    y = kernels.mlp(np.ones((2000, 8), np.float32), **_LAYERS)
    results.put((float(y.sum()), blas_threads()))


_LAYERS = {
    "lin1": {"weight": draw(1, 9, 8), "bias": draw(2, 9)},
    "lin2": {"weight": draw(3, 5, 9), "bias": draw(4, 5)},
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads: the point here
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(method: str) -> None:
    from minisam import kernels

    expected = float(kernels.mlp(np.ones((2000, 8), np.float32), **_LAYERS).sum())
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    with threadpool_limits(2, "blas"), threads.one_blas_thread():  # forked in the midst of work
        child = context.Process(target=_in_child, args=(results,))
        child.start()
    child.join(120)
    assert child.exitcode == 0
    total, limits = results.get()
    assert math.isclose(total, expected, rel_tol=1e-5)
    if method == "fork" and limits:  # none where BLAS's threads cannot be counted
        assert set(limits) == {2}, "the child kept the limit of work that it does not do"


# ---------------------------------------------------------------------- how many


def test_thread_count_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISAM_THREADS", "5")
    assert threads.thread_count() == 5
    monkeypatch.setenv("MINISAM_THREADS", " ")
    assert threads.thread_count() == threads.physical_cores()
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("MINISAM_THREADS", wrong)
        with pytest.raises(MinisamError, match="MINISAM_THREADS"):
            threads.thread_count()


@pytest.fixture
def uncached_cores() -> object:
    threads.physical_cores.cache_clear()
    yield
    threads.physical_cores.cache_clear()


def test_two_hyper_threads_count_as_one_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uncached_cores: object
) -> None:
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(threads, "_quota", lambda: math.inf)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.physical_cores() == 4
    threads.physical_cores.cache_clear()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert threads.physical_cores() == 2


@pytest.mark.parametrize("files, cores", [
    ({"cpu.max": "150000 100000\n"}, 2),
    ({"cpu.max": "max 100000\n"}, 8),
    ({"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}, 3),
    ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 8),
    ({"cpu.max": "10000 100000\n"}, 1),
    ({}, 8),
])  # fmt: skip
def test_a_containers_quota(
    files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    uncached_cores: object,
) -> None:  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "_cgroup_folders", lambda: [tmp_path])
    monkeypatch.setattr(threads, "CPUS", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.physical_cores() == cores


# ---------------------------------------------------------------------- blocks and workspaces


@pytest.mark.parametrize("count, most", [(4096, 512), (1, 512), (4095, 500), (17, 3), (0, 4)])
def test_blocks_cover_every_row_once(
    count: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in ("1", "2", "3", "64"):
        monkeypatch.setenv("MINISAM_THREADS", n)
        blocks = threads.blocks(count, most)
        assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(count))
        assert all(0 < b.stop - b.start <= most for b in blocks)
        assert len(blocks) <= max(1, -(-count // (most * int(n)))) * int(n), "no more than needed"


def test_a_workspace_is_reused_by_its_thread_only() -> None:
    first = threads.workspace("test", 10, 20)
    assert first.shape == (10, 20)
    assert first.dtype == np.float32
    assert np.shares_memory(first, threads.workspace("test", 7, 5))
    assert not np.shares_memory(first, threads.workspace("other", 7, 5))
    with ThreadPoolExecutor(1) as other:
        assert not np.shares_memory(first, other.submit(threads.workspace, "test", 7, 5).result())


def test_control_groups_from_ones_own_to_the_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, lines = Path.read_text, "7:memory:/a\n4:cpu,cpuacct:/a/b\n0::/c\n"
    here = Path("/proc/self/cgroup")
    monkeypatch.setattr(Path, "read_text", lambda path: lines if path == here else read(path))
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    first, second = tmp_path / "cpu,cpuacct", tmp_path
    assert list(threads._cgroup_folders()) == [
        first / "a" / "b", first / "a", first, second / "c", second,
    ]  # fmt: skip
    (tmp_path / "cpu,cpuacct" / "a").mkdir(parents=True)
    (first / "a" / "cpu.cfs_quota_us").write_text("150000\n")
    (first / "a" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads._quota() == 1.5
