"""The whole model against Meta's own numbers, stage by stage; the first that diverges is named."""

from __future__ import annotations

import pytest

from minisam import dispatch

from .parity import CONFIGS, PROMPTS, compare


@pytest.mark.parametrize("path", ["plain", "fast"])
@pytest.mark.parametrize("name", ["tiny", "portrait", "vit_b"])
def test_every_stage_matches_meta(name: str, path: str) -> None:
    stages = []
    with dispatch.plain(path == "plain"):
        for row in compare(name):
            stages.append(row.stage)
            if not row.ok:
                pytest.fail(
                    f"{name}, {path} path: the first stage that diverges is {row.stage}: "
                    f"{row.difference:.3g} > {row.allowed:g} (values reach {row.largest:.3g})"
                )
    blocks = len(CONFIGS[name].windows)
    assert len(stages) == 4 + blocks + len(PROMPTS) * 12, "a stage was skipped"
