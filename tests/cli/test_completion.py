"""Completion of ``ibrl``, with keys typed into real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.config_kinds import every_kind
from evaluate import eval as eval_cli
from ibrl import completion
from ibrl.commands import BY_WORDS, COMMANDS

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "bind 'set bell-style none'"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D"),
}
# in the place of the program, to see what a line has become
SHOW = "ibrl() { printf '\\nRAN'; printf '<%s>' \"$@\"; printf '\\n'; }"


class Shell:
    """An interactive shell in a terminal of its own, with the completion loaded."""

    def __init__(self, name: str, script: Path, folder: Path) -> None:
        command, more = START[name]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            variables = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder)}
            os.execvpe(command[0], command, variables)
        for line in (more, f"source {script}", SHOW):
            self.line(line)

    def line(self, keys: str) -> str:
        """Types keys and Enter; returns what is printed until the next prompt."""
        os.write(self.fd, f"{keys}\n".encode())
        mark = f"DONE{time.monotonic_ns()}"
        os.write(self.fd, f"printf '%s\\n' {mark[:4]}''{mark[4:]}\n".encode())
        return self._until(mark)

    def _until(self, mark: str) -> str:
        text, end = "", time.monotonic() + 100
        while mark not in text:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"the shell does not answer: {text!r}"
            text += os.read(self.fd, 65536).decode(errors="replace")
        return text

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture(scope="module", params=sorted(START))
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "weights.pt").touch()
    script = folder / "completion"
    script.write_text(completion.script(request.param))
    shell = Shell(request.param, script, folder)
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("ev\t", ["eval"]),
        ("demos rob\t", ["demos", "robosuite"]),
        ("eval --mo\tb\t", ["eval", "--mode", "bc"]),
        (
            "train-rl --q_agent.act_method ibrl_s\t",
            ["train-rl", "--q_agent.act_method", "ibrl_soft"],
        ),
        ("train-rl --use_tr\t1", ["train-rl", "--use_trackio", "1"]),
        # an option of a kind that is not the default
        (
            "train-bc --policy_type md\t--mdn.greedy_ev\t1",
            ["train-bc", "--policy_type", "mdn", "--mdn.greedy_eval", "1"],
        ),
        ("train-rl --suite=metaw\t", ["train-rl", "--suite=metaworld"]),
        ("eval --weight wei\t", ["eval", "--weight", "weights.pt"]),
        ("inspect wei\t", ["inspect", "weights.pt"]),
        ("completion ba\t", ["completion", "bash"]),
        ("demos oracle --ta\t", ["demos", "oracle", "--task"]),
    ],
)
def test_keys_become_words(shell: Shell, keys: str, words: list[str]) -> None:
    printed = shell.line(f"ibrl {keys}")
    ran = re.findall(r"RAN((?:<[^>\n]*>)+)", printed)
    assert ran == ["".join(f"<{word}>" for word in words)], printed


def test_options_are_those_of_the_programs() -> None:
    for words, config in (("train-rl", train_rl.MainConfig), ("train-bc", train_bc.MainConfig)):
        rows = [row for kind in every_kind(config).values() for row in run_config.describe(kind)]
        found = completion.options_of(BY_WORDS[words])
        assert found.keys() == {"--config_path", *(f"--{row[0]}" for row in rows)}
        for name, expects, _, _ in rows:
            if expects.startswith("one of "):  # '' cannot be typed by a key
                wanted = expects.removeprefix("one of ").removeprefix("'', ")
                assert wanted == ", ".join(found[f"--{name}"])
    actions = eval_cli._parser()._actions
    found = completion.options_of(BY_WORDS["eval"])
    assert found.keys() == {a.option_strings[-1] for a in actions}
    assert found["--mode"] == ("bc", "rl")
    assert not [c.words for c in COMMANDS if not completion.options_of(c)]


@pytest.mark.parametrize("name", sorted(START))
def test_nothing_is_started_at_a_key(name: str) -> None:
    """All words are in the script: its only commands are the shell's own."""
    text = completion.script(name)
    assert "python" not in text and set(re.findall(r"\$\(([a-z_]+)", text)) <= {
        "_ibrl_commands",
        "_ibrl_options",
        "_ibrl_values",
        "compgen",
    }


def test_another_shell_is_refused() -> None:
    done = subprocess.run(
        ["python", "-m", "ibrl.completion", "fish"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: shell: invalid choice: 'fish' (choose from")
