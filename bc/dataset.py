"""The demonstration dataset of every suite: reads, checks, samples BC batches.

Frames are kept once and unstacked; the stacks that policies see (newest first, zeros before
the episode's start, see docs/reference/ibrl.md#replay) are assembled at sampling time by one
gather. Images stay uint8; they are kept in RAM if they fit, otherwise read for each batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bc.dataset_config import DatasetConfig, DemoOptions
from bc.demos import DatasetError
from bc.formats import open_demos
from common_utils import ranks
from common_utils.env_args import plain_task
from common_utils.h5_read import SMALL_BYTES
from common_utils.resources import available_memory, format_bytes
from common_utils.seeding import generator_state, set_generator_state
from common_utils.specs import ArraySpec, EnvSpec, Obs, SpecError
from common_utils.stacking import gather_stack, stack_rows, take_stacks
from common_utils.success_rule import Ending, Recorded, SuccessRule

__all__ = [
    "BcBatch",
    "DatasetConfig",
    "DatasetError",
    "Demo",
    "RobomimicDataset",
    "DemoOptions",
    "ReplayDemos",
    "read_demos",
]


@dataclass(frozen=True)
class Demo:
    """One demonstration of T steps, unstacked.

    observations  {camera: uint8 [T, 3, H, W], "prop": f32 [T, P], "state": f32 [T, S]}
    actions       float32 [T, A];  rewards float32 [T]
    success       whether it succeeded; terminated: whether it ended by itself, not at a time
                  limit. For replays the suite's rule decides both (:func:`read_demos`)
    """

    name: str
    observations: dict[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    success: bool = True
    terminated: bool = True

    def __len__(self) -> int:
        return len(self.actions)

    def ended(self, ending: Ending) -> Demo:
        """The first ``ending.length`` steps, with the ending's verdict."""
        end = ending.length
        return replace(
            self,
            observations={k: v[:end] for k, v in self.observations.items()},
            actions=self.actions[:end],
            rewards=self.rewards[:end],
            success=ending.success,
            terminated=ending.terminated,
        )


class BcBatch(NamedTuple):
    """obs: dict of [B, ...] with stacks assembled (dtypes as stored); action: float32 [B, A], or
    [B, h, A] with a horizon."""

    obs: Obs
    action: torch.Tensor


@dataclass
class SamplingMark:
    """Where the sampling of a dataset stands."""

    # numpy's generator, and as it was when the pass began
    rng: dict[str, Any]
    epoch_rng: dict[str, Any]
    # in the pass, whose order follows from epoch_rng
    position: int
    order: np.ndarray | None = field(compare=False)


@dataclass
class _Column:
    """One observation key over all steps: an array, or a reader if it would not fit."""

    frame_shape: tuple[int, ...]
    dtype: str
    stack: int
    array: np.ndarray | None = None


@dataclass
class _Table:
    names: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


class RobomimicDataset:
    """Demonstrations in memory, with their own generator for BC batches.

    ``cfg.path`` may hold the robomimic or the Meta-World layout. Public attributes: ``cfg``,
    ``env_args`` (dict from the file), ``fps`` (steps per second, None if not recorded), ``notes``
    (remarks on the file for the user), ``suite``, ``task_name``, ``robots`` (list of str),
    ``action_dim``, ``num_steps``, ``num_episodes``, ``cameras`` (tuple, empty with states),
    ``image_size`` (int, -1 with states), ``lazy`` (images read per batch).
    """

    def __init__(
        self, cfg: DatasetConfig, *, seed: int = 0, rewards: bool = False, horizon: int = 1
    ) -> None:
        """``rewards``: they are needed, so files without them are refused. ``horizon``: above 1,
        batches have the actions of so many steps; behind an episode's end its last one repeats.
        """
        self.cfg, self._needs_rewards, self.horizon = cfg, rewards, horizon
        self.cameras: tuple[str, ...] = () if cfg.use_state else tuple(cfg.rl_cameras)
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        # sampling "epochs": the current pass, the generator's state before it, the position in it
        self._order: np.ndarray | None = None
        self._epoch_rng: dict[str, Any] = {}
        self._position = 0
        self._file = open_demos(cfg.path, cfg.keys)
        self.env_args, self.suite = self._file.env_args, self._file.suite
        self.notes, self.fps = list(self._file.notes), self._file.fps
        self.task_name = self._file.env_name
        kwargs = self.env_args.get("env_kwargs") or {}
        robots = kwargs.get("robots", [])
        self.robots: list[str] = [robots] if isinstance(robots, str) else list(robots)
        try:
            self._table = self._select()
            self._load()
        except BaseException:
            self._file.close()
            raise
        if not self.lazy:
            self._file.close()

    def _select(self) -> _Table:
        cfg, key = self.cfg, self.cfg.filter_key
        names = self._file.filtered(key) if key else self._file.names
        if cfg.num_data > len(names):
            raise self._file.error(
                None, f"mask/{key}" if key else "data", f"holds {len(names)} demonstrations, "
                f"expected at least {cfg.num_data} (dataset.num_data, or preload_num_data of an RL "
                "run)"
            )  # fmt: skip
        if key:
            total = len(self._file.names)
            self.notes.append(f"filter key {key}: {len(names)} of its {total} demonstrations")
        table = _Table()
        for name in names if cfg.num_data < 0 else names[: cfg.num_data]:
            length = self._file.length(name)
            played = length - self._file.boundary_rows(name)
            if 0 < cfg.max_len < played:
                continue
            if 0 < cfg.eval_episode_len < played:
                raise self._file.error(
                    name,
                    "actions",
                    f"{played} steps, longer than dataset.eval_episode_len "
                    f"{cfg.eval_episode_len}: no policy could imitate it within the time limit",
                )
            table.names.append(name)
            table.lengths.append(length if cfg.boundary_rows else played)
        if not table.names:
            raise self._file.error(
                None, "data", f"no demonstration is left with dataset.max_len {cfg.max_len}"
            )
        return table

    def _load(self) -> None:
        file, names, cfg = self._file, self._table.names, self.cfg
        limits = (cfg.action_low, cfg.action_high) if cfg.action_low else None
        self._actions = self._concat("actions", [file.actions(n, limits) for n in names])
        self._rewards = self._read_rewards()
        for name in names:
            file.check(name)
        self._bounds = np.concatenate([[0], np.cumsum(self._table.lengths)]).astype(np.int64)
        self._starts = np.repeat(self._bounds[:-1], self._table.lengths)
        self._last = np.repeat(self._bounds[1:] - 1, self._table.lengths)
        self._columns: dict[str, _Column] = {}
        if self.cfg.use_state:
            self._add_vector("state", self.cfg.state_stack)
        elif file.has_prop(names[0]):
            self._add_vector("prop", self.cfg.prop_stack)
        self._image_bytes = self._add_cameras()
        # half of the free memory: the run needs the rest
        free = available_memory() / 2 / ranks.on_this_machine()
        self.lazy = self._image_bytes > min(self.cfg.max_ram_gb * 2**30, free)
        for camera in () if self.lazy else self.cameras:
            column = self._columns[camera]
            column.array = np.empty((self.num_steps, *column.frame_shape), np.uint8)
            for number, name in enumerate(names):  # one by one: no second copy of the data
                rows = slice(int(self._bounds[number]), int(self._bounds[number + 1]))
                column.array[rows] = file.images(name, camera)

    def _read_rewards(self) -> np.ndarray:
        file, names = self._file, self._table.names
        if self._needs_rewards or all(file.has_rewards(n) for n in names):
            return np.concatenate(self._cut([file.rewards(n) for n in names]))
        self.notes.append("rewards are not recorded; BC does not need them, RL would")
        return np.zeros(sum(self._table.lengths), np.float32)

    def _cut(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The rows in use of each demonstration (boundary rows are at its end)."""
        return [p[:n] for p, n in zip(parts, self._table.lengths, strict=True)]

    def _concat(self, key: str, parts: Sequence[np.ndarray]) -> np.ndarray:
        for name, part in zip(self._table.names, parts, strict=True):
            if part.shape[1:] != parts[0].shape[1:]:
                raise self._file.error(
                    name, key, f"step shape {list(part.shape[1:])}, but "
                    f"{self._table.names[0]} has {list(parts[0].shape[1:])}"
                )  # fmt: skip
        return np.concatenate(self._cut(parts))

    def _add_vector(self, kind: str, stack: int) -> None:
        array = self._concat(f"obs/{kind}", [self._file.vector(n, kind) for n in self._table.names])
        self._columns[kind] = _Column(array.shape[1:], "float32", stack, array)

    def _add_cameras(self) -> int:
        total = 0
        for camera in self.cameras:
            shapes = [self._file.image_shape(n, camera) for n in self._table.names]
            for name, shape in zip(self._table.names, shapes, strict=True):
                if shape != shapes[0]:
                    raise self._file.error(
                        name, f"obs/{camera}_image", f"frames are {list(shape)}, but "
                        f"{self._table.names[0]} has {list(shapes[0])}"
                    )  # fmt: skip
            self._note_layout(camera)
            self._columns[camera] = _Column(shapes[0], "uint8", self.cfg.image_stack)
            total += self.num_steps * int(np.prod(shapes[0]))
        return total

    def _note_layout(self, camera: str) -> None:
        layouts = [self._file.layout(name, camera) for name in self._table.names]
        turned = [x for x in layouts if x.channels_last]
        if turned:
            where = "" if len(turned) == len(layouts) else f" in {len(turned)} demonstrations"
            self.notes.append(
                f"obs/{camera}_image is stored with its {turned[0]}{where}; it is read transposed"
            )

    @property
    def num_steps(self) -> int:
        """Steps over all demonstrations."""
        return len(self._actions)

    @property
    def num_episodes(self) -> int:
        """Demonstrations in use."""
        return len(self._table.names)

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self._actions.shape[1])

    @property
    def image_size(self) -> int:
        """Height of the stored frames in pixels, -1 without cameras."""
        return self._columns[self.cameras[0]].frame_shape[1] if self.cameras else -1

    @property
    def nbytes(self) -> int:
        """Bytes held in RAM."""
        arrays = [c.array for c in self._columns.values() if c.array is not None]
        return sum(a.nbytes for a in (*arrays, self._actions, self._rewards))

    @property
    def observation_specs(self) -> dict[str, ArraySpec]:
        """What a sampled (stacked) observation of one step looks like."""
        return {
            key: ArraySpec((c.stack * c.frame_shape[0], *c.frame_shape[1:]), c.dtype, c.stack)
            for key, c in self._columns.items()
        }

    def check_frames(self, spec: EnvSpec, keys: Sequence[str]) -> None:
        """Raise SpecError unless task, actions and single frames of ``keys`` fit ``spec``."""
        self._check_task(spec)
        holds = self.observation_specs
        for key in keys:
            if key not in holds:
                raise SpecError(
                    f"dataset {self.cfg.path}: holds no observation '{key}' (asked for were "
                    f"{sorted(holds)}), which {spec.suite}/{spec.task} is trained on"
                )
        frames = {k: ArraySpec(holds[k].frame_shape, holds[k].dtype) for k in keys}
        single = {k: ArraySpec(v.frame_shape, v.dtype) for k, v in spec.observations.items()}
        unstacked = replace(spec, observations=single)
        unstacked.check_provides(frames, self.action_dim, f"dataset {self.cfg.path}")

    def _check_task(self, spec: EnvSpec) -> None:
        for have, want in ((self.suite, spec.suite), (self.task_name, spec.task)):
            if have and plain_task(have) != plain_task(want):
                raise SpecError(
                    f"dataset {self.cfg.path}: demonstrations of {self.suite or '?'}/"
                    f"{self.task_name or '?'}, but the environment is {spec.suite}/{spec.task}"
                )

    def _gather(self, key: str, rows: np.ndarray) -> np.ndarray:
        column = self._columns[key]
        size = len(rows) * column.stack * math.prod(column.frame_shape)
        self._check_room(size * np.dtype(column.dtype).itemsize, f"a batch of {len(rows)} {key}s")
        if column.array is not None:
            return gather_stack(
                column.array, rows, self._starts[rows], column.stack, self.cfg.stack_pad
            )
        # not in RAM: read each needed frame once, then stack within that small array
        wanted, before = stack_rows(rows, self._starts[rows], column.stack)
        unique, inverse = np.unique(wanted, return_inverse=True)
        frames = np.empty((len(unique), *column.frame_shape), np.uint8)
        episode = np.searchsorted(self._bounds, unique, side="right") - 1
        for number in np.unique(episode):
            mine = episode == number
            local = unique[mine] - self._bounds[number]
            frames[mine] = self._file.images(self._table.names[number], key, local)
        return take_stacks(frames, inverse.reshape(wanted.shape), before, self.cfg.stack_pad)

    def check_images_fit(self) -> None:
        """Raise DatasetError unless memory holds all images at once."""
        self._check_room(self._image_bytes, f"the images of {self.num_episodes} demonstrations")

    def _check_room(self, size: int, what: str) -> None:
        if size > SMALL_BYTES and size > (free := available_memory()):
            raise DatasetError(
                f"dataset {self.cfg.path}: {what} would take {format_bytes(size)} of memory, "
                f"{format_bytes(free)} are free"
            )

    def batch_at(self, rows: np.ndarray, device: str | torch.device = "cpu") -> BcBatch:
        """The batch of the given global step numbers, int64 [B]."""
        device = torch.device(device)

        def to_torch(array: np.ndarray) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            if device.type == "cuda":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor

        obs = {key: to_torch(self._gather(key, rows)) for key in self._columns}
        return BcBatch(obs, to_torch(self._actions[self._ahead(rows)]))

    def _ahead(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the actions: ``rows`` [B] themselves, or [B, h] within their episodes."""
        if self.horizon == 1:
            return rows
        return np.minimum(rows[:, None] + np.arange(self.horizon), self._last[rows][:, None])

    def sample_bc(self, batch_size: int, device: str | torch.device = "cpu") -> BcBatch:
        """A batch drawn over all steps: uniformly, or each once per pass (``cfg.sampling``).

        With several ranks all draw the same one, and each gathers its rows of it.
        """
        if self.cfg.sampling == "replacement":
            rows = self._rng.integers(self.num_steps, size=batch_size)
        else:
            rows = self._next_rows(batch_size)
        mine = ranks.split(batch_size)
        return self.batch_at(rows if mine is None else rows[mine.here], device)

    def _next_rows(self, num: int) -> np.ndarray:
        """The next ``num`` rows of an endless stream of permutations."""
        parts: list[np.ndarray] = []
        while num > 0:
            if self._order is None or self._position == self.num_steps:
                self._epoch_rng, self._position = generator_state(self._rng), 0
                self._order = self._rng.permutation(self.num_steps)
            part = self._order[self._position : self._position + num]
            self._position += len(part)
            num -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def mark(self) -> SamplingMark:
        """What decides the next batches."""
        rng = generator_state(self._rng)
        return SamplingMark(rng, self._epoch_rng, self._position, self._order)

    def rewind(self, mark: SamplingMark) -> None:
        """Sample on as from ``mark``."""
        set_generator_state(self._rng, mark.rng)
        self._epoch_rng, self._position, self._order = mark.epoch_rng, mark.position, mark.order

    def first_samples(self, num: int, batch_size: int = 512) -> Iterator[BcBatch]:
        """``num`` shuffled steps (0, or more than there are: all) in batches, for statistics.

        Always the same ones for a seed; the batches drawn later do not depend on this.
        """
        rows = np.random.default_rng(self._seed).permutation(self.num_steps)
        rows = rows[:num] if num else rows
        for start in range(0, len(rows), batch_size):
            yield self.batch_at(rows[start : start + batch_size])

    def episodes(self) -> Iterator[Demo]:
        """The demonstrations in file order, unstacked; images are read one episode at a time."""
        for number, name in enumerate(self._table.names):
            rows = slice(int(self._bounds[number]), int(self._bounds[number + 1]))
            length = self._table.lengths[number]
            observations = {
                key: self._file.images(name, key)[:length]
                if column.array is None
                else column.array[rows]
                for key, column in self._columns.items()
            }
            yield Demo(name, observations, self._actions[rows], self._rewards[rows])

    def recorded(self, info_key: str = "") -> list[Recorded]:
        """Each episode's end and success as recorded in the file, in file order.

        info_key: key of ``data/NAME/infos`` to read as well if it exists ("": none).
        """
        out = []
        with open_demos(self.cfg.path, self.cfg.keys) as file:
            for number, name in enumerate(self._table.names):
                rows = slice(int(self._bounds[number]), int(self._bounds[number + 1]))
                info = file.info(name, info_key) if info_key else None
                infos = {} if info is None else {info_key: info[: self._table.lengths[number]]}
                verdict = file.verdict(name)
                out.append(Recorded(name, self._rewards[rows], *verdict, infos))
        return out

    def state_dict(self) -> dict[str, Any]:
        """The position of sampling: all that changes while training."""
        if self._order is None:
            return {"rng": generator_state(self._rng)}
        # a pass is stored as the generator's state at its start and the position in it
        return {"rng": self._epoch_rng, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue sampling exactly where :meth:`state_dict` was taken."""
        set_generator_state(self._rng, state["rng"])
        self._order = None
        if "position" in state:
            self._next_rows(state["position"])

    def close(self) -> None:
        """Close the file of a lazily read dataset; safe to call twice."""
        self._file.close()


class ReplayDemos:
    """Demonstrations for a replay, unstacked, each ended by the suite's rule; iterate once.

    Images are read episode by episode, so that no second copy of the data is held. Attributes:
    ``env_args`` (dict from the file), ``fps`` (steps per second, None if not recorded),
    ``num_success``, ``ends_at`` (where episodes end, in words), ``notes`` (remarks for the user).
    """

    def __init__(self, dataset: RobomimicDataset, rule: SuccessRule, horizon: int) -> None:
        self._dataset, recorded = dataset, dataset.recorded(rule.info_key)
        try:
            endings = rule.endings(recorded, horizon)
        except ValueError as error:
            raise DatasetError(f"'{dataset.cfg.path}', {error}") from error
        self._endings = endings.episodes
        self.env_args, self.ends_at = dataset.env_args, endings.ends_at
        self.fps = dataset.fps
        self.num_success = endings.num_success
        self.notes = dataset.notes + ([endings.note] if endings.note else [])

    def __len__(self) -> int:
        return len(self._endings)

    def __iter__(self) -> Iterator[Demo]:
        try:
            for demo, ending in zip(self._dataset.episodes(), self._endings, strict=True):
                yield demo.ended(ending)
        finally:
            self._dataset.close()


def read_demos(
    path: str | Path,
    options: DemoOptions | None = None,
    *,
    rule: SuccessRule,
    cameras: Sequence[str] = (),
    use_state: bool = False,
    num_data: int = -1,
    spec: EnvSpec | None = None,
    keys: Sequence[str] = (),
) -> ReplayDemos:
    """Demonstrations for a replay, read with the same options as for BC.

    Raises DatasetError for faulty files and for demonstrations that ``rule`` refuses; SpecError
    if task, actions or the frames of ``keys`` do not fit a given ``spec``.
    """
    cfg = DatasetConfig(
        **vars(options or DemoOptions()),
        path=str(path),
        rl_camera="+".join(cameras),
        use_state=int(use_state),
        num_data=num_data,
        eval_episode_len=-1,
        boundary_rows=0,  # their actions were not played
        max_ram_gb=0,
    )
    dataset = RobomimicDataset(cfg, rewards=True)
    try:
        if spec is not None:
            dataset.check_frames(spec, keys)
        dataset.check_images_fit()  # the caller keeps the demonstrations that it reads
        return ReplayDemos(dataset, rule, spec.horizon if spec is not None else 0)
    except BaseException:
        dataset.close()
        raise
