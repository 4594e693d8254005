"""The chapters hold: code runs, outputs and excerpts agree, figures and links exist."""

from __future__ import annotations

import inspect
import re
import shutil
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from walkthrough import links
from walkthrough.fences import (
    CHAPTERS,
    ROOT,
    FenceError,
    chapters,
    difference,
    excerpt,
    parse,
    run_chapter,
)
from walkthrough.figures.ch00 import README_CLICK

INDEX = CHAPTERS / "README.md"
PAGES = [p for p in (ROOT / "README.md", ROOT / "weights" / "README.md") if p.exists()]
PAGES += sorted(CHAPTERS.rglob("*.md"))
STAGES = [
    "preprocess", "image_encoder", "prompt_encoder", "mask_hint", "two_way", "mask_decoder",
    "postprocess", "layers",
]  # fmt: skip


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", chapters(), ids=named)
def test_chapter_runs(path):
    run_chapter(path)


def test_the_readmes_runs(tmp_path, monkeypatch, capsys):
    """What the README shows is what comes, but for the times."""
    import minisam.kernels  # noqa: F401  # compiled code stays in the user's cache
    from minisam.__main__ import main

    photos = tmp_path / "walkthrough" / "photos"
    photos.mkdir(parents=True)
    shutil.copy(CHAPTERS / "photos" / "coffee.jpg", photos)
    monkeypatch.setenv("MINISAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def timeless(text: str) -> str:
        return re.sub(r"\d+\.\d\d s", "# s", text)

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fences = parse(readme)
    commands = re.findall(r"python -m minisam (walkthrough/photos/coffee\.jpg .+)", readme)
    assert commands[0].endswith("--point {},{}".format(*README_CLICK))  # as drawn below it
    tables = [f.body for f in fences if f.language == "text" and "model nano" in f.body]
    assert len(tables) == 2
    for command, table in zip(commands[:2], tables, strict=True):
        capsys.readouterr()
        assert main(command.split()) == 0
        shown = re.sub(r"^\$.*\n", "", table)
        assert not difference(timeless(capsys.readouterr().out), timeless(shown))
    script = next(i for i, fence in enumerate(fences) if fence.language == "py")
    exec(fences[script].body, {})
    assert not difference(capsys.readouterr().out, fences[script + 1].body)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_and_figures(path):
    assert not links.problems(path)


@pytest.mark.parametrize("path", chapters(), ids=named)
def test_chapter_links_to_its_neighbours(path):
    order = chapters()
    at = order.index(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    expected = [*order[max(at - 1, 0) : at], INDEX, *order[at + 1 : at + 2]]
    for line in (lines[2], lines[-1]):  # below the title, and at the end
        parts = [re.fullmatch(r"\[[^]]+\]\((\S+)\)", part) for part in line.split(" | ")]
        assert [part and part[1] for part in parts] == [p.name for p in expected], line
    assert path in links.targets(INDEX), f"the index does not list {path.name}"


def test_every_figure_has_a_generator_and_a_place():
    from walkthrough.figures import FOLDER, registry

    drawn = {p.stem for p in FOLDER.glob("*.png")}
    shown = {p.stem for page in PAGES for p in links.figures(page) if p.parent == FOLDER}
    assert drawn == set(registry()), "PNG files and generators differ"
    assert shown == drawn, "PNG files and the figures that chapters show differ"


@cache
def executed_code() -> str:
    fences = [f for path in chapters() for f in parse(path.read_text(encoding="utf-8"))]
    return "\n".join(f.body for f in fences if f.language == "python")


def stage_functions() -> list[str]:
    found = []
    for stage in STAGES:
        module = import_module(f"minisam.{stage}")
        for name, value in inspect.getmembers(module, inspect.isfunction):
            if value.__module__ == module.__name__ and not name.startswith("_"):
                found.append(f"{stage}.{name}")
    return found


@pytest.mark.parametrize("function", stage_functions())
def test_every_stage_function_appears_in_a_chapter(function):
    name = function.partition(".")[2]
    assert re.search(rf"\b{name}\b", executed_code()), f"no chapter runs or shows {function}"


def readme_tree() -> list[Path]:
    """The paths in the README's map: the fence with a line that starts with ``minisam/``.

    One path a line, its folder being the nearest less indented line above that ends in ``/``.
    """
    for fence in parse((ROOT / "README.md").read_text(encoding="utf-8")):
        if fence.language in ("", "text") and re.search(r"^minisam/", fence.body, re.M):
            found, parents = [], [(-1, ROOT)]
            for line in filter(str.strip, fence.body.splitlines()):
                name = re.search(r"[\w.]\S*", line)
                assert name, line
                while parents[-1][0] >= name.start():
                    parents.pop()
                found.append(parents[-1][1] / name[0])
                if name[0].endswith("/"):
                    parents.append((name.start(), found[-1]))
            return found
    return []


def test_readme_tree_matches_the_repository():
    tree = readme_tree()
    assert tree, "README.md has no map of the repository"
    missing = [named(p) for p in tree if not p.exists()]
    assert not missing, f"the README's map lists what does not exist: {missing}"
    shown = set(tree)
    code = [p for p in (ROOT / "minisam").glob("*.py") if not p.name.startswith("__")]
    code += [p.parent for p in (ROOT / "minisam").glob("*/__init__.py")]
    code += [ROOT / name for name in ("minisam", "weights", "walkthrough", "tests")]
    assert not [named(p) for p in code if p not in shown], "not on the README's map"


# ------------------------------------------------------------------ the checker itself


def chapter(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "00-test.md"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nx = 1\n```\n", "must be run, naive or source"),
        ("```py run\nx = 1\n```\n", "must be run, naive or source"),
        ("```python sketch\nx = 1\n```\n", "unknown fence"),
        ("```Python\nx = 1\n```\n", "must be run, naive or source"),
        ("- a list\n  ```python\n  x = 1\n  ```\n", "must start its line"),
        ("1. ```python\n   x = 1\n   ```\n", "must start its line"),
        ("```python run\nx = \n```\n", "00-test.md:2: invalid syntax"),
        ("```python run\nraise SystemExit(0)\n```\n", "SystemExit"),
        ("```python source=minisam/gone.py::relu\n```\n", "cannot read minisam/gone.py"),
        ("```python run\nx = 1 / 0\n```\n", "ZeroDivisionError"),
        ("```python run\nprint(1)\n```\n", "no `text output` fence"),
        ("```python run\nprint(1)\n```\n\n```text output\n2\n```\n", "the chapter says 2"),
        ("```python naive\nassert 1 == 1\n```\n", "must call the function of minisam"),
        ("```python naive\nfrom minisam.layers import relu\nrelu(1)\n```\n", "must assert"),
        ("```python source=minisam/layers.py::relu nodoc\nno\n```\n", "has changed"),
        ("```python source=minisam/layers.py::nothing\n```\n", "has no nothing"),
    ],
)
def test_a_wrong_fence_is_caught(tmp_path, text, message):
    with pytest.raises(FenceError, match=re.escape(message)):
        run_chapter(chapter(tmp_path, text))


@pytest.mark.parametrize("command", ["walkthrough.sync", "walkthrough.figures.__main__"])
def test_a_mistyped_chapter_is_refused(command, capsys):
    with pytest.raises(SystemExit) as left:
        import_module(command).main(["03-atention"])
    assert left.value.code == 2 and "begins with 03-atention" in capsys.readouterr().err


def test_write_refreshes_outputs_and_excerpts(tmp_path):
    path = chapter(
        tmp_path,
        "a\n```python run\nprint(1)\n```\n\n```text output\n2\n```\nb\n"
        "```python source=minisam/layers.py::relu nodoc\nold\n```\nc\n"
        "```python run\nprint(3)\n```\nd\n",
    )
    fresh = run_chapter(path, write=True)
    assert "```text output\n1\n```\nb\n" in fresh
    assert "```text output\n3\n```\nd\n" in fresh
    assert "return np.maximum(x, 0)\n```\nc\n" in fresh
    path.write_text(fresh, encoding="utf-8")
    assert run_chapter(path) == fresh == run_chapter(path, write=True)


def test_an_excerpt_is_the_source_itself():
    from minisam import layers

    assert (
        excerpt("minisam/layers.py::softmax").strip() == inspect.getsource(layers.softmax).strip()
    )
    short = excerpt("minisam/layers.py::softmax", doc=False)
    assert '"""' not in short
    space: dict = {"np": np, "Array": np.ndarray}
    exec(short, space)
    x = np.array([[1.0, 2.0, 4.0]], np.float32)
    np.testing.assert_array_equal(space["softmax"](x), layers.softmax(x))


@pytest.mark.parametrize(
    ("printed", "said", "same"),
    [
        ("a 1.23\n", "a 1.24\n", True),
        ("a 1.23\n", "a 1.25\n", False),
        ("a 3\n", "a 4\n", False),
        ("a 1.0\n", "b 1.0\n", False),
        ("1.2e-05\n", "1.3e-05\n", True),
        ("1.2e-05\n", "1.4e-05\n", False),
    ],
)
def test_outputs_agree_to_their_last_printed_place(printed, said, same):
    assert (difference(printed, said) == "") is same


def test_only_words_count_where_numbers_vary():
    assert difference("took 1.5 s\n", "took 9.7 s\n", varies=True) == ""
    assert difference("took 1.5 s\n", "needed 1.5 s\n", varies=True) != ""
