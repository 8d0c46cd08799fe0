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

from common_utils.demo_file import Recording, write_demos

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
