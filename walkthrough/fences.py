"""Chapters as data: find the code fences of a Markdown file, run them, and compare.

Three kinds of Python fence, and no other, so that nothing a reader sees goes unchecked:

``python run``
    Executed in order, one namespace a chapter, from the repository's root. What it prints stands in
    the ``text output`` fence that follows.
``python naive``
    Executed too. Holds at least one assertion and touches at least one of minisam's own functions:
    it shows that a slow, obvious version gives the same answer.
``python source=minisam/layers.py::softmax``
    The source of a function, class, method or constant, letter for letter; with ``nodoc`` behind
    it, without docstrings. Several symbols are joined by commas.

Code runs the plain NumPy functions (``MINISAM_PLAIN=1``), which are what the chapters explain, on
one BLAS thread: the arrays are small, and on a busy machine more threads wait for one another. A
fence marked ``kernels`` runs the Numba twins with the threads they choose. ``text output varies``
is for timings: its words are compared, its numbers are not.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  (only a BLAS that is loaded can be limited to one thread)
from threadpoolctl import threadpool_limits

from minisam.dispatch import plain

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ROOT / "walkthrough"

FENCE = re.compile(
    r"^(?P<tick>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=tick)[ \t]*$", re.M | re.S
)
HIDDEN = re.compile(  # FENCE does not see it
    r"^(?:(?:[ \t>]|[-*+][ \t]|\d+[.)][ \t])+(?:`{3,}|~{3,})|~{3,})[ \t]*i?py", re.M | re.I
)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
PYTHON = re.compile(r"i?py", re.I)  # of whatever version, and however it is spelled


class FenceError(AssertionError):
    """A fence that does not hold: the message names the chapter and the line."""


@dataclass(frozen=True)
class Fence:
    """One fenced block.

    Attributes
    ----------
    language : str
    words : tuple of str
        The rest of the info string.
    body : str
    line : int
        Of the first line of the body, from 1.
    start, end : int
        Span of the whole block in the file's text.
    """

    language: str
    words: tuple[str, ...]
    body: str
    line: int
    start: int
    end: int

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.words[:1] == ("output",)

    @property
    def source(self) -> str | None:
        """``minisam/layers.py::softmax`` of a source fence."""
        for word in self.words:
            if word.startswith("source="):
                return word.removeprefix("source=")
        return None


def chapters() -> list[Path]:
    """All chapters, in order."""
    return sorted(CHAPTERS.glob("[0-9][0-9]-*.md"))


def parse(text: str) -> list[Fence]:
    """Find the fences of a Markdown text."""
    fences = []
    for m in FENCE.finditer(text):
        language, *words = m["info"].split() or [""]
        line = text.count("\n", 0, m.start("body")) + 1
        fences.append(Fence(language, tuple(words), m["body"], line, m.start(), m.end()))
    return fences


def without_fences(text: str) -> str:
    """The prose alone; every fence becomes as many empty lines."""
    return FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)


# ------------------------------------------------------------------ source excerpts


def excerpt(source: str, doc: bool = True) -> str:
    """Cut symbols out of a source file.

    Parameters
    ----------
    source : str
        ``path::symbol`` or ``path::symbol,symbol``; a method is ``Class.method``.
    doc : bool
        Keep the docstrings.
    """
    path, _, symbols = source.partition("::")
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, SyntaxError) as error:
        raise FenceError(f"cannot read {path}: {error}") from error
    parts = [_symbol(text, tree, s, doc, path) for s in symbols.split(",")]
    return "\n\n".join(parts) + "\n"


def _symbol(text: str, tree: ast.Module, symbol: str, doc: bool, path: str) -> str:
    scope: list[ast.stmt] = tree.body
    node: ast.stmt | None = None
    for name in symbol.split("."):
        node = next((n for n in scope if name in _names(n)), None)
        if node is None:
            raise FenceError(f"{path} has no {symbol}")
        scope = getattr(node, "body", [])
    assert node is not None and node.end_lineno is not None
    lines = text.splitlines()
    first = min([d.lineno for d in getattr(node, "decorator_list", [])] + [node.lineno])
    drop: set[int] = set()
    if not doc:
        for inner in ast.walk(node):
            body = getattr(inner, "body", None)
            if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
                drop |= set(range(body[0].lineno, body[0].end_lineno + 1))
    while first > 1 and lines[first - 2].startswith("#"):  # its own comment
        first -= 1
    kept = [lines[i - 1] for i in range(first, node.end_lineno + 1) if i not in drop]
    indent = len(kept[0]) - len(kept[0].lstrip())
    return "\n".join(line[indent:] for line in kept)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    if isinstance(node, ast.Assign):
        return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []


# ------------------------------------------------------------------ running


def run_chapter(path: Path, *, write: bool = False, timings: bool = False) -> str:
    """Check every fence of a chapter in order.

    Parameters
    ----------
    path : Path
    write : bool
        Refresh source excerpts and outputs instead of comparing them.
    timings : bool
        With `write`, refresh outputs marked ``varies`` too.

    Returns
    -------
    str
        The chapter's text, refreshed with `write`. The file is not touched.

    Raises
    ------
    FenceError
        A fence is of no known kind, differs, or fails.
    """
    text = path.read_text(encoding="utf-8")
    fences = parse(text)
    namespace: dict[str, Any] = {"__name__": f"chapter {path.name}"}
    out, done = [], 0
    if hidden := HIDDEN.search(text):
        line = text.count("\n", 0, hidden.start()) + 1
        raise FenceError(f"{path.name}:{line}: a Python fence must start its line with ```")

    def replace(start: int, end: int, new: str) -> None:
        nonlocal done
        out.append(text[done:start] + new)
        done = end

    with _from_root():
        for i, fence in enumerate(fences):
            where = f"{path.name}:{fence.line}"
            if not PYTHON.match(fence.language):
                continue
            if fence.language != "python" or not fence.words:
                raise FenceError(f"{where}: a Python fence must be run, naive or source=...")
            if fence.source is not None:
                wanted = excerpt(fence.source, doc="nodoc" not in fence.words)
                if wanted != fence.body:
                    if not write:
                        raise FenceError(
                            f"{where}: {fence.source} has changed; run walkthrough.sync --write"
                        )
                    head = text[fence.start : text.index("\n", fence.start) + 1]
                    replace(fence.start, fence.end, head + wanted + head[: head.index("p")])
                continue
            printed = _execute(fence, namespace, where)
            follower = fences[i + 1] if i + 1 < len(fences) else None
            if follower and follower.is_output and not text[fence.end : follower.start].strip():
                varies = "varies" in follower.words
                problem = difference(printed, follower.body, varies)
                if problem and not write:
                    raise FenceError(f"{path.name}:{follower.line}: {problem}")
                if problem or (write and printed != follower.body and (timings or not varies)):
                    info = "text output varies" if varies else "text output"
                    replace(follower.start, follower.end, f"```{info}\n{printed}```")
            elif printed:
                if not write:
                    raise FenceError(f"{where}: prints, but no `text output` fence follows")
                replace(fence.end, fence.end, f"\n\n```text output\n{printed}```")
    return "".join(out) + text[done:]


@contextlib.contextmanager
def _from_root() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def _execute(fence: Fence, namespace: dict[str, Any], where: str) -> str:
    kind = fence.words[0]
    if kind not in ("run", "naive"):
        raise FenceError(f"{where}: unknown fence `python {' '.join(fence.words)}`")
    name = str(CHAPTERS / where.rpartition(":")[0])
    try:
        tree = ast.parse(fence.body, name)
    except SyntaxError as error:
        line = fence.line + (error.lineno or 1) - 1
        raise FenceError(f"{Path(name).name}:{line}: {error.msg}") from error
    ast.increment_lineno(tree, fence.line - 1)  # tracebacks show the chapter's own lines
    printed = io.StringIO()
    fast = "kernels" in fence.words
    threads = contextlib.nullcontext() if fast else threadpool_limits(1, "blas")
    try:
        with contextlib.redirect_stdout(printed), plain(not fast), threads:
            exec(compile(tree, name, "exec"), namespace)
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        where = f"{Path(name).name}:{lines[0] if lines else fence.line}"
        raise FenceError(f"{where}: {type(error).__name__}: {error}") from error
    if kind == "naive":
        if not any(_asserts(node) for node in ast.walk(tree)):
            raise FenceError(f"{where}: a naive fence must assert that it equals the real function")
        if not any(_is_ours(_resolve(node, namespace)) for node in ast.walk(tree)):
            raise FenceError(f"{where}: a naive fence must call the function of minisam it equals")
    return "".join(line.rstrip() + "\n" for line in printed.getvalue().splitlines())


def _asserts(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr.startswith("assert_")
    return isinstance(node, ast.Assert)


def _resolve(node: ast.AST, namespace: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return namespace.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(node.value, namespace), node.attr, None)
    return None


def _is_ours(value: Any) -> bool:
    return isinstance(value, types.FunctionType | types.MethodType) and str(
        value.__module__
    ).startswith("minisam")


def difference(printed: str, expected: str, varies: bool = False) -> str:
    """Say how two outputs differ; empty when they agree.

    Words and whole numbers must be the same. Numbers with a decimal point may differ by one unit of
    their last printed place, because BLAS libraries add in different orders. With `varies` no
    number is compared.
    """
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", expected).split():
        return f"printed\n{printed}but the chapter says\n{expected}"
    if varies:
        return ""
    for got, said in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True):
        if got != said and abs(float(got) - float(said)) > 1.001 * _unit(said):
            return f"printed {got} where the chapter says {said}, in\n{printed}"
    return ""


def _unit(number: str) -> float:
    """One unit of the last place of a printed number; 0 for whole numbers."""
    mantissa, _, exponent = number.lower().partition("e")
    if "." not in mantissa and not exponent:
        return 0.0
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
