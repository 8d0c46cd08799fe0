"""Small functions shared by agents, policies and trainers: noise, schedules, seeds, updates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from common_utils import rows
from common_utils.seeding import set_all_seeds as set_all_seeds  # part of this interface
from common_utils.stacking import newest_first

_ACTION_EPS = 1e-6
_SCHEDULE = re.compile(r"(linear|step_linear)\((.+)\)")
_SCHEDULE_ARGS = {"linear": 3, "step_linear": 5}


def _ramp(start: float, end: float, step: float, duration: float) -> float:
    mix = min(max(step / duration, 0.0), 1.0)
    return (1.0 - mix) * start + mix * end


def schedule(schdl: str, step: float) -> float:
    """Value at ``step`` of a schedule written as text.

    ``"0.3"`` constant; ``"linear(start,end,duration)"``;
    ``"step_linear(start,mid,duration1,end,duration2)"`` two ramps, one after the other.
    Raises ValueError for any other text.
    """
    expected = "expected a number, linear(a,b,steps) or step_linear(a,b,steps1,c,steps2)"
    try:
        return float(schdl)
    except ValueError:
        pass
    match = _SCHEDULE.fullmatch(schdl.replace(" ", ""))
    try:
        args = [float(g) for g in match.group(2).split(",")] if match else []
    except ValueError:
        args = []
    if match is None or len(args) != _SCHEDULE_ARGS[match.group(1)] or min(args[2::2]) <= 0:
        raise ValueError(f"schedule '{schdl}': {expected}, with durations above 0")
    if match.group(1) == "linear" or step <= args[2]:
        return _ramp(args[0], args[1], step, args[2])
    return _ramp(args[1], args[3], step - args[2], args[4])


def clip_action_norm(action: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Shorten the first 6 dimensions (arm motion) to ``max_norm``; the gripper is left unchanged.

    action float [..., 7]. Raises ValueError for another action dimension or max_norm <= 0.
    """
    if action.size(-1) != 7 or max_norm <= 0:
        raise ValueError(
            f"clip_action_norm: needs 7-dim actions and max_norm > 0, got action dimension "
            f"{action.size(-1)} and max_norm {max_norm}"
        )
    arm, gripper = action[..., :6], action[..., 6:]
    norm = arm.norm(dim=-1, keepdim=True)
    # an all-zero arm motion has no direction: leave it zero instead of dividing by zero
    arm = arm / norm.clamp(min=1e-12) * norm.clamp(max=max_norm)
    return torch.cat([arm, gripper], dim=-1)


class TruncatedNormal:
    """Normal around an action in [-1, 1], whose samples are clamped to that range.

    The clamp is straight-through: the gradient of a sample w.r.t. ``loc`` is one everywhere
    (only the optional action-norm clip changes it).

    loc float [..., A]; std a float or a tensor that broadcasts to loc; max_action_norm > 0
    limits the norm of the first 6 dimensions of a sample.
    """

    def __init__(
        self, loc: torch.Tensor, std: float | torch.Tensor, max_action_norm: float = -1
    ) -> None:
        self.loc = loc
        self.std = std
        self.max_action_norm = max_action_norm

    @property
    def mean(self) -> torch.Tensor:
        """The action without noise, [..., A]."""
        return self.loc

    @property
    def scale(self) -> torch.Tensor:
        """Standard deviation, [..., A]."""
        return torch.ones_like(self.loc) * self.std

    def sample(
        self,
        clip: float | None = None,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """loc + noise, [..., A]; ``clip`` limits the noise itself to [-clip, clip].

        noise: standard normal numbers [..., A], instead of drawing.
        """
        if noise is None:
            loc = self.loc
            normal = partial(torch.randn, generator=generator, dtype=loc.dtype, device=loc.device)
            noise = rows.drawn(normal, loc.shape)
        noise = noise * self.std
        if clip is not None:
            noise = noise.clamp(-clip, clip)
        x = self.loc + noise
        x = x - x.detach() + x.detach().clamp(-1.0 + _ACTION_EPS, 1.0 - _ACTION_EPS)
        if self.max_action_norm > 0:
            x = clip_action_norm(x, self.max_action_norm)
        return x


def concat_obs(idx: int, obses: Sequence[torch.Tensor], stack: int) -> torch.Tensor:
    """[x_idx, x_{idx-1}, ..., x_{idx-stack+1}] along axis 0, zeros before the first step."""
    if stack < 1 or not 0 <= idx < len(obses):
        raise ValueError(
            f"concat_obs: idx {idx} must be in [0, {len(obses)}) and stack {stack} at least 1"
        )
    if stack == 1:
        return obses[idx]
    return torch.cat(newest_first(obses, idx, stack, torch.zeros_like(obses[idx])))


def unstack_obs(stacked: torch.Tensor, stack: int) -> torch.Tensor:
    """Stacks [B, stack * C, ...], newest first -> [B, stack, C, ...], oldest first."""
    if stacked.dim() < 2 or stack < 1 or stacked.size(1) % stack:
        raise ValueError(f"stacks must be [B, {stack} * C, ...], got {list(stacked.shape)}")
    return stacked.unflatten(1, (stack, -1)).flip(1)


def resize_images(x: torch.Tensor, size: int) -> torch.Tensor:
    """Square bicubic, anti-aliased resize of [C, H, W] or [B, C, H, W]; dtype is kept.

    uint8 goes through float and is rounded once, at the end (torch's own uint8 resize clamps
    between its two passes, and differs from the original by up to 15 of 255).
    """
    if x.shape[-2:] == (size, size):
        return x
    batched = (x if x.dim() == 4 else x.unsqueeze(0)).to(
        x.dtype if x.is_floating_point() else torch.float32
    )
    y = F.interpolate(batched, (size, size), mode="bicubic", align_corners=False, antialias=True)
    if x.dtype == torch.uint8:
        y = y.clamp_(0, 255).round_().to(torch.uint8)
    return y if x.dim() == 4 else y.squeeze(0)


def require_key(obs: dict[str, torch.Tensor], key: str, who: str) -> torch.Tensor:
    """obs[key], or a KeyError that says who needed it and what the observation holds."""
    if key not in obs:
        raise KeyError(f"{who} needs obs['{key}'], got {sorted(obs)}")
    return obs[key]


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode; afterwards those that were training return to train mode."""
    training = [m for m in modules if m.training]
    for m in training:
        m.eval()
    try:
        yield
    finally:
        for m in training:
            m.train()


@contextmanager
def frozen(params: Sequence[torch.Tensor]) -> Iterator[None]:
    """No gradients for these parameters inside the block.

    In a graph this does nothing: ``torch.autograd.grad`` names the parameters there.
    """
    if torch.compiler.is_compiling():
        yield
        return
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)


def orth_weight_init(m: nn.Module) -> None:
    """For ``module.apply``: orthogonal Linear (gain 1) and Conv2d (gain sqrt 2), biases zero."""
    if isinstance(m, nn.Linear):
        nn.init.orthogonal_(m.weight)
    elif isinstance(m, nn.Conv2d):
        nn.init.orthogonal_(m.weight, math.sqrt(2.0))
    else:
        return
    if m.bias is not None:
        nn.init.zeros_(m.bias)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
