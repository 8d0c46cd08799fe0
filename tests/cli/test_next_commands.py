"""The commands that a run prints when it ends are those that the user would type."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common_utils.next_commands import again, evaluation


def started(monkeypatch: pytest.MonkeyPatch, words: list[str], options: list[str]) -> None:
    """As if the process had been started by these words."""
    monkeypatch.setattr(sys, "orig_argv", [*words, *options])
    monkeypatch.setattr(sys, "argv", [words[-1], *options])


@pytest.mark.parametrize(
    "words",
    [["python", "train_rl.py"], ["/venv/bin/python3", "-m", "mw_main.train_rl_mw"]],
)
def test_a_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, words, ["--save_dir", "my runs/1", "--seed=3"])
    front = " ".join(words)
    assert again({"resume": 1}) == f"{front} --save_dir 'my runs/1' --seed=3 --resume 1"
    assert evaluation(Path("my runs/1/model0.pt")) == (
        f"{words[0]} -m evaluate.eval --weight 'my runs/1/model0.pt' --num_game 50"
    )


def test_the_console_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "/bin/ibrl", "train-bc", "--seed", "3"])
    monkeypatch.setattr(sys, "argv", ["ibrl train-bc", "--seed", "3"])
    assert again({"resume": 1}) == "ibrl train-bc --seed 3 --resume 1"
    shown = evaluation(Path("x.pt"), ["tasks", "tasks", "more"])
    assert shown == (
        "ibrl eval --weight x.pt --num_game 50 --trust_module tasks --trust_module more"
    )


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--resume", "1", "--seed", "-1"], ["--seed", "-1"]),
        (["--resume", "--seed", "2"], ["--seed", "2"]),
        (["--seed", "2", "--overwrite=1"], ["--seed", "2"]),
        (["--num_train_step", "10", "--num_train_steps=5"], ["--num_train_steps=5"]),
    ],
)
def test_options_of_one_start_are_left_out(
    options: list[str], left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, ["python", "train_rl.py"], options)
    shown = again({"resume": 1, "num_train_step": 20})
    assert shown.split()[2:] == [*left, "--resume", "1", "--num_train_step", "20"]
