"""None and null addresses are TypeErrors in every C++ binding; they ended the interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common_utils import ebm_kernels, kernels, osc, rela

REPO = Path(__file__).resolve().parents[2]

# in a process of its own: what it looks for kills
NONE_EVERYWHERE = """
import importlib, inspect
count = 0

def refused(what, call, *args):
    global count
    try:
        call(*args)
    except TypeError:
        count += 1
    else:
        raise SystemExit(f"{what}{args} was taken")

for module in ("rela", "kernels", "ebm_kernels", "osc"):
    module = importlib.import_module(f"common_utils.{module}")
    for name, value in vars(module).items():
        print(module.__name__, name, flush=True)
        if inspect.isclass(value):
            refused(name, value, *[None] * 12)
            for key, member in vars(value).items():
                print(key, flush=True)
                if key in ("__doc__", "__module__", "__new__"):
                    continue
                if isinstance(member, property):
                    refused(f"{name}.{key}", member.fget, None)
                elif callable(member):
                    for number in range(1, 14):
                        refused(f"{name}.{key}", member, *[None] * number)
        elif callable(value) and not name.startswith("_"):
            for number in range(1, 14):
                refused(name, value, *[None] * number)

from common_utils import kernels, rela
one = rela.SingleStepTransitionReplay(1, 1, 10, 1)
for what, call, argument in (
    ("add", one.add, None), ("JointSampler", rela.JointSampler, [None]),
    ("JointSampler", rela.JointSampler, [one, None]),
    ("JointSampler", rela.JointSampler, [None] * 50),
    ("sample", rela.JointSampler([one]).sample, [None]),
):
    print(what, flush=True)
    refused(what, call, argument)
try:
    kernels.adam([None], kernels.AdamRule(lr=1, beta1=0, beta2=0, eps=1), threads=1)
except TypeError:
    print("refused", count)
"""


def test_none_is_a_type_error_everywhere() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NONE_EVERYWHERE],
        cwd=REPO,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.returncode} {done.stdout[-300:]}{done.stderr[-500:]}"
    said, count = done.stdout.splitlines()[-1].split()
    assert said == "refused" and int(count) > 500


def test_the_message_says_which() -> None:
    replay = rela.SingleStepTransitionReplay(1, 1, 10, 1)
    with pytest.raises(TypeError, match=r"replays\[1\] is None, expected a SingleStep"):
        rela.JointSampler([replay, None])


ROOM = torch.zeros(4096)
AT = ROOM.data_ptr()
NORM = dict(
    groups=1, rows=4, width=8, x=AT, bias=AT, bias_per_unit=False, gamma=AT, beta=AT, eps=1e-5,
    keep=0, scale=1.0, seed=0, stats=AT,
)  # fmt: skip
NORM_GRAD = dict(dy=AT, dx=AT, dbias=AT, dgamma=AT, dbeta=AT)
SPATIAL = dict(
    batch=2, rows=2, num=2, width=8, shared=AT, action=AT, gamma=AT, beta=AT, weight=AT, eps=1e-5,
    stats=AT,
)  # fmt: skip
SPATIAL_GRAD = dict(dz=AT, dshared=AT, daction=AT, dgamma=AT, dbeta=AT, dweight=AT)
LAYER = dict(
    inputs=8, outputs=8, w=AT, transposed=False, bias=AT, bias_per_unit=True, gamma=AT, beta=AT,
    eps=1e-5, keep=0, scale=1.0, seed=0, hidden=True,
)  # fmt: skip
ADAM = dict(n=8, weight=AT, grad=AT, exp_avg=AT, exp_avg_sq=AT, step=AT)
RULE = kernels.AdamRule(lr=1, beta1=0, beta2=0, eps=1)
GEMM = dict(m=8, n=8, k=8, a=AT, lda=8, ta=False, b=AT, ldb=8, tb=True, bias=0)
TD_STEP = dict(rows=2, x=AT, target=AT, rule=RULE, tau=0.1, threads=1)
LERP = dict(n=8, to=AT, from_=AT)
GRAD = dict(saved=AT, hidden=True, dout=AT, dx=AT, threads=1)
PICKED = dict(saved=AT, hidden=False, pick=AT, dout=AT, dx=AT, threads=1)
NETWORK = dict(
    build="base", kind=2, width=32, action=2, layers=1, forward=AT, backward=AT, bias=AT, w_a=AT,
    head=AT, head_stream=AT, constant=0.0,
)  # fmt: skip
FORWARD = dict(batch=1, num=2, first=AT, actions=AT, f=AT, grad=AT, saved=AT, stream=AT, threads=1)
BACKWARD = dict(
    batch=1, num=2, first=AT, actions=AT, scale=AT, saved=AT, stream=AT, dfirst=AT, layers=AT,
    bias=AT, w_a=AT, head=AT, head_stream=AT, threads=1,
)  # fmt: skip


def mlp(x: int = AT) -> kernels.Mlp:
    return kernels.Mlp(rows=2, x=x, members=[0], layers=[kernels.MlpLayer(**LAYER)])


def adam(grad: int) -> None:
    kernels.adam([kernels.AdamTensor(**ADAM | dict(grad=grad))], RULE, threads=1)


def td_step(follow: int = AT) -> kernels.TdStep:
    layer = kernels.MlpLayer(**LAYER | dict(outputs=1, bias=0, gamma=0, hidden=False))
    weights = [kernels.AdamTensor(**ADAM)]
    return kernels.TdStep(layers=[layer], members=1, weights=weights, follow=[follow])


def network() -> ebm_kernels.Network:
    return ebm_kernels.Network(**NETWORK)


def norm(**grad: int) -> None:
    grads = kernels.NormReluGrad(**NORM_GRAD | grad)
    kernels.norm_relu_grad(kernels.NormRelu(**NORM), grads, threads=1)


def spatial(**grad: int) -> None:
    grads = kernels.SpatialGrad(**SPATIAL_GRAD | grad)
    kernels.spatial_grad(kernels.Spatial(**SPATIAL), grads, threads=1)


NULLS = {
    "norm_relu": (lambda **k: kernels.NormRelu(**NORM | k), "x beta stats"),
    "norm_relu out": (lambda **k: kernels.norm_relu(kernels.NormRelu(**NORM), threads=1, **k), "y"),
    "norm_relu grad": (norm, "dy dx dbeta"),
    "spatial": (
        lambda **k: kernels.Spatial(**SPATIAL | k),
        "shared action gamma beta weight stats",
    ),
    "spatial out": (lambda **k: kernels.spatial(kernels.Spatial(**SPATIAL), threads=1, **k), "out"),
    "spatial grad": (spatial, "dz daction"),
    "gemm": (lambda **k: kernels.Gemm(**GEMM | k), "a b"),
    "gemm out": (lambda **k: kernels.gemm(kernels.Gemm(**GEMM), threads=1, **k), "c"),
    "layer": (lambda **k: kernels.MlpLayer(**LAYER | k), "w beta"),
    "mlp": (mlp, "x"),
    "mlp out": (lambda **k: kernels.mlp(mlp(), saved=0, hidden=False, threads=1, **k), "out"),
    "mlp grad": (lambda **k: kernels.mlp_grad(mlp(), layers=[], **GRAD | k), "saved dout"),
    "picked": (lambda **k: kernels.mlp_grad_picked(mlp(), **PICKED | k), "saved pick dout dx"),
    "adam": (lambda **k: kernels.AdamTensor(**ADAM | k), "weight exp_avg exp_avg_sq step"),
    "adam grad": (adam, "grad"),
    "td weights": (td_step, "follow"),
    "td step": (
        lambda **k: td_step().run(**TD_STEP | k),
        "x target",
    ),
    "lerp": (lambda **k: kernels.LerpTensor(**LERP | k), "to from_"),
    "network": (
        lambda **k: ebm_kernels.Network(**NETWORK | k),
        "forward backward bias w_a head",
    ),
    "forward": (lambda **k: network().forward(**FORWARD | k), "first actions f"),
    "backward": (
        lambda **k: network().backward(**BACKWARD | k),
        "first actions scale saved stream dfirst layers bias w_a head head_stream",
    ),
    "osc": (
        lambda **k: osc.Loop(
            functions=dict.fromkeys(("mj_step1", "mj_step2", "mj_jacSite", "mj_fullM"), AT) | k,
            model=k.get("model", AT), data=k.get("data", AT), nv=1,
            arrays=dict.fromkeys(
                ("qpos", "qvel", "qM", "qfrc_bias", "site_xpos", "site_xmat", "ctrl"), AT
            ) | k,
        ),
        "model data mj_step1 mj_fullM qpos qM ctrl",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NULLS)
def test_null_addresses_are_type_errors(name: str) -> None:
    call, fields = NULLS[name]
    for field in fields.split():
        with pytest.raises(TypeError, match=f"'{field}' is null, expected an address"):
            call(**{field: 0})


def test_a_step_needs_weights_that_match_its_layers() -> None:
    layer = kernels.MlpLayer(**LAYER | dict(outputs=1, gamma=0, hidden=False))
    tensor = kernels.AdamTensor(**ADAM)
    for weights in ([], [tensor], [tensor, tensor], [tensor] * 3):
        with pytest.raises(ValueError, match="weights do not match the layers"):
            kernels.TdStep(layers=[layer], members=1, weights=weights, follow=[AT] * len(weights))


def test_arrays_without_elements_may_be_null() -> None:
    kernels.norm_relu(kernels.NormRelu(**NORM | dict(rows=0, x=0, stats=0)), y=0, threads=1)
    kernels.spatial(
        kernels.Spatial(**SPATIAL | dict(batch=0, shared=0, action=0, stats=0)), out=0, threads=1
    )
    none = dict(n=0, weight=0, grad=0, exp_avg=0, exp_avg_sq=0)
    kernels.adam([kernels.AdamTensor(**ADAM | none)], RULE, threads=1)
    kernels.lerp([kernels.LerpTensor(n=0, to=0, from_=0)], weight=0.5, threads=1)
    assert torch.zeros(0).data_ptr() == 0 and np.isfinite(ROOM).all()
