"""docs/tutorials: their files, taken out of the pages; their commands run, with less training.

Tutorial 3 trains on Meta-World; its commands are parsed (test_commands), and quickstart runs them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from common_utils.records import read_metrics
from tests import forkserver

REPO = Path(__file__).resolve().parents[2]
PAGES = ["own_task", "own_demonstrations", "read_a_run"]  # in their order
SMALLER = {
    "train_rl.py": "--num_train_step 40 --log_per_step 20 --num_warm_up_episode 2 "
    "--num_eval_episode 2 --batch_size 16",
    "train_bc.py": "--epoch_len 20 --num_eval_episode 2 --num_final_episode 2",
    "evaluate.eval": "--num_game 2",
}
# runs the commands of sys.argv[1] (a JSON file) one after the other, as a shell would
DRIVER = """
import json, runpy, sys
sys.path.insert(0, "")
for words in json.load(open(sys.argv[1])):
    module = words[0] == "-m"
    sys.argv, code = words[1:] if module else words, 0
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as done:
        code = done.code
    if code:
        sys.exit(f"{words}: exit status {code}")
"""


def blocks(page: str, language: str) -> list[str]:
    text = (REPO / "docs/tutorials" / f"{page}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The words after "python" of all commands, with the smaller budgets."""
    lines = "".join(b for page in PAGES for b in blocks(page, "bash")).replace("\\\n", " ")
    found = []
    for line in lines.replace("exps/tutorial/ibrl", "exps/tutorial/reach").splitlines():
        words = shlex.split(line)
        assert words[0] == "python", line
        script = words[2] if words[1] == "-m" else words[1]
        words += SMALLER.get(script, "").split()
        if (REPO / script).is_file():
            words[1] = str(REPO / script)
        found.append(words[1:])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything on the pages was run."""
    folder = tmp_path_factory.mktemp("tutorials")
    for page in PAGES:
        for block in blocks(page, "python"):
            name = block.partition("\n")[0].removeprefix("# ")
            (folder / name).write_text(block)
    (folder / "todo.json").write_text(json.dumps(commands()))
    env = os.environ | {"PYTHONPATH": str(REPO), "MUJOCO_GL": "disabled", "OMP_NUM_THREADS": "1"}
    words = ["-c", DRIVER, "todo.json"]
    done = forkserver.run(*words, variables=env, folder=folder, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (folder / "output").write_text(done.stdout)
    return folder


def test_all_commands_are_run() -> None:
    scripts = [words[1] if words[0] == "-m" else Path(words[0]).name for words in commands()]
    assert scripts == [
        "look.py", "train_rl.py", "evaluate.eval", "evaluate.eval",
        "record.py", "tools.inspect_dataset", "train_bc.py", "evaluate.eval",
        "tools.plot_runs", "read.py",
    ]  # fmt: skip


def test_the_runs_did_what_the_pages_say(folder: Path) -> None:
    run = folder / "exps/tutorial"
    assert len(list((run / "videos").glob("seed*.mp4"))) == 2
    assert (run / "demos/dataset.hdf5").is_file() and (run / "bc/model0.pt").is_file()
    assert (run / "curves.png").stat().st_size > 10_000
    rows = read_metrics(run / "reach/metrics.jsonl")
    assert [row["step"] for row in rows] == [20, 40]
    assert all(0 <= row["score/score"] <= 1 for row in rows)
    printed = (folder / "output").read_text()
    assert "5 successes in" in printed and "no problems found" in printed
    assert re.search(r"^ *step .*bc_train$", printed, re.MULTILINE)
