from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

import train_bc
from common_utils.device import resolve_device
from common_utils.run_config import (
    ConfigError,
    Flag,
    RunConfig,
    changes,
    describe,
    diff,
    dump,
    help_text,
    load,
    parse,
    parse_args,
    to_dict,
)

ROOT = Path(__file__).parents[2]


@dataclass
class Inner:
    depth: int = 3  # blocks
    act: Literal["relu", "gelu"] = "relu"  # nonlinearity


@dataclass
class Agent:
    lr: float = 1e-4  # learning rate of all three optimisers
    inner: Inner = field(default_factory=Inner)
    # probability of the greedy choice
    eps: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise ValueError(f"eps: expected a probability, got {self.eps}")


@dataclass
class Main(RunConfig):
    seed: int = 1  # of everything random
    task: str = "Lift"  # environment
    resume: Flag = 0  # go on where the run stopped
    agent: Agent = field(default_factory=lambda: Agent(inner=Inner(depth=7)))
    cameras: list[str] = field(default_factory=lambda: ["a"])  # image keys
    size: tuple[int, int] = (96, 96)  # height, width
    limit: int | None = None  # cap, or null
    min_std: float = 0.1  # lower end
    max_std: float = 1.0  # upper end

    def __post_init__(self) -> None:
        self.min_std = min(self.min_std, self.max_std)

    def validate(self) -> None:
        if self.resume and not self.save_dir:
            raise ValueError("resume: needs save_dir")


def _yaml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "in.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_and_derived_names() -> None:
    cfg = parse_args(Main, ["--save_dir", "exps/proj/can_ibrl_seed3_b"])
    assert (cfg.wb_project, cfg.run_name, cfg.group) == ("proj", "can_ibrl_seed3_b", "can_ibrl_b")
    assert cfg.cfg_path == "exps/proj/can_ibrl_seed3_b/cfg.yaml"
    assert cfg.log_path == "exps/proj/can_ibrl_seed3_b/train.log"
    assert cfg.agent.inner.depth == 7  # the parent's default for the section


def test_file_then_dotted_overrides(tmp_path: Path) -> None:
    path = _yaml(tmp_path, "agent:\n  lr: 1e-4\n  inner: {depth: 2}\nseed: 5\nsize: [64, 32]\n")
    cfg = parse_args(
        Main, ["--config_path", path, "--agent.lr", "3e-4", "--agent.inner.act=gelu", "--seed=2e1"]
    )
    assert cfg.agent == Agent(lr=3e-4, inner=Inner(depth=2, act="gelu"))
    assert (cfg.seed, cfg.size) == (20, (64, 32))
    assert isinstance(cfg.seed, int)


def test_dotted_keys_in_a_file(tmp_path: Path) -> None:
    assert load(Main, _yaml(tmp_path, "agent.inner.depth: 9\n")).agent.inner.depth == 9


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1", 1), ("true", 1), ("false", 0)])
def test_switches(text: str, value: int) -> None:
    cfg = parse_args(Main, ["--use_wb", text])
    assert cfg.use_wb == value
    assert type(cfg.use_wb) is int


def test_bare_switch_and_negative_numbers_and_strings_as_typed() -> None:
    cfg = parse_args(Main, ["--resume", "--save_dir", "123", "--agent.lr", "-1e-3", "--task", "no"])
    assert (cfg.resume, cfg.save_dir, cfg.agent.lr, cfg.task) == (1, "123", -1e-3, "no")
    assert parse_args(Main, ["--limit", "4", "--cameras", "[a, b]"]).cameras == ["a", "b"]
    assert parse_args(Main, ["--limit", "null"]).limit is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--agent.lrr", "1"], r"--agent\.lrr: unknown option; did you mean agent\.lr\?"),
        (["--depth", "1"], r"did you mean agent\.inner\.depth"),
        (["--agent", "1"], "--agent: unknown option"),
        (["--seed", "1.5"], "seed: expected an integer, got 1.5"),
        (["--seed", "true"], "seed: expected an integer, got True"),
        (["--seed", "one"], "seed: expected an integer, got 'one'"),
        (["--agent.lr", "fast"], "agent.lr: expected a number, got 'fast'"),
        (["--use_wb", "2"], "use_wb: expected 0 or 1, got 2"),
        (["--use_wb", "1.0"], "use_wb: expected 0 or 1, got 1.0"),
        (["--agent.inner.act", "tanh"], "agent.inner.act: expected one of relu, gelu, got 'tanh'"),
        (["--cameras", "a"], "cameras: expected a list of a string"),
        (["--size", "[1]"], "size: expected a list of an integer"),
        (["--seed"], "--seed: a value is missing"),
        (["--seed", "--use_wb"], "--seed: a value is missing"),
        (["stray"], "'stray': expected an option"),
        (["--agent.eps", "1.5"], "agent.eps: expected a probability, got 1.5"),
        (["--resume", "1"], "resume: needs save_dir"),
        (["--config_path", "nowhere.yaml"], "config_path: cannot read 'nowhere.yaml'"),
        (["--se", "3"], "--se: unknown option"),  # no abbreviations
    ],
)
def test_refusals_on_the_command_line(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_args(Main, args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent: {lrr: 1}", r"in\.yaml: agent\.lrr: unknown field; did you mean agent\.lr\?"),
        ("agent: 3", "agent: is a section, expected fields such as agent.lr, got 3"),
        ("agent:", "agent: is a section"),
        ("task: 5", "task: expected a string, got 5"),
        ("task:", "task: expected a string, got None"),
        (r'save_dir: "a\0b"', r"save_dir: expected a string without the character '\\x00', got"),
        (r'task: "a\ud800b"', r"task: expected a string without the character '\\ud800', got"),
        (r'cameras: ["a\0b"]', r"cameras: expected a list of a string such as .* '\\x00', got"),
        ("seed: '5x'", "seed: expected an integer, got '5x'"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice"),
        ("agent: 1\nagent.lr: 2", "both as a value and as a section"),
        ("- 1", "expected 'field: value' lines"),
        ("a: [", "not valid YAML"),
        ("x: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_refusals_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(Main, _yaml(tmp_path, text))


def test_the_right_source_is_blamed(tmp_path: Path) -> None:
    path = _yaml(tmp_path, "seed: 3\n")
    with pytest.raises(ConfigError, match="^command line: agent.lr"):
        parse_args(Main, ["--config_path", path, "--agent.lr", "x"])


def test_dump_and_load_give_the_same_values(tmp_path: Path) -> None:
    cfg = parse_args(Main, ["--max_std", "0.05", "--agent.lr", "1e-5", "--size", "[1, 2]"])
    assert cfg.min_std == 0.05
    dump(cfg, tmp_path / "cfg.yaml")
    again = load(Main, tmp_path / "cfg.yaml")
    assert again == cfg
    assert diff(cfg, again) == []
    assert yaml.safe_load((tmp_path / "cfg.yaml").read_text())["agent"]["inner"]["depth"] == 7


@dataclass
class Inflating(RunConfig):
    warm_up: int = 40  # grows at every load

    def __post_init__(self) -> None:
        self.warm_up += 10


def test_dump_refuses_a_config_that_changes_when_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="warm_up: 50 -> 60"):
        dump(Inflating(), tmp_path / "cfg.yaml")
    assert not (tmp_path / "cfg.yaml").exists()


def test_diff_names_fields() -> None:
    a, b = Main(), Main(seed=2, agent=Agent(lr=1.0), task="")
    assert diff(a, b) == [
        "seed: 1 -> 2",
        'task: Lift -> ""',
        "agent.lr: 0.0001 -> 1.0",
        "agent.inner.depth: 7 -> 3",
    ]


def test_help_shows_every_field_with_its_documentation(capsys: pytest.CaptureFixture) -> None:
    rows = {name: (default, doc) for name, _, default, doc in describe(Main)}
    assert rows["agent.lr"] == (1e-4, "learning rate of all three optimisers")
    assert rows["agent.eps"] == (1.0, "probability of the greedy choice")
    assert rows["use_wb"][1].startswith("1: also log")
    assert rows["agent.inner.depth"] == (7, "blocks")
    assert all(doc for _, doc in rows.values())
    with pytest.raises(SystemExit) as stop:
        parse(Main, ["--seed", "nonsense", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.rstrip() == help_text(Main)
    assert "--agent.inner.act  (one of relu, gelu; default: relu)" in help_text(Main)


def test_exit_status_2_and_no_traceback() -> None:
    program = (
        "import sys\n"
        "from common_utils.errors import run_program\n"
        "from common_utils.run_config import RunConfig, parse\n"
        "sys.exit(run_program(lambda: print(parse(RunConfig).save_dir)))\n"
    )
    bad = subprocess.run(
        [sys.executable, "-c", program, "--save_dri", "x"], cwd=ROOT, capture_output=True, text=True
    )
    assert bad.returncode == 2
    assert bad.stderr == "error: --save_dri: unknown option; did you mean save_dir?\n"


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    want = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == want
    with pytest.raises(ConfigError, match=r"q_agent\.device: expected auto, cpu, cuda or cuda:N"):
        resolve_device("gpu", "q_agent.device")
    with pytest.raises(ConfigError, match="'cuda:99' was asked for"):
        resolve_device("cuda:99")


def test_changes_are_those_from_the_file_and_the_defaults(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("seed: 7\nbatch_size: 64\nweight_decay: 5e-4\n")
    config = parse_args(
        train_bc.MainConfig, ["--config_path", str(preset), "--batch_size", "32", "--lr", "0.5"]
    )
    assert config.preset == str(preset)
    assert changes(config) == ["batch_size: 64 -> 32", "lr: 0.0001 -> 0.5"]
    # without the file, everything that is not a default
    preset.unlink()
    changed = {"seed: 1 -> 7", "batch_size: 256 -> 32", "lr: 0.0001 -> 0.5"}
    assert set(changes(config)) == changed | {"weight_decay: 0 -> 0.0005"}
    assert changes(parse_args(train_bc.MainConfig, ["--seed", "2"])) == ["seed: 1 -> 2"]
    # what a run saves does not depend on how its values were given
    assert "preset" not in to_dict(config)
