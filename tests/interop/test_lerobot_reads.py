"""The real lerobot reads what is written here, if ``IBRL_LEROBOT_PYTHON`` names an interpreter.

python3.12 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install 'lerobot[dataset]==0.6.1'
IBRL_LEROBOT_PYTHON=/tmp/lerobot/bin/python pytest tests/interop/test_lerobot_reads.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bc.formats import open_demos
from tests.bc.test_dataset import write_metaworld, write_robomimic
from tests.bc.test_lerobot import converted

PYTHON = os.environ.get("IBRL_LEROBOT_PYTHON", "")
READER = Path(__file__).with_name("read_with_lerobot.py")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="IBRL_LEROBOT_PYTHON names no interpreter that has lerobot (Python 3.12)"
)


def read_by_lerobot(folder: Path) -> dict[str, np.ndarray]:
    """All steps, as lerobot's own dataset class delivers them."""
    out = folder.with_suffix(".npz")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [PYTHON, str(READER), str(folder), str(out)],
        capture_output=True, text=True, timeout=300, env=env | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(out))


@pytest.mark.parametrize("options", [["--lossless"], [], ["--codec", "av1"]], ids=str)
def test_lerobot_reads_every_number_and_pixel(tmp_path, options):
    source = write_robomimic(tmp_path / "d.hdf5", (7, 5, 9), size=32)
    folder = converted(source, tmp_path / "out", *options, "--instruction", "put the can away")
    found = read_by_lerobot(folder)
    assert found["fps"] == 20 and found["lengths"].tolist() == [7, 5, 9]
    assert set(found["task"].tolist()) == {"put the can away"}
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    keys = json.loads((folder / "meta/ibrl.json").read_text())["keys"]
    with open_demos(folder) as demos:
        own = {name: keys.get(name) or demos.key_of(name) for name in features if "." in name}
        for name, key in (own | {"action": "actions"}).items():
            array = np.concatenate([demos.array(n, key) for n in demos.names])
            # lerobot makes torch's float32 of all floating-point numbers
            want = array.astype(np.float32) if array.dtype == np.float64 else array
            np.testing.assert_array_equal(found[name], want, err_msg=name)
            mean = found[f"stats/{name}/mean"].ravel()
            scale = 255 if array.ndim == 4 else 1
            axes = (0, 2, 3) if array.ndim == 4 else 0
            np.testing.assert_allclose(mean, (array / scale).mean(axis=axes).ravel(), atol=1e-2)


def test_lerobot_reads_several_files_of_each_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("bc.lerobot.writer.DATA_MB", 1e-9)
    monkeypatch.setattr("bc.lerobot.writer.VIDEO_MB", 1e-9)
    source = write_metaworld(tmp_path / "d.hdf5", (6, 4), size=32)
    folder = converted(source, tmp_path / "out")
    assert len(list(folder.glob("data/*/*.parquet"))) == 2
    assert len(list(folder.glob("videos/observation.images.corner2/*/*.mp4"))) == 2
    found = read_by_lerobot(folder)
    with open_demos(folder) as demos:
        for camera in ("corner2", "plain"):
            frames = np.concatenate([demos.images(n, camera) for n in demos.names])
            np.testing.assert_array_equal(found[f"observation.images.{camera}"], frames)
        actions = np.concatenate([demos.actions(n) for n in demos.names])
        np.testing.assert_array_equal(found["action"], actions)
