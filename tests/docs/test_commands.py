"""Every command in the documents, and in programs' own, is one that its program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.commands import REPO, RUNS_OURS, check_command, commands, module_of

DOCS = ["README.md", "release/results/README.md"]
DOCS += sorted(p.relative_to(REPO).as_posix() for p in (REPO / "docs").rglob("*.md"))
# their programs know additions, or are on the page: test_extending and test_tutorials run them
RUN_AS_WHOLE = ("extending", "own_task", "own_demonstrations", "read_a_run")
PAGES = [page for page in DOCS if Path(page).stem not in RUN_AS_WHOLE]
# what programs say of themselves
PAGES += ["train_rl.py", "train_bc.py", "quickstart.py", "evaluate/eval.py"]
PAGES += sorted(
    p.relative_to(REPO).as_posix()
    for room in ("tools", "mw_main", "launch")
    for p in (REPO / room).glob("*.py")
    if p.stem != "ci_train_resume"  # has no parser to ask
)


def written_out(command: str) -> list[str]:
    """Without the brackets of optional parts, {a,b} as one command each, N as a number."""
    command = command.replace("[--", "--").replace("] --", " --").removesuffix("]")
    start, brace, rest = command.partition("{")
    if not brace:
        return [command.replace("--seed N", "--seed 1")]
    choices, _, end = rest.partition("}")
    return [c for choice in choices.split(",") for c in written_out(f"{start}{choice}{end}")]


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=f"{page}: {c[:60]}") for page in PAGES for c in commands(page)]
)
def test_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    for one in written_out(command):
        check_command(one)


# what readers type besides, and what runs it
OTHERS = {
    "git clone <this repository> ibrl && cd ibrl": "whoever runs .ci/run",
    "source set_env.sh": ".ci/run",
    "pip install -r requirements.txt": "set_env.sh",
    "pip install -r requirements-scale.txt": ".ci/run",
    "ray start --head --num-cpus 1": "tests/launch/test_ray.py, by ray.cluster_utils",
    "ray start --address 127.0.0.1:6379 --num-cpus 1": "the same",
    "ray start --head --num-cpus 4": "tests/ray_cluster.py, by ray.cluster_utils",
    "export RAY_ADDRESS=auto": "the same",
    "export RAY_AUTH_MODE=token": "the same",
    "cd common_utils && make && cd ..": "set_env.sh",
    "export PYTHONPATH=$PWD OMP_NUM_THREADS=1": "set_env.sh",
    "benchmarks/device_check.sh": "tests/benchmarks/test_device.py",
    "mkdir -p ~/.local/share/bash-completion/completions": "",
    "minari download D4RL/door/human-v2": "",  # the network
    "scp -r tools/env_server robot:": "tests/env/test_remote_protocol.py, on this machine",
    "ssh robot python3 -m env_server --env my_robot:make_env --name peg": "the same",
}


def other_lines(page: str) -> list[str]:
    """The lines of blocks of bash that run no program of ours, without comments."""
    text = (REPO / page).read_text().replace("\\\n", " ")
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).splitlines()
    plain = [re.sub(r"\s+# .*|^# .*", "", line).strip() for line in lines]
    return [line for line in plain if line and not re.match(RUNS_OURS, line)]


def unknown_packages(command: str) -> list[str]:
    """What a command of pip names and our requirements do not."""
    text = (REPO / "pyproject.toml").read_text()
    extras = set(re.findall(r"^(\w+) = \[$", text, re.M))
    packages = set(re.findall(r"^([\w-]+)", (REPO / "requirements.txt").read_text(), re.M))
    packages |= {"mink", "opencv-python"}  # of robosuite
    words = [w for w in shlex.split(command) if not w.startswith("-") and w != "&&"]
    names = [w for w in words if w not in ("pip", "install", "uninstall", ".")]
    own = {n: re.fullmatch(r"(?:ibrl|\.)\[(\w+)\](?: @ git\+.*)?", n) for n in names}
    known = extras | packages
    return [n for n in names if (own[n][1] if own[n] else re.split("[<>=]", n)[0]) not in known]


@pytest.mark.parametrize("page", DOCS)
def test_other_lines_are_known(page: str) -> None:
    for line in other_lines(page):
        if line.startswith("pip "):
            assert line in OTHERS or unknown_packages(line) == [], line
        else:
            assert line in OTHERS, line


def test_the_table_of_other_lines_is_up_to_date() -> None:
    assert set(OTHERS) <= {line for page in DOCS for line in other_lines(page)}


def test_there_are_commands() -> None:
    found = {page: [module_of(c) for c in commands(page)] for page in PAGES}
    assert {Path(page).stem for page, there in found.items() if there} >= {
        "README", "algorithms", "configuration", "datasets", "environments", "evaluation", "ibc",
    }  # fmt: skip
    assert len(found["docs/algorithms.md"]) >= 10 and len(found["docs/ibc.md"]) >= 13
    assert set(found["docs/ibc.md"]) >= {
        "train_rl", "train_bc", "tools.collect_oracle", "tools.particle_dimensions",
        "tools.implicit_ibrl", "tools.plot_particle", "tools.held_out_energy", "evaluate.eval",
    }  # fmt: skip
