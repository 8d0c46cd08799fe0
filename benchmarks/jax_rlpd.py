"""Measure a SAC update of RLPD's sizes in JAX on this machine, to compare with ours.

    pip install jax
    python -m benchmarks.jax_rlpd            # state 39, width 256; --state 69 --width 1024

Written for this comparison after RLPD's published algorithm (Ball et al. 2023): an ensemble of 5
LayerNorm critics of which 2 form the target, a tanh Gaussian actor, a temperature, Adam, 3 hidden
layers, batch 256; jitted as a whole, one thread. JAX is not a requirement of this project.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from statistics import median
from typing import Any

from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.ranges import Positive, Width

ENSEMBLE, SUBSET, BATCH, HIDDEN_LAYERS = 5, 2, 256, 3
GAMMA, TAU, LR = 0.99, 0.01, 3e-4


def build(jax: Any, state: int, action: int, width: int) -> tuple[Any, Any]:
    """(initial training state, function of it, a batch and a key that updates ``num`` times)."""
    jnp = jax.numpy

    def init_mlp(key: Any, sizes: list[int]) -> list[dict[str, Any]]:
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [
            {
                "w": jax.random.normal(k, (i, o)) / i**0.5,
                "b": jnp.zeros(o),
                "scale": jnp.ones(o),
                "shift": jnp.zeros(o),
            }
            for k, i, o in pairs
        ]

    def mlp(layers: list[dict[str, Any]], x: Any, norm: bool) -> Any:
        for layer in layers[:-1]:
            x = x @ layer["w"] + layer["b"]
            if norm:
                mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
                x = (x - mean) * jax.lax.rsqrt(var + 1e-6) * layer["scale"] + layer["shift"]
            x = jax.nn.relu(x)
        return x @ layers[-1]["w"] + layers[-1]["b"]

    def q(critics: Any, obs: Any, act: Any) -> Any:
        x = jnp.concatenate([obs, act], -1)
        return jax.vmap(lambda layers: mlp(layers, x, True)[:, 0])(critics)

    def sample(actor: Any, obs: Any, key: Any) -> tuple[Any, Any]:
        mean, log_std = jnp.split(mlp(actor, obs, False), 2, -1)
        log_std = jnp.clip(log_std, -20, 2)
        noise = jax.random.normal(key, mean.shape)
        raw = mean + jnp.exp(log_std) * noise
        log_prob = (-0.5 * noise**2 - log_std - 0.9189385).sum(-1)
        log_prob -= (2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))).sum(-1)
        return jnp.tanh(raw), log_prob

    def adam(params: Any, grads: Any, moments: Any, t: Any) -> tuple[Any, Any]:
        tree = jax.tree_util.tree_map
        m = tree(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
        v = tree(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], grads)
        rate = LR * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return tree(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), params, m, v), (m, v)

    def critic_step(s: dict[str, Any], batch: Any, key: Any) -> dict[str, Any]:
        key_a, key_s = jax.random.split(key)
        obs, act, reward, next_obs = batch
        next_act, log_prob = sample(s["actor"], next_obs, key_a)
        members = jax.random.choice(key_s, ENSEMBLE, (SUBSET,), replace=False)
        subset = jax.tree_util.tree_map(lambda x: x[members], s["target"])
        target = q(subset, next_obs, next_act).min(0) - jnp.exp(s["log_alpha"]) * log_prob
        target = jax.lax.stop_gradient(reward + GAMMA * target)
        grads = jax.grad(lambda c: ((q(c, obs, act) - target) ** 2).mean())(s["critic"])
        critic, moments = adam(s["critic"], grads, s["critic_moments"], s["t"])
        soft = jax.tree_util.tree_map(lambda a, b: a + TAU * (b - a), s["target"], critic)
        return s | {"critic": critic, "critic_moments": moments, "target": soft, "t": s["t"] + 1}

    def actor_step(s: dict[str, Any], obs: Any, key: Any) -> dict[str, Any]:
        def loss(actor: Any) -> tuple[Any, Any]:
            act, log_prob = sample(actor, obs, key)
            alpha = jnp.exp(s["log_alpha"])
            return (alpha * log_prob - q(s["critic"], obs, act).mean(0)).mean(), log_prob.mean()

        grads, log_prob = jax.grad(loss, has_aux=True)(s["actor"])
        actor, moments = adam(s["actor"], grads, s["actor_moments"], s["t"])
        log_alpha = s["log_alpha"] + LR * (log_prob + action)
        return s | {"actor": actor, "actor_moments": moments, "log_alpha": log_alpha}

    @partial(jax.jit, static_argnums=3)
    def update(s: dict[str, Any], batches: list[Any], key: Any, with_actor: bool) -> Any:
        for i, batch in enumerate(batches):
            s = critic_step(s, batch, jax.random.fold_in(key, i))
        if with_actor:
            s = actor_step(s, batches[-1][0], jax.random.fold_in(key, len(batches)))
        return s

    key = jax.random.PRNGKey(0)
    hidden = [width] * HIDDEN_LAYERS
    keys = jax.random.split(key, ENSEMBLE)
    critic = jax.vmap(lambda k: init_mlp(k, [state + action, *hidden, 1]))(keys)
    actor = init_mlp(key, [state, *hidden, 2 * action])
    zeros = partial(jax.tree_util.tree_map, jnp.zeros_like)
    start = {
        "critic": critic,
        "target": critic,
        "actor": actor,
        "critic_moments": (zeros(critic), zeros(critic)),
        "actor_moments": (zeros(actor), zeros(actor)),
        "log_alpha": jnp.zeros(()),
        "t": jnp.ones(()),
    }
    return start, update


def main(argv: list[str] | None = None) -> int:
    """Median process CPU milliseconds of an update, alone and with the actor's."""
    parser = Options(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--state", type=numeric(Width), default=39)
    parser.add_argument("--action", type=numeric(Width), default=4)
    parser.add_argument("--width", type=numeric(Width), default=256)
    parser.add_argument("--repeat", type=numeric(Positive), default=100)
    args = parser.parse_args(argv)
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
        + os.environ.get("XLA_FLAGS", "")
    )
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # XLA has its own threads
    try:
        import jax
    except ImportError:
        print("error: needs JAX, an optional package: pip install jax", file=sys.stderr)
        return 2
    state, update = build(jax, args.state, args.action, args.width)
    key = jax.random.PRNGKey(1)
    shapes = [(BATCH, args.state), (BATCH, args.action), (BATCH,), (BATCH, args.state)]
    batch = [jax.random.uniform(jax.random.fold_in(key, i), s) for i, s in enumerate(shapes)]
    print(f"JAX {jax.__version__}, state {args.state}, width {args.width}, one core")
    cases = (("critic update (4 per call)", 4, False), ("critic + actor update", 1, True))
    for name, num, with_actor in cases:
        times = []
        for i in range(args.repeat):
            began = time.process_time()
            state = update(state, [batch] * num, jax.random.fold_in(key, i), with_actor)
            jax.block_until_ready(state)
            times.append((time.process_time() - began) / num * 1e3)
        print(f"{name}: {median(times[args.repeat // 5 :]):.2f} ms of process CPU time")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
