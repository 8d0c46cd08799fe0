"""quickstart.py from start to end on a tiny budget, and a second time (nothing is done again)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from common_utils.gl import best_backend
from tests import forkserver
from tests.runs import env


def quickstart(save_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--num_train_step=150", "--num_eval_episode=4", f"--save_dir={save_dir}", *more]
    variables = env() | {"MUJOCO_GL": best_backend()}
    return forkserver.run("quickstart.py", *options, variables=variables, timeout=900)


def test_quickstart_leaves_what_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    first = quickstart(out)
    assert first.returncode == 0, first.stderr
    assert "IBRL" in first.stdout and "95 % interval" in first.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["env_steps"] == 150 and summary["eval_episodes"] == 4
    assert 0 <= summary["bc_success"] <= 1 and 0 <= summary["ibrl_success"] <= 1
    assert summary["train_seconds"] > 0
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "ibrl" / "model0.pt").is_file()
    videos = list((out / "videos").glob("*.mp4"))
    assert len(videos) == (0 if best_backend() == "disabled" else 1)

    again = quickstart(out)
    assert again.returncode == 0, again.stderr
    second = json.loads((out / "summary.json").read_text())
    for key in ("bc_success", "ibrl_success", "env_steps", "train_seconds"):
        assert second[key] == summary[key], key
