"""One base for errors of use, and one way to run a program."""

from __future__ import annotations

import errno
import os
import threading
from functools import partial

import pytest
import torch

from bc.demos import DatasetError
from common_utils.errors import run_program
from common_utils.finite import NonFiniteError
from common_utils.resources import ResourceError
from common_utils.run_config import ConfigError
from common_utils.run_state import StateError
from common_utils.specs import SpecError
from env.core import EnvError
from evaluate.rollout import EvalError
from rl.replay import ReplayError

CLASSES = [
    ConfigError, DatasetError, EnvError, EvalError, NonFiniteError, ReplayError, ResourceError,
    SpecError, StateError,
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_of_use_is_one_line_and_status_2(kind, capsys):
    def main(field: str) -> int:
        raise kind(f"{field}: 0, expected at least 1")

    assert run_program(main, "batch_size") == 2
    assert capsys.readouterr().err == "error: batch_size: 0, expected at least 1\n"


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rerror: none", r"a\rerror: none"),
        ("\u202etxt.py\u2028", r"\u202etxt.py\u2028"),
        ("prüfung 机器\u00a0x", "prüfung 机器\u00a0x"),
        ("x\n" * 50, "x\nx\nx" + r"\nx" * 47 + r"\n"),
    ],
)
def test_what_a_message_quotes_does_not_steer_the_terminal(quoted, shown, capsys):
    def main() -> int:
        raise EnvError(f"task: '{quoted}'")

    assert run_program(main) == 2
    assert capsys.readouterr().err == f"error: task: '{shown}'\n"


def test_other_ends_of_a_program():
    def interrupted() -> None:
        raise KeyboardInterrupt

    def faulty() -> None:
        raise ValueError("a fault of the program")

    assert [run_program(lambda: None), run_program(lambda: 1)] == [0, 1]
    assert run_program(interrupted) == 130
    with pytest.raises(ValueError, match="a fault"):  # its traceback is wanted
        run_program(faulty)


def test_what_the_file_system_refuses_is_one_line(capsys):
    def refused(number: int) -> None:
        raise OSError(number, os.strerror(number), "cfg.yaml")

    def torn() -> None:
        try:
            refused(errno.ENOSPC)
        except OSError as error:
            raise RuntimeError("torch cannot write") from error

    assert run_program(torn) == 2
    assert capsys.readouterr().err == "error: the disk is full (torch cannot write)\n"
    for number in (errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EACCES):
        assert run_program(refused, number) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        assert os.strerror(number) in said and "'cfg.yaml'" in said
    with pytest.raises(OSError, match="a fault"):  # of no file, by no system call
        run_program(partial(_raise, OSError("a fault of the program")))


@pytest.mark.parametrize("name", ["b/" * 3000, "c" * 6000, "my folder/" * 600])
def test_of_an_enormous_name_the_two_ends_are_printed(name, capsys):
    def refused() -> None:
        raise ConfigError(f"save_dir '{name}x': [Errno 36] File name too long: '{name}y'")

    assert run_program(refused) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: save_dir '{name[:100]}") and len(said) < 600
    assert f"{name[-50:]}x': [Errno 36] File name too long: '" in said and said.count("...") == 2
    long = "/".join(["name"] * 70)  # may still be read
    assert run_program(lambda: _raise(ConfigError(long))) == 2
    assert capsys.readouterr().err == f"error: {long}\n"


def test_exhausted_memory_is_one_line(capsys):
    huge = (lambda: bytearray(2**50), lambda: torch.empty(2**46))
    for allocate in (*huge, lambda: _raise(torch.OutOfMemoryError("CUDA out of memory.\nMore"))):
        assert run_program(lambda allocate=allocate: allocate() and None) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: memory is exhausted (") and said.count("\n") == 1
    with pytest.raises(RuntimeError, match="a fault"):
        run_program(partial(_raise, RuntimeError("a fault of the program")))


def _raise(error: Exception) -> None:
    raise error


def test_a_thread_that_the_file_system_stops_says_so_in_a_line(capsys):
    """TensorBoard's, whose folder was removed; the error reaches the main thread as well."""

    def writes() -> None:
        open("/no/such/folder/x")

    def main() -> None:
        thread = threading.Thread(target=writes)
        thread.start()
        thread.join()

    assert run_program(main) == 0
    said = capsys.readouterr().err
    assert said == "error: [Errno 2] No such file or directory: '/no/such/folder/x'\n"
