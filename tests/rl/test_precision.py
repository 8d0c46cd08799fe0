"""``q_agent.precision``: float32 is today's numbers, bfloat16 touches encoders alone."""

from __future__ import annotations

import pytest
import torch

from networks.precision import products
from rl.agent import RunFacts
from rl.q_agent_config import QAgentConfig
from tests.rl.releases import Small, small

PIXELS = "robomimic_rl/can_ibrl"


@torch.no_grad()
def features(it: Small) -> dict[str, torch.Tensor]:
    return it.agent.features(it.batch.obs, augment=False)


def test_bfloat16_rounds_what_encoders_compute() -> None:
    exact, rounded = features(small(PIXELS)), features(small(PIXELS, precision="bfloat16"))
    assert rounded["feat"].dtype == torch.float32
    error = (rounded["feat"] - exact["feat"]).abs().max() / exact["feat"].abs().max()
    assert 1e-4 < error.item() < 0.05
    assert torch.equal(rounded["prop"], exact["prop"])


def test_weights_and_gradients_stay_float32() -> None:
    it = small(PIXELS, precision="bfloat16")
    before = {k: v.clone() for k, v in it.agent.state_dict().items()}
    metrics = it.agent.update(it.batch, 0.1, update_actor=True)
    assert all(v.isfinite() and v.dtype == torch.float32 for v in metrics.values())
    for name, p in it.agent.named_parameters():
        assert p.dtype == torch.float32 and (p.grad is None or p.grad.dtype == torch.float32)
        assert p.isfinite().all(), name
    moved = {k.split(".")[0] for k, v in it.agent.state_dict().items() if (v != before[k]).any()}
    assert {"encoder", "critic", "actor"} <= moved


def test_tf32_on_a_cpu_is_float32() -> None:
    a, b = small("small_state"), small("small_state", precision="tf32")
    for it in (a, b):
        torch.manual_seed(0)  # of dropout
        it.agent.update(it.batch, 0.1, update_actor=True)
    for mine, theirs in zip(a.agent.parameters(), b.agent.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("precision, allowed", [("float32", False), ("tf32", True)])
def test_settings_of_a_gpu_hold_inside_alone(precision: str, allowed: bool) -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    with products(precision, torch.device("cuda")):  # type: ignore[arg-type]
        assert (matmul.allow_tf32, conv.allow_tf32) == (allowed, allowed)
    assert (matmul.allow_tf32, conv.allow_tf32) == before


def test_bfloat16_without_an_encoder_is_refused() -> None:
    facts = RunFacts(use_state=True, demonstrations=True, pretrained=False, add_bc_loss=False)
    with pytest.raises(ValueError, match="precision: bfloat16 is for encoders"):
        QAgentConfig(precision="bfloat16").check(facts)
