"""Damaged and hostile demonstration files: refused, or read as h5py itself reads them.

Where bytes are damaged that no checksum guards, a number may become another one of its legal range,
which nobody can tell. So what is accepted is compared with what h5py reads of the same file.
"""

from __future__ import annotations

import functools
import json
import os
import random
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import train_rl
from bc.dataset import DatasetConfig, Demo, RobomimicDataset
from common_utils.errors import UserError
from common_utils.robomimic_keys import STATE_DIMS, STATE_KEYS
from common_utils.run_config import parse_args
from common_utils.specs import ArraySpec, EnvSpec
from env.config import EnvConfig
from tests.bc.test_dataset import write_robomimic
from tests.fuzz import damages
from tests.fuzz.case import Case, Trial
from tools import inspect_dataset
from workspace.preload import read_preload
from workspace.rl_config import rl_env_config

KIND = "hdf5"
TASK, CAMERA, LENGTHS = "PickPlaceCan", "agentview", (5, 4)
IMAGES = f"obs/{CAMERA}_image"
KEYS = ("actions", "rewards", "dones", IMAGES, "obs/object", "obs/robot0_eef_pos")
ATTRS = ("num_samples", "stack", "ended", "success", "env_args", "env_info", "env", "total", "x")


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        yield rng.choice([_bytes, _bytes, _args, _changed, _changed])(rng)


# ---------------------------------------------------------------- undamaged files


@functools.cache
def originals() -> dict[str, bytes]:
    """Small files in several of HDF5's own formats."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        plain = write_robomimic(Path(folder) / "plain.hdf5", LENGTHS)
        with h5py.File(plain, "r+") as file:
            file["mask/train"] = np.array([b"demo_0", b"demo_1"])
            for number, length in enumerate(LENGTHS):
                file[f"data/demo_{number}"].attrs["num_samples"] = length
                file[f"data/demo_{number}"].attrs["ended"] = "terminated"
        for name, version, options in (
            ("packed", "earliest", {"compression": "gzip", "shuffle": True, "chunks": True}),
            ("checked", "latest", {"fletcher32": True, "chunks": True}),
            ("lzf", "v110", {"compression": "lzf", "chunks": True}),
        ):
            _repacked(plain, Path(folder) / f"{name}.hdf5", version, options)
        return {path.stem: path.read_bytes() for path in sorted(Path(folder).glob("*.hdf5"))}


prepare = originals


def _repacked(source: Path, target: Path, version: str, options: dict[str, Any]) -> None:
    with h5py.File(source) as old, h5py.File(target, "w", libver=(version, "latest")) as new:

        def copy(key: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                made: Any = new.create_dataset(key, data=item[()], **options)
            else:
                made = new.require_group(key)
            made.attrs.update(item.attrs)

        old.visititems(copy)


# ---------------------------------------------------------------- readers and the oracle


def _bc(path: Path, **options: Any) -> str | None:
    data = RobomimicDataset(DatasetConfig(path=str(path), rl_camera=CAMERA, **options))
    try:
        data.batch_at(np.arange(data.num_steps))
        return wrong(path, data.episodes())
    finally:
        data.close()


def _rl(path: Path, use_state: int) -> str | None:
    cfg, env_cfg, spec = _rl_run(use_state)
    cfg.preload_datapath = str(path)
    return wrong(path, read_preload(cfg, env_cfg, spec, list(spec.observations)))


@functools.cache
def _rl_run(use_state: int) -> tuple[train_rl.MainConfig, EnvConfig, EnvSpec]:
    options = {
        "suite": "robosuite", "task_name": TASK, "use_state": use_state, "rl_camera": CAMERA,
        "preload_num_data": 2, "q_agent.act_method": "rl", "rl_image_size": 8,
    }  # fmt: skip
    cfg = parse_args(train_rl.MainConfig, [f"--{k}={v}" for k, v in options.items()])
    state = ArraySpec((STATE_DIMS[TASK],), "float32")
    seen = {"state": state} if use_state else {CAMERA: ArraySpec((3, 8, 8), "uint8")}
    spec = EnvSpec("robosuite", TASK, seen, 7, 200, () if use_state else (CAMERA,))
    return cfg, rl_env_config(cfg), spec


class ProblemsFound(UserError):
    """What inspect_dataset is there to report."""


def _inspect(path: Path) -> str | None:
    sheet = path.with_name("sheet.png")
    status = inspect_dataset.main([str(path), "--out", str(sheet), "--demos", "2"])
    if status not in (0, 1):
        return f"the status is {status}"
    if status == 1:
        raise ProblemsFound(f"'{path}': problems were found")
    return None


PIXELS: dict[str, Callable[[Path], str | None]] = {
    "bc": _bc,
    "bc, lazily": lambda path: _bc(path, max_ram_gb=0),
    "rl": lambda path: _rl(path, 0),
}
STATES: dict[str, Callable[[Path], str | None]] = {
    "bc states": lambda path: _bc(path, use_state=1),
    "rl states": lambda path: _rl(path, 1),
}
INSPECT: dict[str, Callable[[Path], str | None]] = {"inspect_dataset": _inspect}
READERS = {**PIXELS, **STATES, **INSPECT}


def wrong(path: Path, demos: Iterable[Demo]) -> str | None:
    """What of ``demos`` is not what h5py reads."""
    with h5py.File(path) as file:
        for demo in demos:
            try:
                group = file["data"][demo.name]
                found = _wrong_demo(group, demo, _state_keys(file))
            except Exception as error:
                found = f"h5py cannot read it: {type(error).__name__}: {error}"
            if found:
                return f"{demo.name}: {found}"
    return None


def _state_keys(file: h5py.File) -> tuple[str, ...]:
    args = json.loads(file["data"].attrs.get("env_args", "{}"))
    return tuple(STATE_KEYS.get(args.get("env_name"), ()))


def _wrong_demo(group: h5py.Group, demo: Demo, state_keys: tuple[str, ...]) -> str | None:
    rows = slice(0, len(demo))
    actions = group["actions"][rows].astype(np.float32)
    values = [demo.actions, demo.rewards, *demo.observations.values()]
    if not all(np.isfinite(v).all() for v in values) or not len(demo):
        return "not finite, or nothing"
    if not (_same(demo.actions, actions) or _same(demo.actions, actions.clip(-1, 1))):
        return "actions are others"
    if not _same(demo.rewards, group["rewards"][rows].astype(np.float32)):
        return "rewards are others"
    if CAMERA in demo.observations:
        have, frames = demo.observations[CAMERA], group[IMAGES][rows]
        turned = np.moveaxis(frames, -1, 1)
        options = [f[:, part] for f in (frames, turned) for part in (slice(0, 3), slice(-3, None))]
        if not any(_same(have, f) for f in options):
            return "pictures are others"
    if "state" in demo.observations and "state" not in group["obs"] and state_keys:
        parts = [_newest(group[f"obs/{key}"])[rows].astype(np.float32) for key in state_keys]
        if not _same(demo.observations["state"], np.concatenate(parts, axis=1)):
            return "states are others"
    return None


def _newest(dset: h5py.Dataset) -> np.ndarray:
    values = dset[()]
    return values[:, : values.shape[1] // int(dset.attrs.get("stack", 1))]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def trial(
    name: str,
    write: Callable[[Path], None],
    reader: str,
    must_refuse: bool = False,
) -> Trial:
    """``write`` makes the file at the path it is given."""

    def call(folder: Path) -> str | None:
        path = folder / "d.hdf5"
        write(path)
        said = READERS[reader](path)
        return "was accepted" if said is None and must_refuse else said

    return Trial(f"{name}, read by {reader}", call, names=("d.hdf5", "env_cfg.json", "dataset."))


# ---------------------------------------------------------------- bytes


def _bytes(rng: random.Random) -> Trial:
    name = rng.choice(sorted(originals()))
    said, torn = damages.of_bytes(rng, originals()[name])
    reader = rng.choice(sorted(READERS))
    return trial(f"{name}: {said}", lambda path: void(path.write_bytes(torn)), reader)


def void(_: object) -> None:
    """Drops a result."""


# ---------------------------------------------------------------- env_args


KWARGS = {
    "robots": ["Panda"], "camera_names": [CAMERA], "camera_heights": 8, "camera_widths": 8,
    "controller_configs": {
        "type": "OSC_POSE", "control_delta": True, "kp": 150, "damping_ratio": 1,
        "output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3,
        "body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta", "kp": [1] * 6}},
    },
    "rl_image_size": 8, "render_quality": "full", "hide_velocity": False, "reward_shaping": False,
}  # fmt: skip
ARGS = {"env_name": TASK, "env_version": "1.4.1", "type": 1, "env_kwargs": KWARGS}
SIDES = ("file", "file", "folder", "pipe", "device", "loop", "nothing", "bytes", "deep", "unread")


def _args(rng: random.Random) -> Trial:
    """What the file says of its environment, as an attribute or beside it."""
    said, args = damages.of_value(rng, ARGS)
    if rng.random() < 0.3:
        more, args = damages.of_value(rng, args)
        said += f", {more}"
    side = rng.choice([None, None, *SIDES])
    reader = rng.choice(sorted(READERS))

    def write(path: Path) -> None:
        path.write_bytes(originals()["plain"])
        text = json.dumps(args)
        with h5py.File(path, "r+") as file:
            del file["data"].attrs["env_args"]
            if side is None:
                file["data"].attrs["env_args"] = text
        if side is not None:
            _put_side(path.with_name("env_cfg.json"), side, text)

    return trial(f"env_args in {side or 'an attribute'}: {said}", write, reader)


def _put_side(path: Path, kind: str, text: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "loop", "nothing"):
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "nothing": "gone"}[kind])
    else:
        data = {"bytes": b"\xff\xfe" + text.encode("utf-16"), "deep": b"[" * 10**6}
        path.write_bytes(data.get(kind, text.encode()))
        path.chmod(0 if kind == "unread" else 0o644)


# ---------------------------------------------------------------- objects


@dataclass
class Draft:
    """A file that is being changed."""

    rng: random.Random
    path: Path
    file: h5py.File
    name: str  # of the demonstration
    key: str

    @property
    def place(self) -> str:
        return f"data/{self.name}/{self.key}"

    def values(self) -> np.ndarray:
        return self.file[self.place][()]

    def remove(self) -> None:
        if self.place in self.file:
            del self.file[self.place]


def _attribute(d: Draft) -> None:
    key, owner = d.rng.choice(ATTRS), d.rng.choice(["data", f"data/{d.name}", d.place])
    d.file[owner].attrs[key] = _odd_attribute(d)


def _odd_attribute(d: Draft) -> Any:
    value = d.rng.choice([
        h5py.Empty("f"), h5py.Empty("S3"), "", "5", "terminated", b"\xff\xfe", 5, -1, 0, 2**62,
        5.0, 0.5, np.nan, np.inf, True, 5j, np.array([5, 4]), np.array([]), np.array([[5]]),
        np.array([b"a", b"b"]), np.void(b"x"), np.array([(1, 2.0)], "i4,f4"), np.float16(5),
        d.file["data"].ref, d.file[d.place].regionref[:1], np.bytes_(b"[" * 50_000), "{}",
    ])  # fmt: skip
    return value


def _type(d: Draft) -> None:
    """The same shape, of another type."""
    shape = d.file[d.place].shape
    kind: Any = d.rng.choice([
        "f2", "f4", "f8", ">f8", "<f16", "u1", "u2", "u8", "i1", "i4", ">i4", "i8", "?", "c8", "S4",
        "V3", "i4,f4", "(2,)f4", h5py.ref_dtype, h5py.regionref_dtype, h5py.string_dtype(),
        h5py.vlen_dtype("f4"), h5py.enum_dtype({"A": 0, "B": 1}, basetype="u1"),
    ])  # fmt: skip
    d.remove()
    made = d.file.create_dataset(d.place, shape, kind)
    if made.dtype.kind in "fiu" and d.rng.random() < 0.5:
        made[...] = 1


def _shape(d: Draft) -> None:
    """Another rank, length or width."""
    old = d.file[d.place]
    shape, kind = list(old.shape), old.dtype
    change = d.rng.choice(["more", "less", "flat", "scalar", "none", "axis", "last", "huge"])
    where = d.rng.randrange(len(shape))
    shape = {
        "more": [*shape[:where], shape[where] + 1, *shape[where + 1 :]],
        "less": [*shape[:where], shape[where] - 1, *shape[where + 1 :]],
        "flat": [int(np.prod(shape))], "scalar": [], "none": [0, *shape[1:]],
        "axis": [*shape[:where], 1, *shape[where:]], "last": [*shape[:1], *shape[:0:-1]],
        "huge": [*shape[:where], d.rng.choice([2**20, 2**31, 2**40]), *shape[where + 1 :]],
    }[change]  # fmt: skip
    d.remove()
    chunks = True if change == "huge" else None
    d.file.create_dataset(d.place, shape, kind, chunks=chunks)


def _number(d: Draft) -> None:
    """One number is another."""
    values = d.values()
    number = d.rng.choice([np.nan, np.inf, -np.inf, 1e39, 1e308, -2.0, 1.5, 1.000001, 0.5, 255, 0])
    if values.dtype.kind == "f":
        values.flat[d.rng.randrange(values.size)] = number
    else:
        values.flat[d.rng.randrange(values.size)] = int(np.nan_to_num(number, posinf=7)) % 200
    d.file[d.place][...] = values


def _missing(d: Draft) -> None:
    part = d.rng.choice([d.place, d.place, f"data/{d.name}/obs", f"data/{d.name}", "data"])
    del d.file[part]
    put = d.rng.choice(["", "", "group", "dataset", "type", "null"])
    if put == "group":
        d.file.create_group(part)
    elif put:
        item: Any = {"dataset": 5, "type": np.dtype("f8"), "null": h5py.Empty("f8")}[put]
        d.file[part] = item


def _stray(d: Draft) -> None:
    """More than belongs there."""
    where = d.rng.choice(["/", "data", f"data/{d.name}", f"data/{d.name}/obs", "mask"])
    name: Any = d.rng.choice(["x", "demo_x", "demo_-1", "demo_99999999999999999999", b"\xff\xfe",
                              "demo_\u00e9", "actions", "state", "prop", "step_type", "a\nb\nc\nd",
                              "n" * 3000, "plain_image"])  # fmt: skip
    if isinstance(name, str) and name in d.file[where]:
        del d.file[where][name]
    value: Any = d.rng.choice([5, np.zeros((5, 3)), np.zeros((4, 3, 8, 8), np.uint8), np.nan,
                               h5py.Empty("f"), h5py.SoftLink("/data"), h5py.SoftLink("/gone"),
                               d.file["data"], np.array([b"demo_0", b"\xff"]),
                               np.full(5, 2)])  # fmt: skip
    d.file[where][name] = value


def _soft_links(d: Draft) -> None:
    """To nothing, in a circle, or to something else."""
    place = d.rng.choice([d.place, f"data/{d.name}"])
    del d.file[place]
    target = d.rng.choice([place, ".", "/", "gone", f"/{place}/x", "/data/demo_0", "/data/demo_1",
                           "../" * 50, "x/" * 5000, "/data/demo_0/actions", "\u00e9"])  # fmt: skip
    d.file[place] = h5py.SoftLink(target)


def _outside(d: Draft) -> None:
    """A link into another file, or into what only looks like one."""
    place = d.rng.choice([d.place, f"data/{d.name}"])
    del d.file[place]
    (d.path.parent / "text.txt").write_text("no HDF5")
    (d.path.parent / "torn.hdf5").write_bytes(originals()["plain"][:900])
    (d.path.parent / "whole.hdf5").write_bytes(originals()["packed"])
    os.mkfifo(d.path.parent / "pipe")
    target = d.rng.choice(["pipe", "text.txt", "torn.hdf5", "whole.hdf5", "/dev/zero", ".", "gone",
                           "d.hdf5", "/proc/self/mem", "/dev/stdin", "a" * 300, "%s"])  # fmt: skip
    d.file[place] = h5py.ExternalLink(target, d.rng.choice([place, "/", "gone"]))


def _external(d: Draft) -> bool:
    """Numbers that lie in any path of the machine."""
    old = d.file[d.place]
    shape, kind = old.shape, old.dtype
    size = int(np.prod(shape)) * kind.itemsize
    d.remove()
    os.mkfifo(d.path.parent / "pipe")
    (d.path.parent / "raw.bin").write_bytes(bytes(size))
    target = d.rng.choice(["pipe", "raw.bin", "/dev/zero", "/dev/urandom", "gone", "/etc/passwd"])
    d.file.create_dataset(d.place, shape, kind, external=[(target, 0, size)])
    return True


def _virtual(d: Draft) -> bool:
    """Put together from what is absent, or from itself."""
    old = d.file[d.place]
    shape, kind = old.shape, old.dtype
    target = d.rng.choice(["gone.hdf5", "pipe", "/dev/zero", ".", "text.txt"])
    os.mkfifo(d.path.parent / "pipe")
    (d.path.parent / "text.txt").write_text("no HDF5")
    layout = h5py.VirtualLayout(shape, kind)
    layout[:] = h5py.VirtualSource(target, d.rng.choice([d.place, "gone"]), shape)[:]
    if target == "." and d.rng.random() < 0.5:  # a part that is missing
        layout = h5py.VirtualLayout(shape, kind)
        layout[:1] = h5py.VirtualSource(".", f"data/{d.name}/copy", shape)[:1]
        d.file[f"data/{d.name}/copy"] = old[()]
    d.remove()
    d.file.create_virtual_dataset(d.place, layout)
    return True


def _bomb(d: Draft) -> bool:
    """Little in the file, very much in memory."""
    kind, length = d.file[d.place].dtype, len(d.file[d.place])
    tail = list(d.file[d.place].shape[1:])
    d.remove()
    more = d.rng.choice([2**26, 2**30, 2**36])
    shape = d.rng.choice([(length, more // length), (more, *tail), (length, 3, 2**14, 2**14)])
    packing = d.rng.choice([{}, {"compression": "gzip"}, {"compression": "lzf"}])
    chunks = tuple(max(1, min(n, 2**9)) for n in shape)
    d.file.create_dataset(d.place, shape, kind, chunks=chunks, **packing)
    return True


def _packed_bomb(d: Draft) -> bool:
    """A chunk whose packed bytes give far more than it declares, or are packed many times."""
    old = d.file[d.place]
    shape, kind = old.shape, old.dtype
    d.remove()
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(shape)
    times = d.rng.choice([1, 2, 3])
    for _ in range(times):
        plan.set_deflate(9)
    space, name = h5py.h5s.create_simple(shape), d.place.encode()
    made = h5py.h5d.create(d.file.id, name, h5py.h5t.py_create(kind), space, dcpl=plan)
    made.write_direct_chunk((0,) * len(shape), _packed(times))
    return True


@functools.cache
def _packed(times: int) -> bytes:
    """Zeros, packed that many times."""
    packer, parts = zlib.compressobj(9), []
    for _ in range(16):  # MiB
        parts.append(packer.compress(bytes(2**20)))
    data = b"".join([*parts, packer.flush()])
    for _ in range(times - 1):
        data = zlib.compress(data, 9)
    return data


def _pictures(d: Draft) -> None:
    """Channels last, stacked in whichever order, or of another size."""
    frames = d.file[f"data/{d.name}/{IMAGES}"][()]
    frames = d.rng.choice([
        lambda: frames.transpose(0, 2, 3, 1), lambda: np.repeat(frames, 2, axis=1),
        lambda: np.repeat(frames, 3, axis=3), lambda: frames[:, :, :, :3], lambda: frames[:, :1],
        lambda: frames[:, :, :3, :3], lambda: frames[..., :0], lambda: frames * 0,
        lambda: np.concatenate([frames, frames[:, ::-1]], axis=1),
        lambda: np.concatenate([frames, np.roll(frames, 1, axis=0)], axis=1),
    ])()  # fmt: skip
    demos = [d.name] if d.rng.random() < 0.5 else ["demo_0", "demo_1"]
    for name in demos:
        key = f"data/{name}/{IMAGES}"
        del d.file[key]
        d.file[key] = frames[:4] if name == "demo_1" else frames
        if d.rng.random() < 0.3:
            d.file[key].attrs["stack"] = d.rng.choice([1, 2, 3, 8, 0])


def _names(d: Draft) -> None:
    """Demonstrations of other names."""
    new = d.rng.choice(["episode", "traj 1", "demo", "demo_01", "1", "\u00e9", "Demo_0", b"\xff"])
    data = d.file["data"]
    if d.rng.random() < 0.5:
        data.move("demo_1", "other_1")
        data.move("demo_0", "other_0")
        d.name = "other_0"
    data[new] = data[d.name]
    if d.rng.random() < 0.5:
        del data[d.name]


CHANGES: tuple[Callable[[Draft], bool | None], ...] = (
    *(_attribute, _attribute, _type, _shape, _number, _missing, _stray, _soft_links, _outside),
    *(_external, _virtual, _bomb, _packed_bomb, _pictures, _names),
)
# what demands a refusal is put where the reader looks
LOOKED_AT = {
    "actions": (*PIXELS, *STATES, *INSPECT), "rewards": (*PIXELS, *STATES, *INSPECT),
    IMAGES: (*PIXELS, *INSPECT), "obs/object": (*STATES, *INSPECT),
}  # fmt: skip


def _changed(rng: random.Random) -> Trial:
    """A file that HDF5 wrote, of something else."""
    change, own = rng.choice(CHANGES), random.Random(rng.random())
    strict = change in (_external, _virtual, _bomb, _packed_bomb)
    key = rng.choice(sorted(LOOKED_AT) if strict else KEYS)
    reader = rng.choice(LOOKED_AT[key] if strict else sorted(READERS))
    base = rng.choice(sorted(originals()))
    name = rng.choice(["demo_0", "demo_1"])

    def write(path: Path) -> None:
        path.write_bytes(originals()[base])
        with h5py.File(path, "r+") as file:
            change(Draft(own, path, file, name, key))

    return trial(f"{base}: {change.__name__[1:]} at {name}/{key}", write, reader, strict)
