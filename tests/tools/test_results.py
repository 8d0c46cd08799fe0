"""Files of results: what is added to, and what is refused in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common_utils.run_config import ConfigError
from tools import expert_report, implicit_ibrl
from tools.results import earlier_results


def test_results_of_the_same_settings_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert earlier_results(path, "out", settings={"steps": 3}) == []
    path.write_text(json.dumps({"steps": 3, "results": [{"seed": 0}], "more": 1}))
    assert earlier_results(path, "out", settings={"steps": 3}) == [{"seed": 0}]
    with pytest.raises(ConfigError, match="out: .*other settings, {'steps': 3}; expected.*4"):
        earlier_results(path, "out", settings={"steps": 4})
    path.write_text(json.dumps({"budget": {"steps": 3}, "results": []}))
    assert earlier_results(path, "out", settings={"steps": 3}, section="budget") == []


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"experts": 3}', '{"experts": [1]}', "[" * 99999]
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"out: '{path}'"):
        expert_report.store({"task": "Lift"}, "", path)
    assert path.read_text() == text
    run = tmp_path / "ebm_seed1" / "summary.json"
    run.parent.mkdir()
    run.write_text(text)
    with pytest.raises(ConfigError, match=f"save_dir: '{run}'"):
        implicit_ibrl.gather(tmp_path)
