"""Kernels are compiled once, announced, kept on disk, and never fail because of what is there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from minisam.dispatch import plain
from minisam.kernels import beside, compiled
from minisam.layers import gelu

ROOT = Path(__file__).parents[1]
NOTICE = "compiling kernels, once"
CALL = """
import numpy as np
from minisam.kernels import gelu
x = gelu(np.linspace(-3, 3, 1000, dtype=np.float32))
print(f"{x.sum():.3f}")
"""
with plain():
    EXPECTED = float(gelu(np.linspace(-3, 3, 1000, dtype=np.float32)).sum())


PLACES = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")
NO_HOME = """
import pwd
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
"""
DAY = 86400


def call(
    cache: Path | None, before: str = "", root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in PLACES}
    env.update(MINISAM_CACHE=str(cache or ""), PYTHONPATH=str(root), MINISAM_THREADS="1")
    env.update(environment)  # one thread: another process would go on compiling after this one
    done = subprocess.run([sys.executable, "-c", before + CALL], env=env, capture_output=True,
                          text=True, timeout=120, cwd=root)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(EXPECTED, abs=0.01)
    return done


def kept(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix in (".nbi", ".nbc"))


def test_compiled_once_and_announced_once(tmp_path: Path) -> None:
    assert call(tmp_path).stderr.count(NOTICE) == 1
    assert kept(tmp_path)
    assert call(tmp_path).stderr == ""


PROMPT = """
import numpy as np
import minisam
from minisam.dispatch import plain
predictor = minisam.SamPredictor(minisam.load("nano"))
with plain():
    predictor.set_image("walkthrough/photos/coffee.jpg")
predictor._photo = predictor._prepare(np.zeros((1, 1, 1), np.float32))
predictor.predict([[300, 200]], [1])
"""


def test_another_process_compiles_what_prompts_need(tmp_path: Path) -> None:
    call(tmp_path, "from minisam.kernels import beside\nbeside.run()\n", MINISAM_ASSISTANT="1")
    assert call(tmp_path, PROMPT).stderr == "", "a kernel that a prompt needs was not compiled"


def test_no_process_is_started_where_there_is_no_core_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setenv("MINISAM_THREADS", "1")
    assert beside.start() is None
    monkeypatch.setenv("MINISAM_THREADS", "2")
    monkeypatch.setenv(beside.ASSISTANT, "1")
    assert beside.start() is None
    monkeypatch.delenv(beside.ASSISTANT)
    for host in ("", "/opt/maya/maya.bin"):
        monkeypatch.setattr(sys, "executable", host)
        assert beside.start() is None


def test_a_process_that_ended_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISAM_THREADS", "2")
    monkeypatch.delenv(beside.ASSISTANT, raising=False)
    monkeypatch.setattr(beside, "CODE", "pass  # {path!r}")
    process = beside.start()
    assert process is not None
    for _ in range(500):
        if process.returncode is not None:  # set by whoever waits for it; this test does not
            break
        time.sleep(0.02)
    assert process.returncode == 0


def test_without_a_compiler_the_plain_functions_run() -> None:
    code = "import numpy as np, minisam.kernels\nfrom minisam.layers import gelu\n"
    done = subprocess.run([sys.executable, "-c", code + "print(gelu(np.float32([0])))"], cwd=ROOT,
                          env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True,
                          text=True)  # fmt: skip
    assert done.stdout == "[0.]\n", done.stderr


def test_only_the_encoders_kernels_start_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(beside, "_assistant", None)
    monkeypatch.setattr(beside, "start", lambda: started.append(1))
    for file in ("candidates", "elementwise", "sweep"):
        assert beside.kernel_needed(f"minisam.kernels.{file}", lambda: None) is None
    assert not started
    assert beside.kernel_needed("minisam.kernels.windows", lambda: None) is None
    assert started


def test_a_kernel_for_prompts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the other process, as long as that lives; the encoder's are compiled here at once."""
    answers = iter([None, None, "compiled"])
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(beside, "_assistant", other)
    monkeypatch.setattr(beside, "_until", time.monotonic() + 60)
    try:
        assert beside.kernel_needed("minisam.kernels.windows", lambda: pytest.fail("waits")) is None
        assert beside.kernel_needed("minisam.kernels.sweep", lambda: next(answers)) == "compiled"
        monkeypatch.setattr(beside, "_until", time.monotonic())  # for all kernels together
        assert beside.kernel_needed("minisam.kernels.sweep", lambda: None) is None
    finally:
        other.communicate(b"\n")
    assert beside.kernel_needed("minisam.kernels.sweep", lambda: None) is None


def test_a_clone_and_an_installed_package_share_their_kernels(tmp_path: Path) -> None:
    cached = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minisam", tmp_path / "elsewhere" / "minisam", ignore=cached)
    call(tmp_path / "cache")
    before = kept(tmp_path / "cache")
    again = call(tmp_path / "cache", root=tmp_path / "elsewhere")
    assert again.stderr == "" and kept(tmp_path / "cache") == before


@pytest.mark.parametrize("suffix, damage", [
    (".nbi", lambda old: b"garbage"),
    (".nbi", lambda old: old[: len(old) // 2]),
    (".nbc", lambda old: b""),
    (".nbc", lambda old: old[:-100]),
    (".nbc", lambda old: b"\x80\x05garbage"),
])  # fmt: skip
def test_damaged_files_are_replaced(suffix: str, damage: object, tmp_path: Path) -> None:
    call(tmp_path)
    for file in kept(tmp_path):
        if file.suffix == suffix:
            file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert NOTICE in call(tmp_path).stderr
    assert call(tmp_path).stderr == "", "the damaged files were left in place"


def test_a_new_version_of_the_source_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = compiled._version()
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    monkeypatch.setattr(compiled, "__file__", str(kernels / "compiled.py"))
    versions = {here}
    for number, (file, text) in enumerate(
        [
            ("layers.py", "a = 1"),
            ("kernels/a.py", "a = 1"),
            ("kernels/a.py", "a = 2"),
            ("layers.py", "a = 2"),
        ]
    ):
        (tmp_path / file).write_text(text)
        compiled._version.cache_clear()
        versions.add(compiled._version())
        assert len(versions) == 2 + number
    compiled._version.cache_clear()


def test_the_width_of_vectors_is_part_of_a_kernels_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled._version.__wrapped__()
    monkeypatch.setattr(compiled, "LANES", compiled.LANES // 2)
    assert compiled._version.__wrapped__() != before


def test_numbas_own_folder_holds_no_old_kernels(tmp_path: Path) -> None:
    """There Numba dates a kernel by the one file that defines it; others go into it as well."""
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    for version, says in (("a", True), ("a", False), ("b", True), ("b", False)):
        before = f"import minisam\nminisam.__version__ = {version!r}\n"
        told = call(tmp_path, before, **settings).stderr
        assert (NOTICE in told) == says, (version, told)


def test_nothing_is_written_into_the_package(tmp_path: Path) -> None:
    before = kept(ROOT / "minisam")
    call(tmp_path)
    assert kept(ROOT / "minisam") == before


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    call(tmp_path / "file" / "cache", NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator")


def test_a_user_without_a_home() -> None:
    pytest.importorskip("pwd", reason="needs a system whose users are in a list")
    assert "no folder to keep them in: set MINISAM_CACHE" in call(None, NO_HOME).stderr


def folders_of_versions(parent: Path) -> tuple[Path, Path]:
    """One that was not used for 31 days, one that was 29 days ago."""
    old, young = parent / "0123456789ab", parent / "ba9876543210"
    for folder, days in ((old, 31), (young, 29)):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "gelu.nbi").write_text("")
        os.utime(folder, (time.time() - days * DAY,) * 2)
    return old, young


def test_versions_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    old, young = folders_of_versions(tmp_path / "kernels")
    users = tmp_path / "kernels" / "not-a-version"
    users.mkdir()
    os.utime(users, (0, 0))
    call(tmp_path)  # makes its folder
    ours = tmp_path / "kernels" / compiled._version()
    os.utime(ours, (0, 0))
    call(tmp_path)
    assert not old.exists() and young.exists() and users.exists()
    assert time.time() - ours.stat().st_mtime < DAY, "is in use, and must not be the next to go"
    assert kept(ours)


def test_a_read_only_cache_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    old, young = folders_of_versions(tmp_path)
    monkeypatch.setattr(os, "utime", refuse)
    assert compiled._used.__wrapped__(young) == young
    assert old.exists()


def test_numbas_own_settings_are_left_alone(tmp_path: Path) -> None:
    untouched = os.environ.get("NUMBA_CACHE_DIR", "")
    assert untouched == numba.config.CACHE_DIR
    call(tmp_path / "ours", NUMBA_CACHE_DIR=str(tmp_path / "users"))
    assert kept(tmp_path / "users")
    assert not kept(tmp_path / "ours")
