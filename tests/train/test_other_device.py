"""A run's state goes on on another kind of device: a GPU's on a CPU, and a CPU's on a GPU.

There need be no GPU: a state is made into what a GPU's run saves (generators of 16 bytes), and a
stand-in that takes and gives states as CUDA's generator does is given a CPU's.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import train_bc
import train_rl
from common_utils import run_config, seeding
from common_utils.run_state import StateError, latest_state, load_state, save_state
from tests.bc.test_dataset import write_robomimic

NOTE = "this state was saved on a GPU: random generators of this device are seeded from it"


def cuda_state(seed: int, offset: int) -> torch.Tensor:
    """uint8 [16], as ``torch.Generator("cuda").get_state()`` gives it."""
    return torch.frombuffer(bytearray(struct.pack("<Qq", seed, offset)), dtype=torch.uint8)


class CudaGenerator:
    """What is relied on of ``torch.Generator("cuda")``."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.seed, self.offset = 0, 0

    def get_state(self) -> torch.Tensor:
        return cuda_state(self.seed, self.offset)

    def set_state(self, state: torch.Tensor) -> None:
        self.seed, self.offset = struct.unpack("<Qq", state.numpy().tobytes())

    def manual_seed(self, seed: int) -> None:
        self.seed, self.offset = seed, 0


def draws(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_a_gpus_generator_seeds_a_cpus_always_the_same() -> None:
    mine = torch.Generator()
    drawn = []
    for seed, offset in ((7, 40), (7, 40), (7, 44), (8, 40)):
        seeding.restore_generator(mine, cuda_state(seed, offset))
        drawn.append(draws(mine))
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) == 3
    # documented, and so never changed: another version must give the same numbers
    seeding.restore_generator(mine, cuda_state(7, 40))
    assert mine.initial_seed() == 8098851000173922998
    assert NOTE in seeding.other_device(mine, cuda_state(7, 40))


def test_a_cpus_generator_seeds_a_gpus_and_its_own_is_restored() -> None:
    gpu: Any = CudaGenerator()
    cpu = torch.Generator().manual_seed(3)
    seeds = []
    for _ in range(2):
        seeding.restore_generator(gpu, cpu.get_state())
        seeds.append((gpu.seed, gpu.offset))
        draws(cpu)
    assert seeds[0] != seeds[1] and all(s < 2**63 and o == 0 for s, o in seeds)
    assert "saved on a CPU" in seeding.other_device(gpu, cpu.get_state())
    # the same kind: bit for bit, and nothing to say
    seeding.restore_generator(gpu, cuda_state(7, 40))
    assert (gpu.seed, gpu.offset) == (7, 40) and seeding.other_device(gpu, cuda_state(7, 40)) == ""
    state, want = cpu.get_state(), draws(cpu)
    seeding.restore_generator(cpu, state)
    assert draws(cpu) == want and seeding.other_device(cpu, state) == ""


@pytest.mark.parametrize("bad", [torch.zeros(17, dtype=torch.uint8), torch.zeros(16)])
def test_what_is_no_generators_state_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="not the state of a random generator, expected 5056 of"):
        seeding.restore_generator(torch.Generator(), bad)


# ------------------------------------------------------------------------------ whole runs


def as_of_a_gpu(run: Path, *generators: tuple[str, ...]) -> None:
    """The newest state as a run on a GPU would have saved it."""
    path = latest_state(run / "state")
    assert path is not None
    state = load_state(path)
    for number, names in enumerate(generators):
        *sections, last = names
        section = state.tree
        for name in sections:
            section = section[name]
        assert section[last].numel() == torch.Generator().get_state().numel()
        section[last] = cuda_state(7, 4 * number)
    state.tree["global_rng"]["cuda"] = [cuda_state(1, 0), cuda_state(2, 0)]
    parts = {p.name: Copied(p) for p in (path / "parts").glob("*")}
    save_state(run / "state", state.step, state.tree, parts)


class Copied:
    """A part of a state as it is."""

    def __init__(self, folder: Path) -> None:
        self.files = {p.name: p.read_bytes() for p in folder.iterdir()}

    def save(self, path: Path) -> None:
        for name, data in self.files.items():
            (path / name).write_bytes(data)


def rl_config(save_dir: Path, steps: int, resume: int, device: str) -> train_rl.MainConfig:
    options = {
        "suite": "particle", "task_name": "PARTICLE_2d", "use_state": 1, "episode_length": 9,
        "num_train_step": steps, "log_per_step": 8, "num_warm_up_episode": 1,
        "num_eval_episode": 0, "batch_size": 4, "q_agent.act_method": "rl",
        "q_agent.state_critic.hidden_dim": 8, "q_agent.state_actor.hidden_dim": 8,
        "save_dir": save_dir, "resume": resume, "q_agent.device": device,
    }  # fmt: skip
    return run_config.parse_args(train_rl.MainConfig, [f"--{k}={v}" for k, v in options.items()])


@pytest.mark.filterwarnings("error")
def test_an_rl_run_of_a_gpu_goes_on_on_a_cpu(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_rl.run(rl_config(run, 8, 0, "cpu"))
    text = (run / "cfg.yaml").read_text()
    (run / "cfg.yaml").write_text(text.replace("device: cpu", "device: cuda:1"))
    as_of_a_gpu(run, ("agent", "rng"), ("agent", "eval_rng"))
    work = train_rl.run(rl_config(run, 16, 1, "cpu"))
    assert work.global_step == 16 and (run / "train.log").read_text().count(NOTE) == 1


@pytest.mark.filterwarnings("error")
def test_a_bc_run_of_a_gpu_goes_on_on_a_cpu(tmp_path: Path) -> None:
    data = write_robomimic(tmp_path / "data.hdf5", size=8)
    run = tmp_path / "run"

    def config(epochs: int, resume: int) -> train_bc.MainConfig:
        options = {
            "dataset.path": data, "dataset.use_state": 1, "num_epoch": epochs, "epoch_len": 3,
            "num_eval_episode": 0, "save_dir": run, "resume": resume, "device": "cpu",
            "state_policy.hidden_dim": 8, "batch_size": 4,
        }  # fmt: skip
        args = [f"--{k}={v}" for k, v in options.items()]
        return run_config.parse_args(train_bc.MainConfig, args)

    train_bc.run(config(1, 0))
    as_of_a_gpu(run, ("policy_rng", "generator"))
    text = (run / "cfg.yaml").read_text()
    (run / "cfg.yaml").write_text(text.replace("device: cpu", "device: cuda"))
    assert train_bc.run(config(2, 1)).epoch == 2
    assert (run / "train.log").read_text().count(NOTE) == 1


def test_a_state_whose_generator_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_rl.run(rl_config(run, 8, 0, "cpu"))
    path = latest_state(run / "state")
    assert path is not None
    state = load_state(path)
    state.tree["agent"]["rng"] = torch.zeros(5, dtype=torch.uint8)
    save_state(run / "state", 8, state.tree, {"replay": Copied(path / "parts" / "replay")})
    damaged = latest_state(run / "state")
    assert damaged is not None and damaged != path
    with pytest.raises(StateError, match=f"{damaged.name}: does not fit this run.*5 numbers"):
        train_rl.run(rl_config(run, 16, 1, "cpu"))
