"""The description that a folder's demonstration files share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from common_utils.demo_file import Recording, open_demos, write_demos

ROOT = Path(__file__).resolve().parents[2]
ARGS = {"env_name": "Lift", "env_kwargs": {}}
OTHER = {"env_name": "Can", "env_kwargs": {}}


def record(folder: Path, env_args: dict = ARGS) -> dict:
    """Write a dataset into the folder; what env_cfg.json says afterwards ({}: there is none)."""
    recording = Recording({"state": [np.zeros(2)]}, [], [np.zeros(1)], [1.0])
    path = write_demos(folder, [recording], [], env_args)
    with h5py.File(path) as file:
        assert json.loads(file["data"].attrs["env_args"]) == env_args
    side = folder / "env_cfg.json"
    return json.loads(side.read_text()) if side.exists() else {}


def neighbour(folder: Path, env_args: dict | None) -> None:
    with h5py.File(folder / "mine[a].hdf5", "w") as file:
        data = file.create_group("data")
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args)


@pytest.mark.parametrize("own", [None, OTHER], ids=["described by it", "with its own"])
def test_a_shared_description_is_kept(tmp_path, capsys, own):
    neighbour(tmp_path, own)
    (tmp_path / "env_cfg.json").write_text(json.dumps(OTHER))
    assert record(tmp_path) == OTHER
    out = capsys.readouterr().out
    assert f"note: '{tmp_path / 'env_cfg.json'}' is kept" in out and "mine[a].hdf5" in out
    assert record(tmp_path, OTHER) == OTHER and capsys.readouterr().out == ""


def test_none_is_begun_for_files_without_a_description(tmp_path, capsys):
    neighbour(tmp_path, None)
    assert record(tmp_path) == {}
    assert "no '" in capsys.readouterr().out
    neighbour(tmp_path, OTHER)
    assert record(tmp_path) == ARGS and capsys.readouterr().out == ""


@pytest.mark.parametrize("text", [json.dumps(OTHER), "{damaged"])
def test_an_only_file_replaces_its_description(tmp_path, text):
    (tmp_path / "env_cfg.json").write_text(text)
    assert record(tmp_path) == ARGS


def test_what_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe.hdf5")
    with h5py.File(tmp_path / "linking.h5", "w") as file:
        file["data"] = h5py.ExternalLink("pipe.hdf5", "data")
    # in a separate process: who opens the pipe waits forever
    program = (
        "import sys; from pathlib import Path; from tests.infra.test_demo_file import record; "
        "print(record(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{}"  # linking.h5 may need what is next to it


def test_one_writer_makes_whole_files(tmp_path: Path) -> None:
    """Demonstrations of any origin: recorded, of whole arrays, copied from another file."""
    states = [np.full(3, t, np.float64) for t in range(2)]
    recording = Recording(
        {"state": [np.arange(4.0)] * 2, "sim_state": states, "cam": [np.ones((3, 2, 2))] * 2},
        states,
        [np.zeros(1)] * 2,
        [0.0, 1.0],
        stacks={"state": 2},
    )
    with open_demos(tmp_path / "a.hdf5", ARGS) as out:
        out.add(recording, ["cam"], {"ended": "terminated"})
    with h5py.File(tmp_path / "a.hdf5") as source:
        demo = source["data/demo_0"]
        assert set(demo["obs"]) == {"state", "sim_state", "cam_image"}
        assert demo["obs/sim_state"] == demo["states"]  # the same data, stored once
        assert (demo["obs/state"].attrs["stack"], demo.attrs["num_samples"]) == (2, 2)
        assert (demo["dones"][:].tolist(), demo.attrs["ended"]) == ([0, 1], "terminated")
        with open_demos(tmp_path / "b.hdf5", None) as out:
            out.copy(demo)
            out.copy(demo, "other")
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert set(file["data"]) == {"demo_0", "other"}
        assert dict(file["data"].attrs) == {"total": 4}
    with pytest.raises(KeyError), open_demos(tmp_path / "c.hdf5", ARGS):
        raise KeyError
    assert not (tmp_path / "c.hdf5").exists()


def test_no_other_module_writes_demonstrations() -> None:
    """A second writer would be a second layout."""
    rooms = ("common_utils", "env", "bc", "rl", "evaluate", "workspace", "mw_main", "tools")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    users = {path.name for path in files if "atomic_h5" in path.read_text()}
    assert users == {"h5_write.py", "demo_file.py", "recording.py"}  # recording: parts of a file
