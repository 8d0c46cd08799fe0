"""A console that knows ASCII alone, and folders whose names hold more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from common_utils.errors import run_program
from common_utils.logger import RunLogger
from common_utils.run_folder import RunFolder
from tests.runs import REPO, env, metrics

ASCII_CONSOLE = {"PYTHONIOENCODING": "ascii"}
ASCII_NAMES = {"LC_ALL": "C", "PYTHONUTF8": "0"}
BC = ["--dataset.use_state=1", "--device=cpu", "--num_eval_episode=0", "--epoch_len=2"]
ECHO = """
import sys
from common_utils.errors import UserError, run_program
def main():
    print(sys.argv[1])
    raise UserError(sys.argv[1])
sys.exit(run_program(main))
"""
PRINTS = """
import sys
from common_utils.errors import run_program
def main():
    for _ in range(int(sys.argv[1])):
        print("a line")
sys.exit(run_program(main))
"""


def python(more: dict[str, str], *args: str) -> subprocess.CompletedProcess[bytes]:
    variables = {k: v for k, v in env().items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))}
    return subprocess.run(
        [sys.executable, *args], cwd=REPO, env=variables | more, capture_output=True, timeout=100
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a demonstration file of states [3], actions [2]."""
    folder = tmp_path / "prüfung 机器"
    folder.mkdir()
    with h5py.File(folder / "datä.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((4, 2), np.float32)
        demo["rewards"] = np.float32([0, 0, 0, 1])
        demo["obs/state"] = np.random.default_rng(0).random((4, 3), np.float32)
    return folder


def test_what_the_console_cannot_show_is_escaped() -> None:
    done = python(ASCII_CONSOLE, "-c", ECHO, "é机")
    assert (done.returncode, done.stdout) == (2, b"\\xe9\\u673a\n")
    assert done.stderr == b"error: \\xe9\\u673a\n"
    done = python(ASCII_NAMES, "-c", ECHO, "é机")
    assert (done.returncode, done.stdout) == (2, "é机\n".encode())
    not_text = python({"PYTHONUTF8": "1"}, "-c", ECHO, b"\xe9")  # type: ignore[arg-type]
    assert (not_text.returncode, not_text.stdout) == (2, b"\\udce9\n")


def test_programs_go_on_with_other_names(place: Path) -> None:
    data, run = place / "datä.hdf5", place / "läuft"
    done = python(ASCII_CONSOLE, "-m", "tools.inspect_dataset", str(data), "--demos=0")
    assert b"dat\\xe4.hdf5" in done.stdout and b"Traceback" not in done.stderr
    command = ["train_bc.py", *BC, f"--dataset.path={data}", f"--save_dir={run}", "--num_epoch=1"]
    done = python(ASCII_NAMES, *command)
    assert done.returncode == 0, done.stderr.decode()
    assert [r["step"] for r in metrics(run)] == [2]


def test_the_log_is_utf8_whatever_it_names(tmp_path: Path) -> None:
    with RunLogger(tmp_path / "é", quiet=True) as log:
        log.print("read caf\udce9.hdf5, é")
    assert (tmp_path / "é" / "train.log").read_bytes() == "read caf\\udce9.hdf5, é\n".encode()


def test_a_folder_whose_name_is_no_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        RunFolder(f"{tmp_path}/caf\udce9", resume=False, overwrite=False)

    assert run_program(main) == 2
    err = capsys.readouterr().err
    assert f"save_dir: '{tmp_path}/caf\\udce9' is not UTF-8, expected the folder" in err


@pytest.mark.parametrize("unbuffered, lines", [("", 0), ("", 1), ("1", 1), ("", 200_000)])
def test_a_reader_that_leaves_ends_a_program_without_a_word(unbuffered: str, lines: int) -> None:
    """As ``| head`` does, before or after what is printed fills a buffer."""
    program = ["-c", PRINTS, str(lines)] if lines else ["train_bc.py", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *program],
        cwd=REPO,
        env=env() | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=100,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_pipe_of_its_own_stays_a_bug() -> None:
    with pytest.raises(BrokenPipeError):
        run_program(closed_pipe)


def closed_pipe() -> None:
    raise BrokenPipeError
