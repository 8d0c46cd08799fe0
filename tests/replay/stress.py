"""Exercises the core from several threads; run under a sanitizer by test_sanitizers.py.

    python stress.py PATH/rela*.so SCRATCH_FOLDER

Needs numpy only. Ends with prefetching still under way.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from typing import Any

import numpy as np


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("rela", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def episode(rela: Any, rng: np.random.Generator, length: int, terminated: bool) -> Any:
    rows = length + (not terminated)
    return rela.episode_from_arrays(
        {
            "cam": rng.integers(0, 256, (rows, 3, 24, 24), dtype=np.uint8),
            "prop": rng.standard_normal((rows, 9)).astype(np.float32),
            "empty": np.zeros((rows, 0)),
        },
        {"action": rng.standard_normal((length, 7)).astype(np.float32)},
        rng.random(length).astype(np.float32),
        terminated=terminated,
        truncated=not terminated,
        final_obs=not terminated,
        nstep=1,
        gamma=0.99,
    )


def make(rela: Any, seed: int, **options: Any) -> Any:
    return rela.SingleStepTransitionReplay(
        1, 1, 8, seed, stacks={"cam": 2, "prop": 3}, stack_order="newest_first",
        bootstrap_truncated=True, **options,
    )  # fmt: skip


def expect(error: type[Exception], call: Any) -> None:
    try:
        call()
    except error:
        return
    raise SystemExit(f"expected {error.__name__}")


def misuse(rela: Any) -> None:
    replay = make(rela, 0, prefetch=2)
    expect(RuntimeError, lambda: replay.sample(4, None))
    replay.add(episode(rela, np.random.default_rng(0), 5, True))
    expect(ValueError, lambda: replay.sample(0, None))
    expect(IndexError, lambda: replay.get(3))
    builder = rela.Episode(3, 2, 0.99)
    expect(RuntimeError, lambda: builder.push_reward(0.0))
    builder.push_obs({"x": np.zeros(3)})
    expect(RuntimeError, lambda: builder.push_obs({"x": np.zeros(3)}))
    expect(RuntimeError, builder.pop_transition)


def from_many_threads(rela: Any, storage: str) -> None:
    rl = make(rela, 1, prefetch=2, num_threads=3, storage=storage)
    bc = make(rela, 2, prefetch=1, storage=storage)
    joint = rela.JointSampler([bc, rl], prefetch=2, num_threads=2)
    rng = np.random.default_rng(0)
    for replay in (rl, bc):
        replay.add(episode(rela, rng, 30, True))
    errors: list[BaseException] = []

    def adder(seed: int) -> None:
        mine = np.random.default_rng(seed)
        for _ in range(25):
            e = episode(rela, mine, int(mine.integers(1, 60)), bool(mine.integers(2)))
            rl.add(e)
            bc.add(e)

    def sampler(kind: int) -> None:
        kept = []
        for i in range(40):
            n = 64 if i % 7 else 17
            batch = [
                lambda: rl.sample(n, None, 1 + i % 5),  # noqa: B023
                lambda: joint.sample([n // 2, n], None),  # noqa: B023
                lambda: bc.sample(n, None),  # noqa: B023
            ][kind]()
            if not np.isfinite(batch.reward).all() or batch.obs["cam"].shape[1] != 6:
                raise SystemExit("bad batch")
            kept = [*kept[-2:], batch]

    def saver() -> None:
        for _ in range(8):
            copy = make(rela, 9)
            copy.load_state_dict(rl.state_dict())
            copy.sample(8, None)
            rl.get(0)
            rl.get_range(0, 1, None)
            _, rng_state = rl.mark()
            begin, end = rl.spans()[1]
            drawn = rl.draw(16, 3)
            if end <= begin or not np.isfinite(drawn["reward"]).all():
                raise SystemExit("bad rows")
            rl.set_rng(rng_state)

    def guarded(f: Any, *args: Any) -> None:
        try:
            f(*args)
        except BaseException as e:
            errors.append(e)

    jobs = [(adder, 1), (adder, 2), (sampler, 0), (sampler, 1), (sampler, 2), (saver,)]
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


def main() -> None:
    rela = load(sys.argv[1])
    misuse(rela)
    for storage in ("ram", sys.argv[2]):
        from_many_threads(rela, storage)
    alive = make(rela, 3, prefetch=8, num_threads=2)
    alive.add(episode(rela, np.random.default_rng(0), 50, True))
    alive.sample(2000, None)
    globals()["alive"] = alive  # still there, and busy, when the interpreter ends
    print("stress finished")


if __name__ == "__main__":
    main()
