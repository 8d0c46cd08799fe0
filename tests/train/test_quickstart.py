"""quickstart.py from start to end on a tiny budget, and a second time (nothing is done again)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from common_utils.gl import best_backend
from tests import forkserver
from tests.runs import env
from tools.stages import CFG_DIR

# as ``python quickstart.py``, with the configurations in a folder
PROGRAM = """
import sys
from pathlib import Path
import quickstart
quickstart.CFG_DIR = Path(sys.argv.pop(1))
sys.exit(quickstart.run_program(quickstart.main))
"""
# the released configurations with less to compute
SMALLER = {
    "quickstart_demos.yaml": {},
    "quickstart_bc.yaml": {"epoch_len: 5000": 50, "num_eval_episode: 20": 2,
                           "num_final_episode: 20": 2},
    # the video's pictures take longest
    "quickstart_rl.yaml": {"num_warm_up_episode: 200": 3, "num_eval_episode: 20": 2,
                           "episode_length: 100": 10},
}  # fmt: skip


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "cfgs"
    folder.mkdir()
    for name, changes in SMALLER.items():
        text = (CFG_DIR / name).read_text()
        for line, value in changes.items():
            assert text.count(f"{line}\n") == 1
            text = text.replace(f"{line}\n", f"{line.partition(':')[0]}: {value}\n")
        (folder / name).write_text(text)
    return folder


def quickstart(configs: Path, save_dir: Path) -> subprocess.CompletedProcess[str]:
    options = ["--num_train_step=60", "--num_eval_episode=4", f"--save_dir={save_dir}"]
    variables = env() | {"MUJOCO_GL": best_backend()}
    return forkserver.run("-c", PROGRAM, configs, *options, variables=variables, timeout=600)


def test_quickstart_leaves_what_it_promises(configs: Path, tmp_path: Path) -> None:
    out = tmp_path / "quick"
    first = quickstart(configs, out)
    assert first.returncode == 0, first.stderr
    assert "IBRL" in first.stdout and "95 % interval" in first.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["env_steps"] == 60 and summary["eval_episodes"] == 4
    assert 0 <= summary["bc_success"] <= 1 and 0 <= summary["ibrl_success"] <= 1
    assert summary["train_seconds"] > 0
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "ibrl" / "model0.pt").is_file()
    videos = list((out / "videos").glob("*.mp4"))
    assert len(videos) == (0 if best_backend() == "disabled" else 1)

    again = quickstart(configs, out)
    assert again.returncode == 0, again.stderr
    second = json.loads((out / "summary.json").read_text())
    for key in ("bc_success", "ibrl_success", "env_steps", "train_seconds"):
        assert second[key] == summary[key], key
