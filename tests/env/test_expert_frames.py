"""Strips of images of an expert's episode, drawn from the real simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from common_utils.gl import best_backend
from common_utils.run_config import ConfigError
from tools.expert_frames import COLOURS, MainConfig, strip

SIZE = 32

PROGRAM = """
import sys
from env.core import EnvError
from tools.expert_frames import MainConfig, strip
folder = sys.argv[1] + "/"
strip(MainConfig(frames=3, size=32, after=2, out=folder + "won.png"))
strip(MainConfig(frames=2, size=32, failure=1, episode_length=3, out=folder + "lost.png"))
try:
    strip(MainConfig(frames=2, camera="nowhere", out=folder + "none.png"))
except EnvError as error:
    print(error)
"""


def frames(path) -> list[np.ndarray]:
    sheet = imageio.imread(path)[..., :3].astype(int)
    assert sheet.shape[0] == SIZE and sheet.shape[1] % SIZE == 0
    return np.split(sheet, sheet.shape[1] // SIZE, axis=1)


def is_bordered(frame: np.ndarray, success: bool) -> bool:
    return np.abs(frame[0] - COLOURS[success]).max() < 20


@pytest.mark.skipif(
    best_backend() == "disabled", reason="no OpenGL back end renders on this machine"
)
def test_a_success_ends_in_green_and_a_failure_in_red(tmp_path, python: Callable[..., Any]):
    done = python("-c", PROGRAM, str(tmp_path), gl=best_backend())
    assert done.returncode == 0, done.stderr
    assert "camera 'nowhere' does not exist; this model has" in done.stdout
    assert not (tmp_path / "none.png").exists()
    won = frames(tmp_path / "won.png")
    assert [is_bordered(f, True) for f in won] == [False, False, True]
    inside = [f[4:-4, 4:-4] for f in won]
    assert np.abs(inside[0] - inside[2]).max() > 50  # the hand is over the table at the end
    assert inside[0].std() > 10
    lost = frames(tmp_path / "lost.png")
    assert len(lost) == 2 and all(is_bordered(f, False) for f in lost)


def test_what_cannot_be_shown_is_reported(tmp_path):
    out = tmp_path / "strip.png"
    with pytest.raises(ConfigError, match="none of 50 episodes starting at seed 1 succeeds"):
        strip(MainConfig(episode_length=1, out=str(out)))
    assert not out.exists()
    with pytest.raises(ConfigError, match="out: ''"):
        strip(MainConfig())
    with pytest.raises(ValueError, match="task: 'PickPlace', expected one of Lift"):
        MainConfig(task="PickPlace")
