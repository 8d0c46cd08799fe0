"""Paths mean what stands where they stand; ``~`` is the home folder everywhere."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common_utils import run_config
from common_utils.errors import run_program
from common_utils.paths import (
    REPO,
    InputFile,
    InputFiles,
    config_file,
    expand_home_in_options,
    same_input,
    split_paths,
)
from evaluate import eval as evaluation
from mw_main import train_bc_mw, train_rl_mw


@dataclass
class Data:
    # demonstrations
    path: InputFile = ""


@dataclass
class Config(run_config.RunConfig):
    data: Data = field(default_factory=Data)
    # policies
    policies: InputFiles = ""
    # a word
    note: str = ""


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, a folder of configurations and a home folder, with files in each."""
    for name in ("cwd/here.pt", "cfgs/sub/here.pt", "home/here.pt", "cfgs/sub/a+[b].pt"):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def from_file(place: Path, text: str) -> Config:
    path = place / "cfgs" / "sub" / "mine.yaml"
    path.write_text(text)
    by_load = run_config.load(Config, path)
    assert by_load == run_config.parse_args(Config, ["--config_path", str(path)])
    assert by_load == run_config.load(Config, os.path.relpath(path))
    return by_load


def test_in_a_file_paths_are_those_beside_it(place: Path) -> None:
    beside = place / "cfgs" / "sub"
    assert from_file(place, "data: {path: here.pt}").data.path == str(beside / "here.pt")
    assert from_file(place, "data.path: ../sub/here.pt").data.path == str(beside / "here.pt")
    both = from_file(place, "policies: a+[b].pt+here.pt+~/here.pt").policies
    assert both == f"{beside / 'a+[b].pt'}+{beside / 'here.pt'}+{place / 'home/here.pt'}"


def test_in_a_file_what_is_not_beside_it_may_be_in_the_working_directory(place: Path) -> None:
    touch(place / "cwd" / "only.pt")
    assert from_file(place, "data.path: only.pt").data.path == str(place / "cwd" / "only.pt")
    # released configurations name files below the repository's release/, from any folder
    assert from_file(place, "data.path: README.md").data.path == str(REPO / "README.md")


def test_on_the_command_line_paths_are_those_of_the_working_directory(place: Path) -> None:
    def parsed(*args: str) -> Config:
        return run_config.parse_args(Config, args)

    assert parsed("--data.path", "here.pt").data.path == str(place / "cwd" / "here.pt")
    assert parsed("--data.path=~/here.pt").data.path == str(place / "home" / "here.pt")
    assert parsed("--save_dir=~/run", "--note=~").save_dir == str(place / "home" / "run")
    assert parsed("--data.path", "README.md").data.path == "README.md"
    assert parsed("--policies", "no.pt+nor.pt").policies == "no.pt+nor.pt"
    (place / "home" / "c.yaml").write_text("note: ~/x\n")
    assert parsed("--config_path=~/c.yaml").note == str(place / "home" / "x")


def test_a_released_configuration_is_found_from_any_folder(place: Path) -> None:
    name = "release/cfgs/metaworld/quickstart_bc.yaml"
    assert config_file(name) == str(REPO / name)
    assert config_file("~/x.yaml") == str(place / "home" / "x.yaml")
    # a file of one's own comes first, and a name that nobody has stays as it is
    touch(place / "cwd" / name)
    assert config_file(name) == name
    assert config_file("release/cfgs/none.yaml") == "release/cfgs/none.yaml"
    with pytest.raises(run_config.ConfigError, match="cannot read 'release/cfgs/none.yaml'"):
        run_config.parse_args(Config, ["--config_path", "release/cfgs/none.yaml"])


def test_what_is_written_down_is_read_again_from_anywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = run_config.parse_args(Config, ["--data.path", "here.pt", "--policies", "here.pt"])
    run_config.dump(cfg, place / "run" / "cfg.yaml")
    monkeypatch.chdir("/")
    assert run_config.load(Config, place / "run" / "cfg.yaml") == cfg


def test_released_names_are_found_from_any_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mw_main.names.REPO", place)
    policy = "release/model/metaworld/pathAssembly_num_data3_num_epoch2_seed1/model1.pt"
    data = "release/data/metaworld/Assembly_frame_stack_1_96x96_end_on_success/dataset.hdf5"
    cfg = run_config.parse_args(train_rl_mw.MainConfig, ["--bc_policy", "assembly"])
    assert (cfg.bc_policy, cfg.preload_datapath) == (policy, data)  # not made yet
    touch(place / policy)
    touch(place / data)
    cfg = run_config.parse_args(train_rl_mw.MainConfig, ["--bc_policy", "assembly"])
    assert (cfg.bc_policy, cfg.preload_datapath) == (str(place / policy), str(place / data))
    bc = run_config.parse_args(train_bc_mw.MainConfig, ["--dataset.path", "Assembly"])
    assert train_bc_mw.to_train_bc(bc).dataset.path == str(place / data)


def test_home_in_the_options_of_every_program(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = place / "home"
    given = ["--a.b=~/x", "~/y", "~", "--c", "a~/b", "--d=~"]
    assert expand_home_in_options(given) == [
        f"--a.b={home}/x", f"{home}/y", str(home), "--c", "a~/b", f"--d={home}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["eval", "--weight=~/no.pt"])
    assert run_program(evaluation.main) == 2
    assert f"no file '{home}/no.pt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--save_dir=~nobody/run"], "save_dir: '~nobody/run', expected a path without '~nobody'"),
        (["--data.path", "~nobody"], "data.path: '~nobody', expected a path without '~nobody'"),
        (["--policies", "here.pt+~no/b.pt"], "policies: '~no/b.pt', expected a path without '~no'"),
        (["--config_path", "~nobody/c.yaml"], "config_path: '~nobody/c.yaml', expected a path"),
    ],
)
def test_the_home_of_somebody_else_is_no_folders_name(
    place: Path, args: list[str], said: str
) -> None:
    with pytest.raises(run_config.ConfigError) as refusal:
        run_config.parse_args(Config, args)
    assert str(refusal.value).startswith(said)


def test_nor_is_it_in_a_file(place: Path) -> None:
    path = place / "cfgs" / "mine.yaml"
    path.write_text("save_dir: ~nobody/run\n")
    with pytest.raises(run_config.ConfigError, match="save_dir: '~nobody/run'"):
        run_config.parse_args(Config, ["--config_path", str(path)])


def test_a_program_names_the_option_whose_home_is_not_known(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (["--weight=~nobody/no.pt"], ["--weight", "~nobody/no.pt"]):
        monkeypatch.setattr(sys, "argv", ["eval", *args])
        assert run_program(evaluation.main) == 2
        said = "error: --weight: '~nobody/no.pt', expected a path without '~nobody': only '~' "
        assert capsys.readouterr().err.startswith(said)
    monkeypatch.setattr(sys, "argv", ["eval", "--weight=~/no.pt"])
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # a user without an entry, in a container
    assert run_program(evaluation.main) == 2
    assert "--weight: '~/no.pt', expected a path without '~'" in capsys.readouterr().err


def test_a_plus_in_the_name_of_a_file(place: Path) -> None:
    a, b = str(place / "cfgs/sub/a+[b].pt"), str(place / "cwd/here.pt")
    assert split_paths(a) == [a]
    assert split_paths(f"{a}+{b}") == [a, b]
    assert split_paths(f"{b}+{a}+{b}") == [b, a, b]
    assert split_paths("no.pt+nor.pt") == ["no.pt", "nor.pt"]


def test_the_same_input(place: Path) -> None:
    here, there = str(place / "cwd/here.pt"), str(place / "home/here.pt")
    (place / "link.pt").symlink_to(here)
    assert same_input(here, str(place / "link.pt"))
    assert not same_input(here, there)  # both exist, and are two
    assert same_input("/gone/here.pt", there) and not same_input("/gone/other.pt", there)
    assert not same_input(here, "/gone/here.pt")
    (place / "cwd/here.pt").unlink()  # a run that goes on may hold its own copy
    assert same_input(here, "here.pt") and same_input(here, "../cwd/here.pt")
    (place / "data").mkdir()
    (place / "link").symlink_to(place / "data")  # a dataset may be a folder
    assert same_input(str(place / "data"), str(place / "link"))
    assert same_input(f"{here}+{there}", f"here.pt+{there}")
    assert not same_input(here, "other.pt")
