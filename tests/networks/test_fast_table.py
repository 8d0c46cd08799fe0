"""The table of operations: rows, columns, and that a new back end is one file and one name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from common_utils import kernels
from networks import fast
from networks.fast import table
from networks.fast.cpu import module
from networks.fast.table import Kernel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fresh() -> Iterator[None]:
    """The table as other back ends find it, and as it was afterwards."""
    table.rows.cache_clear()
    yield
    table.rows.cache_clear()


def test_plain_has_every_operation_and_stands_last() -> None:
    for operation, kernels_of in table.rows().items():
        # torch.optim's own step is the plain form of one, QAgent.update_critic of the other
        if operation not in ("adam", "td_step"):
            assert kernels_of[-1][0] == "plain", operation


def test_who_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = torch.randn(4, 8), fast.Layer(torch.randn(3, 8, 5), torch.zeros(1, 3, 1))
    if kernels.isa() != "base":
        assert table.who("perceptron", x, [layer], None) == "cpu"
    assert table.who("perceptron", x.double(), [layer], None) == "plain"
    assert table.who("norm_relu", x, None, None, 0.0) == "cpu"
    monkeypatch.setattr(module, "kernels", None)
    assert table.who("norm_relu", x, None, None, 0.0) == "plain"
    assert table.find("adam", {}, []) is not None  # nothing to do is everybody's


def test_a_new_back_end_is_a_file_and_a_name(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A back end for float64, which no other kernel takes; and without the C++ module."""
    asked = []

    def takes(x: torch.Tensor, *_: object) -> bool:
        return x.dtype is torch.float64

    def norm_relu(
        x: torch.Tensor, norm: nn.LayerNorm | None, bias: torch.Tensor | None, p: float
    ) -> torch.Tensor:
        asked.append(x.shape)
        return x.clamp(min=0)

    mine = ModuleType("networks.fast.mine")
    mine.OPERATIONS = {"norm_relu": Kernel(takes, norm_relu)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "networks.fast.mine", mine)
    monkeypatch.setattr(table, "BACKENDS", ("mine", "plain"))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(fast.norm_relu(x), x.relu())
    assert torch.equal(fast.norm_relu(x.float()), x.float().relu())
    assert asked == [(3, 4)]


# Names of torch without a promise, with the reason why there is no other way.
PRIVATE = {
    "torch.ops.mkldnn._linear_pointwise": "oneDNN's float32 product, for which torch has no switch",
    "torch.ops.mkldnn._convolution_pointwise": "a convolution with a weight in oneDNN's layout",
    "torch._C._nn.mkldnn_reorder_conv2d_weight": "that weight, made once",
    "torch._C._functions.DelayedError": "what once_differentiable is made of",
    "torch._foreach_lerp_": "one call for a list of tensors; torch.optim's own means",
    "torch._foreach_add_": "the same",
    "torch._foreach_addcmul_": "the same",
    "torch._foreach_mul_": "the same",
}


def test_private_names_of_torch_are_these_alone_and_exist() -> None:
    for name in PRIVATE:
        found: object = torch
        for part in name.split(".")[1:]:
            found = getattr(found, part)
        assert callable(found), name
    files = [p.relative_to(ROOT) for p in ROOT.rglob("*.py")]
    files = [f for f in files if f.parts[0] != "tests" and not f.parts[0].startswith(".")]
    assert {f.parts[0] for f in files} > {"workspace", "mw_main", "tools", "train_rl.py"}
    used = set()
    for path in files:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                if re.fullmatch(r"torch(\.\w+)*\._[a-zA-Z]\w*(\.\w+)*", name):
                    used.add(name)
    # attributes are met part by part: keep the longest
    used = {n for n in used if not any(o.startswith(n + ".") for o in used)}
    assert used == set(PRIVATE)


def test_no_agent_names_a_kernel() -> None:
    for path in (ROOT / "rl").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{a.name}" for a in node.names]
            assert not any("networks.fast" in n or "kernels" in n for n in names), path


SILENT = """
import networks.fast.process as process
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
QAgent(1, (4,), (), 2, "", QAgentConfig(device="cpu"))
print(process.keep_freed_memory.cache_info().misses)
"""


def test_constructing_an_agent_changes_no_setting_of_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SILENT], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr
