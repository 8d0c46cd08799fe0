"""What of a configuration's refusal is good enough."""

from __future__ import annotations

import pytest

from common_utils.errors import UserError
from mw_main import train_bc_mw
from tests.fuzz.configs import is_named, judge


@pytest.mark.parametrize(
    ("text", "is_fault"),
    [
        ("c.yaml: num_epoch: 0, expected at least 1", False),
        ("batch_size: 9, expected less; lower it", False),
        ("no field is named", True),
        ("num_epoch: 3\n" * 4, True),
        ("num_epochs: 3, expected less", True),
    ],
)
def test_a_message_that_does_not_help_is_a_fault(text: str, is_fault: bool) -> None:
    assert judge(UserError(text), "train_bc").verdict.is_fault is is_fault


def test_names_are_words() -> None:
    assert is_named("q_agent.lr", "c.yaml: q_agent.lr: 0, expected") and is_named("lr", "lower lr")
    assert not is_named("lr", "q_agent.lr: 0") and not is_named("lr", "lr_schedule: x")


def test_metaworlds_script_speaks_of_its_own_fields() -> None:
    with pytest.raises(UserError, match=r"^policy.hidden_dim: 16384, lower batchsize$"):
        with train_bc_mw.own_names():
            raise UserError("mw_policy.hidden_dim: 16384, lower batch_size")
