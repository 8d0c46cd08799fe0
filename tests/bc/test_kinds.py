"""Of the policies' fields only the chosen kind's exist: help, cfg.yaml, options, old files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyrallis.utils import flatten

import train_bc
from bc.dataset import DatasetConfig
from bc.registry import POLICIES
from common_utils import run_config
from common_utils.config_kinds import every_kind
from common_utils.run_config import ConfigError
from mw_main import train_bc_mw
from workspace.build_policy import build_policy

# written by the program of which every cfg.yaml held the fields of all kinds
OLD = Path(__file__).parent / "fixtures" / "old_cfg"
OLD_KINDS = sorted(path.stem for path in OLD.glob("*.yaml"))  # a newer kind has no old file
SECTIONS = {kind: row.section for kind, row in POLICIES.items()}
CHOICE = {kind: ["--policy_type", kind] for kind in POLICIES}
CHOICE["state"] += ["--dataset.use_state", "1"]


def old_tree(kind: str) -> dict[str, Any]:
    return yaml.safe_load((OLD / f"{kind}.yaml").read_text())


def shown(capsys: pytest.CaptureFixture[str], config_class: Any, *args: str) -> set[str]:
    """The options that --help shows."""
    with pytest.raises(SystemExit):
        run_config.parse(config_class, [*args, "--help"])
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0][2:] for line in lines if line.startswith("  --")}


@pytest.mark.parametrize("kind", POLICIES)
def test_help_shows_the_fields_of_the_kind_alone(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = shown(capsys, train_bc.MainConfig, *CHOICE[kind])
    sections = {name.partition(".")[0] for name in options if "." in name}
    assert sections == {"dataset", "env", SECTIONS[kind]}
    assert {"policy_type", "lr", "config_path"} <= options


def test_help_follows_what_is_given_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = train_bc.MainConfig
    assert "policy.use_prop" in shown(capsys, main)
    assert "state_policy.dropout" in shown(capsys, main, "--dataset.use_state", "1")
    (tmp_path / "mdn.yaml").write_text("policy_type: mdn\n")
    file = ["--config_path", str(tmp_path / "mdn.yaml")]
    assert "mdn.greedy_eval" in shown(capsys, main, *file)
    assert "ebm.scalar_box" in shown(capsys, main, *file, "--policy_type", "ebm")
    assert "policy.feature_dim" in shown(capsys, train_bc_mw.MainConfig)
    states = shown(capsys, train_bc_mw.MainConfig, "--dataset.use_state")
    assert "state_policy.dropout" in states and "policy.feature_dim" not in states
    with pytest.raises(ConfigError, match="--nonsense: unknown option"):
        run_config.parse(main, ["--help", "--nonsense", "1"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--policy_type", "mse", "--ebm.net.width", "8"],
            "--ebm.net.width: an option of policy_type ebm, but the chosen policy_type is mse "
            r"\(--policy_type mse --help lists its options\)",
        ),
        # auto chooses as well
        (["--state_policy.dropout", "0"], "of policy_type state, but .* is pixel"),
        (["--dataset.use_state", "1", "--policy.aug_pad", "0"], "of policy_type pixel.* is state"),
        (["--policy_type", "MSE"], "policy_type: expected one of auto, .*pixel, metaworld"),
        (["--policy_type", "[mse]"], "policy_type: expected one of auto"),
        (["--policy_type", "mse", "--mse.nett.width", "8"], "mse.net.width"),
    ],
)
def test_options_of_other_kinds_are_refused_by_name(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config.parse_args(train_bc.MainConfig, args)


def test_metaworlds_script_refuses_them_too() -> None:
    with pytest.raises(ConfigError, match=r"of dataset.use_state 1, but .* is 0"):
        run_config.parse_args(train_bc_mw.MainConfig, ["--state_policy.dropout", "0"])


@pytest.mark.parametrize("kind", OLD_KINDS)
def test_an_old_file_loads_and_is_written_with_its_own_fields(kind: str, tmp_path: Path) -> None:
    tree, main = old_tree(kind), train_bc.MainConfig
    assert {SECTIONS[old] for old in OLD_KINDS} <= set(tree)
    cfg = run_config.load(main, OLD / f"{kind}.yaml")
    assert cfg.kind == kind and type(cfg) is every_kind(main)[kind]
    own = {k: v for k, v in tree.items() if k not in set(SECTIONS.values()) - {SECTIONS[kind]}}
    now, old = run_config.to_dict(cfg), flatten(own)
    known = {k: v for k, v in flatten(now).items() if k in old}  # others are newer than the file
    assert known == old, "nothing that a run reads has changed"
    assert set(now) & set(SECTIONS.values()) == {SECTIONS[kind]}
    run_config.dump(cfg, tmp_path / "cfg.yaml")
    again = run_config.load(main, tmp_path / "cfg.yaml")
    assert run_config.diff(cfg, again) == []  # so a run of the old program is resumed
    option = ["--config_path", str(OLD / f"{kind}.yaml"), "--lr", "0.5"]
    assert run_config.diff(cfg, run_config.parse_args(main, option)) == [f"lr: {cfg.lr} -> 0.5"]


@pytest.mark.parametrize("kind", OLD_KINDS)
def test_weights_beside_an_old_file_load(kind: str, tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_bytes((OLD / f"{kind}.yaml").read_bytes())
    policy = build_policy(run_config.load(train_bc.MainConfig, tmp_path / "cfg.yaml"))
    torch.save(policy.state_dict(), tmp_path / "model0.pt")
    loaded, cfg = train_bc.load_policy(tmp_path / "model0.pt", "cpu")
    assert type(loaded) is type(policy) and cfg.kind == kind
    for key, value in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_another_kind_is_no_resumption_of_a_run(tmp_path: Path) -> None:
    a, b = (run_config.load(train_bc.MainConfig, OLD / f"{kind}.yaml") for kind in ("mse", "mdn"))
    changed = run_config.diff(a, b)
    assert "policy_type: mse -> mdn" in changed
    assert any(line.startswith("mdn.net.width: (absent)") for line in changed)


def test_making_one_makes_the_chosen_kinds() -> None:
    main = train_bc.MainConfig
    assert main().kind == "pixel" and main(policy_type="mse").kind == "mse"
    state = main(dataset=DatasetConfig(use_state=1))
    assert state.kind == "state" and state.own_section.dropout == 0.5
