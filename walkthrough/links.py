"""Check the links, figures and captions of Markdown files."""

from __future__ import annotations

import re
from pathlib import Path

from .fences import ROOT, without_fences

LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$", re.M)
EXPLICIT = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")


def problems(path: Path) -> list[str]:
    """List what is wrong with a Markdown file's links and figures."""
    text = _prose(path)
    found = []
    for m in LINK.finditer(text):
        line = f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, m.start()) + 1}"
        target = m["target"]
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.is_relative_to(ROOT) or not there.exists():
            found.append(f"{line}: {target} does not exist")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            found.append(f"{line}: {file or path.name} has no heading #{anchor}")
        if m["image"]:
            if len(m["text"].split()) < 3:
                found.append(f"{line}: {target} needs an alt text that says what it shows")
            captioned = re.match(r"\s*\*[^*\s]", text[m.end() :])
            if path.parent.name == "walkthrough" and not captioned:
                found.append(f"{line}: {target} needs a caption below it, in *italics*")
    return found


def figures(path: Path) -> list[Path]:
    """The local images that a Markdown file shows."""
    return [
        (path.parent / m["target"]).resolve()
        for m in LINK.finditer(_prose(path))
        if m["image"] and "://" not in m["target"]
    ]


def targets(path: Path) -> set[Path]:
    """The local files that a Markdown file links to."""
    return {
        (path.parent / m["target"].partition("#")[0]).resolve()
        for m in LINK.finditer(_prose(path))
        if "://" not in m["target"] and not m["target"].startswith("#")
    }


def anchors(path: Path) -> set[str]:
    """The #anchors of a Markdown file, as code hosts make them from its headings."""
    text = without_fences(path.read_text(encoding="utf-8"))
    seen: dict[str, int] = {}
    found = set(EXPLICIT.findall(text))
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return found


def _prose(path: Path) -> str:
    text = without_fences(path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "``", text)  # inline code holds no links
