"""The commands that messages name are there and take their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from common_utils.made_by import (
    AGENTS,
    DEMONSTRATIONS,
    RAW_ROBOMIMIC,
    WEIGHTS,
    Row,
    how_to_make,
    how_to_train,
)
from env.d4rl import TASKS
from tests.docs.commands import REPO, check_command

CFGS = REPO / "release" / "cfgs"


def check(command: str) -> None:
    """The program exists and takes the options, with a task in the place of TASK."""
    metaworld = "generate_metaworld_dataset" in command
    check_command(re.sub(r"\bTASK\b", "Assembly" if metaworld else "Lift", command))


def filled_in(rows: tuple[Row, ...], row: Row) -> str:
    """The row's command for its example, which no earlier row takes."""
    assert re.search(row.pattern, row.example), row
    command = how_to_make(row.example, rows)
    assert str(Path(row.example).parent) in command
    alone = how_to_make(row.example, [row])
    assert command == alone, "an earlier row takes its example"
    return command


@pytest.mark.parametrize("row", DEMONSTRATIONS, ids=lambda row: row.pattern or "any")
def test_demonstrations(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    command = filled_in(DEMONSTRATIONS, row).removesuffix(" (writes dataset.hdf5 there)")
    for part in command.split("; "):
        if part == RAW_ROBOMIMIC:
            part = part[part.index("python") :].rstrip("'")
        if part.startswith("minari download D4RL/"):
            domain, kind = part.removeprefix("minari download D4RL/").removesuffix("-v2").split("/")
            assert f"{domain}-{kind}-v0" in TASKS
        else:
            check(part)


@pytest.mark.parametrize("row", AGENTS, ids=lambda row: row.pattern or "any")
def test_agents(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    check(filled_in(AGENTS, row))


@pytest.mark.parametrize("row", WEIGHTS, ids=lambda row: row.pattern or "any")
def test_weights(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    check(filled_in(WEIGHTS, row))


def test_every_path_of_a_released_configuration_has_its_own_row() -> None:
    last = {how_to_make("x/y/d.h5").split(" x/y")[0], how_to_train("x/y/m.pt").split(" x/y")[0]}
    found = set()
    for file in CFGS.rglob("*.yaml"):
        for key, path in re.findall(
            r"^ *(\w+): (release/(?:data|model)/\S+)$", file.read_text(), re.M
        ):
            data = path.startswith("release/data")
            command = how_to_make(path) if data else how_to_train(path)
            assert not command.startswith(tuple(last)) and "TASK" not in command, (file, key)
            found.add(path)
    assert len(found) > 15


def test_configurations_say_the_same_in_their_first_lines() -> None:
    found = 0
    for file in sorted((CFGS / "robomimic_bc").glob("*.yaml")):
        text = file.read_text()
        lines = " ".join(x.lstrip("# ").rstrip("\\") for x in text.splitlines() if x[:1] == "#")
        if command := re.search(r"python -m tools\.generate_demos .*", lines):
            data = yaml.safe_load(text)["dataset"]["path"]
            ours = how_to_make(data).split("; ")[0]
            assert shlex.split(command[0]) == shlex.split(ours), file
            found += 1
    assert found >= 7


def test_every_policy_of_robomimic_has_its_command() -> None:
    for file in (CFGS / "robomimic_bc").glob("*.yaml"):
        command = how_to_train(f"somewhere/robomimic/{file.stem}/model0.pt")
        assert f"--config_path {file.relative_to(REPO)}" in command


def test_folders_are_quoted() -> None:
    assert "--save_dir 'my runs/bc'" in how_to_train("my runs/bc/model0.pt")
    assert "--output_path FOLDER" in how_to_make("")
    command = how_to_make("x/robomimic/can/processed_data48.hdf5")
    assert "--task PickPlaceCan" in command and "--obs_size 48" in command
