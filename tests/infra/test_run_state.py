from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common_utils import run_state, seeding
from common_utils.run_state import (
    GracefulStop,
    RunState,
    StateError,
    fitting,
    latest_state,
    load_latest,
    load_state,
    save_state,
    tidy,
    verify_state,
)

ROOT = Path(__file__).parents[2]


class Big:
    """Stands for the replay: writes its own files."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def save(self, path: Path) -> None:
        (path / "sub").mkdir()
        (path / "sub" / "steps.bin").write_bytes(self.text.encode())


def _names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def test_tree_round_trip_keeps_values_types_and_bits(tmp_path: Path) -> None:
    tree = {
        "w": torch.randn(3, 2),
        "half": torch.randn(4).bfloat16(),
        "arrays": {
            "u16": np.arange(4, dtype=np.uint16).reshape(2, 2),
            "f64": np.random.default_rng(0).random(3),
            "strided": np.arange(10)[::3],
            "empty": np.zeros((0, 3), np.float32),
            "scalar": np.array(3, np.int8),
            "flags": np.array([True, False]),
        },
        "list": [1, 2.5, "x", None, True, b"y", (1, 2)],
        "np_scalar": np.float32(0.5),
        "nan": float("nan"),
        "big": 2**127 + 1,
        3: "int key",
    }
    path = save_state(tmp_path, 5, tree)
    back = load_state(path)
    assert back.step == 5
    got = back.tree
    assert torch.equal(got["w"], tree["w"])
    assert torch.equal(got["half"], tree["half"])
    for name, want in tree["arrays"].items():
        have = got["arrays"][name]
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        assert np.array_equal(have, want)
        assert have.flags.writeable
    assert got["list"] == tree["list"]
    assert (got["np_scalar"], got["big"], got[3]) == (0.5, 2**127 + 1, "int key")
    assert got["nan"] != got["nan"]


def test_optimiser_and_generators_resume_exactly(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    opt = torch.optim.Adam(net.parameters())
    rng = np.random.default_rng(4)

    def step() -> None:
        x = torch.from_numpy(rng.random((4, 3)).astype(np.float32)) + torch.rand(4, 3)
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()

    def tree() -> dict:
        return {
            "net": net.state_dict(),
            "opt": opt.state_dict(),
            "rng": seeding.generator_state(rng),
            "global": seeding.global_rng_state(),
        }

    step()
    path = save_state(tmp_path, 1, tree())
    step()
    want = {k: v.clone() for k, v in net.state_dict().items()}
    saved = load_state(path).tree
    net.load_state_dict(saved["net"])
    opt.load_state_dict(saved["opt"])
    seeding.set_generator_state(rng, saved["rng"])
    seeding.set_global_rng_state(saved["global"])
    step()
    assert all(torch.equal(v, want[k]) for k, v in net.state_dict().items())


def test_parts_write_themselves(tmp_path: Path) -> None:
    path = save_state(tmp_path, 1, {}, parts={"replay": Big("hello")})
    state = load_state(path)
    assert (state.part("replay") / "sub" / "steps.bin").read_text() == "hello"
    with pytest.raises(StateError, match="no part 'bc_replay'"):
        state.part("bc_replay")


def test_the_newest_and_those_before_it_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 30, 100):
        save_state(tmp_path, step, {"s": step}, keep=2)
    assert _names(tmp_path) == ["step_000000020", "step_000000030", "step_000000100"]
    assert latest_state(tmp_path) == tmp_path / "step_000000100"
    save_state(tmp_path, 200, {})
    assert _names(tmp_path) == ["step_000000100", "step_000000200"]


def test_there_is_a_state_to_fall_back_to_whatever_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        save_state(tmp_path, step, {"s": step})
    _flip_a_byte(tmp_path / "step_000000002" / "tree.pt")
    save_state(tmp_path, 3, {"s": 3})  # must not count the damaged one as something to keep
    _flip_a_byte(tmp_path / "step_000000003" / "tree.pt")
    with pytest.warns(UserWarning, match="trying the state before it"):
        state = load_latest(tmp_path)
    assert state is not None and state.tree == {"s": 1}


def test_the_same_step_again_is_the_newer_state(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        newest = save_state(tmp_path, 1, {"s": text})
    assert _names(tmp_path) == ["step_000000001_1", "step_000000001_2"]
    assert latest_state(tmp_path) == newest
    assert (load_state(newest).step, load_state(newest).tree) == (1, {"s": "third"})


def test_nothing_there(tmp_path: Path) -> None:
    assert latest_state(tmp_path / "absent") is None
    assert latest_state(tmp_path) is None
    with pytest.raises(StateError, match="no complete state here"):
        load_state(tmp_path / "step_000000001")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: (p / "tree.pt").unlink(), "tree.pt is missing"),
        (lambda p: (p / "tree.pt").write_bytes(b"x"), "tree.pt has 1 bytes, expected"),
        (lambda p: _flip_a_byte(p / "tree.pt"), "checksum of tree.pt"),
        (lambda p: _flip_a_byte(p / "parts/replay/sub/steps.bin"), "checksum of parts/replay"),
        (lambda p: (p / "COMPLETE").unlink(), r"no complete state here \(no COMPLETE marker"),
        (lambda p: _replace(p / "COMPLETE", os.mkdir), "COMPLETE is not an ordinary file"),
        (lambda p: _replace(p / "COMPLETE", os.mkfifo), "COMPLETE is not an ordinary file"),
        (lambda p: _replace(p / "COMPLETE", _link_to_nowhere), "COMPLETE is not an ordinary file"),
        (lambda p: _replace(p, Path.touch), r"no complete state here \(no COMPLETE marker"),
        (lambda p: _replace(p, _link_to_nowhere), r"no complete state here \(no COMPLETE marker"),
        (lambda p: (p / "COMPLETE").write_text("{"), "COMPLETE cannot be read"),
        (lambda p: (p / "COMPLETE").write_text("[]"), "COMPLETE cannot be read"),
        (lambda p: (p / "COMPLETE").write_bytes(b"\xff\xfe{"), "COMPLETE cannot be read"),
        (lambda p: (p / "COMPLETE").write_text("[" * 100_000), "COMPLETE cannot be read"),
        (lambda p: _edit(p, '"bytes"', '"bytfs"'), "COMPLETE cannot be read"),
        (lambda p: _edit(p, '"files"', '"filfs"'), "COMPLETE cannot be read"),
        (lambda p: _edit(p, '"step": ', '"step": 1'), "COMPLETE says step"),
        (lambda p: _edit(p, '"step": ', '"step": -'), "not a valid number"),
        (lambda p: _edit(p, '"bytes": ', '"bytes": true, "x": '), "not a valid number"),
        (lambda p: _edit(p, '"crc32": ', '"crc32": "7", "x": '), "not a valid number"),
        (lambda p: _edit(p, "tree.pt", "trfe.pt"), "does not list tree.pt"),
        (lambda p: _edit(p, "parts/replay", "parts/" + "n" * 300), "cannot be read: File name"),
        (lambda p: _edit(p, "parts/replay", "parts/\\ud800"), "steps.bin|cannot be read"),
        (lambda p: _edit(p, "parts/replay", "parts/\\u0000"), "steps.bin|cannot be read"),
    ],
)
def test_damage_is_named_and_the_state_before_is_used(
    tmp_path: Path, harm: object, message: str
) -> None:
    for step in (1, 2):
        save_state(tmp_path, step, {"s": step}, parts={"replay": Big("hello")}, keep=2)
    harm(tmp_path / "step_000000002")  # type: ignore[operator]
    with pytest.raises(StateError, match=message):
        load_state(tmp_path / "step_000000002")
    with pytest.warns(UserWarning, match="trying the state before it"):
        assert latest_state(tmp_path) == tmp_path / "step_000000001"
    harm(tmp_path / "step_000000001")  # type: ignore[operator]
    with pytest.warns(UserWarning, match=message), pytest.raises(StateError, match="no usable"):
        latest_state(tmp_path)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def _link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _edit(state: Path, old: str, new: str) -> None:
    marker = state / "COMPLETE"
    assert old in marker.read_text()
    marker.write_text(marker.read_text().replace(old, new))


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_strays_among_the_states_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    half = tmp_path / "step_000000009"
    half.mkdir()
    (half / "tree.pt").write_text("half")
    (tmp_path / "step_000000010").write_text("a file")
    (tmp_path / "step_000000011").symlink_to("nowhere")
    (tmp_path / "step_x").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 9):
        save_state(tmp_path, step, {"s": step})
    tidy(tmp_path)
    with pytest.warns(UserWarning, match="step_00000001[01]: no complete state here"):
        assert latest_state(tmp_path) == tmp_path / "step_000000009_1"
    assert (half / "tree.pt").exists() and (tmp_path / "notes.txt").exists()
    (tmp_path / "file").write_text("no folder")
    assert latest_state(tmp_path / "file") is None


def test_what_dead_writers_left_goes(tmp_path: Path) -> None:
    save_state(tmp_path, 1, {})
    (tmp_path / ".tmp_step_7_12345_abc" / "parts").mkdir(parents=True)
    (tmp_path / ".tmp_step_foo").mkdir()
    (tmp_path / ".tmp_step_").write_text("a file")
    latest_state(tmp_path)  # reading leaves alone what somebody may be writing
    assert len(_names(tmp_path)) == 4
    tidy(tmp_path)
    assert _names(tmp_path) == ["step_000000001"]
    tidy(tmp_path / "absent")


def test_a_state_set_aside_by_an_earlier_version_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path, 1, {"s": 1})
    (tmp_path / "step_000000001").rename(tmp_path / ".old_step_000000001")
    tidy(tmp_path)
    path = latest_state(tmp_path)
    assert path is not None
    assert load_state(path).tree == {"s": 1}
    (tmp_path / ".old_step_000000001").mkdir()
    tidy(tmp_path)
    assert _names(tmp_path) == ["step_000000001"]


def test_a_tree_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    """Files may be as they were written and still be nothing that a state holds."""
    save_state(tmp_path, 1, {"s": 1})
    path = save_state(tmp_path, 2, {"s": 2})
    with open(path / "tree.pt", "wb") as handle:
        torch.save([1, 2], handle)
    (path / "COMPLETE").unlink()
    run_state._write_marker(path, 2)
    with pytest.raises(StateError, match=r"tree\.pt cannot be read \(TypeError\)"):
        load_state(path)
    (path / "tree.pt").write_bytes(b"no torch file")
    (path / "COMPLETE").unlink()
    run_state._write_marker(path, 2)
    with pytest.warns(UserWarning, match="tree.pt cannot be read"):
        state = load_latest(tmp_path)
    assert state is not None and state.step == 1
    assert latest_state(tmp_path) == path  # its files are whole


def test_a_state_of_something_else_is_an_error_in_one_line(tmp_path: Path) -> None:
    state = RunState(1, {}, tmp_path)
    for error in (KeyError("counters"), TypeError("a\nb"), RuntimeError("size mismatch\nfor x")):
        with pytest.raises(StateError) as error, fitting(state):
            raise error
        assert "does not fit this run" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(StateError, match="no part"), fitting(state):
        state.part("replay")


def test_the_folders_own_entry_is_forced_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not take the first state with the folder it lies in."""
    forced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        forced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    save_state(tmp_path / "exps" / "run" / "state", 1, {})
    for folder in (tmp_path, tmp_path / "exps", tmp_path / "exps/run", tmp_path / "exps/run/state"):
        assert str(folder) in forced


def test_a_failing_part_leaves_the_old_state_alone(tmp_path: Path) -> None:
    class Broken:
        def save(self, path: Path) -> None:
            (path / "x").write_text("x")
            raise OSError("no space left on device")

    save_state(tmp_path, 1, {"s": 1})
    with pytest.raises(OSError, match="no space"):
        save_state(tmp_path, 2, {}, parts={"replay": Broken()})
    assert _names(tmp_path) == ["step_000000001"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": [1, object()]}}, r"tree\.a\.b\[1\]: cannot save a object"),
        ({"a": {(1, 2): 3}}, r"tree\.a: keys must be"),
        ({"a": np.array(["x"])}, "dtype <U1"),
        ({"net": torch.nn.Linear(1, 1)}, "use its state_dict"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, tree: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path, 1, tree)
    assert _names(tmp_path) == []


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep 0"):
        save_state(tmp_path, 1, {}, keep=0)


_WRITER = """
import sys, torch
from pathlib import Path
from common_utils.run_state import save_state
class Slow:
    def save(self, path):
        with open(path / "steps.bin", "wb") as f:
            for i in range(40):
                f.write(bytes([i]) * 50_000); f.flush()
step = 0
while True:
    step += 1
    save_state(sys.argv[1], step, {"w": torch.full((1000,), float(step))}, parts={"r": Slow()})
    print(step, flush=True)
"""


def test_sigkill_while_writing_never_costs_more_than_the_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "1\n"
        time.sleep(float(rng.random()) * 0.3)
        writer.send_signal(signal.SIGKILL)
        done = [1, *(int(line) for line in writer.stdout)]
        writer.wait()
        path = latest_state(tmp_path)
        assert path is not None
        state = load_state(path)
        assert state.step >= done[-1]
        assert torch.equal(state.tree["w"], torch.full((1000,), float(state.step)))
        assert verify_state(path) == state.step
        # the next start clears what this one left
        tidy(tmp_path)
        assert [n for n in _names(tmp_path) if n.startswith(".")] == []
        assert len(_names(tmp_path)) <= 2
        for left in tmp_path.iterdir():
            run_state.shutil.rmtree(left)


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """Also where the tests themselves run under nohup, which their programs would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_graceful_stop_sets_the_flag_once_and_restores(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_name == name
    assert signal.getsignal(number) is before


def test_other_signals_that_follow_do_not_cut_the_saving_short() -> None:
    with GracefulStop() as stop:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):  # as at a logout
            os.kill(os.getpid(), number)
        assert stop.signal_name == "SIGHUP"


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


CLOSED = """
import os, sys, time
from common_utils.run_state import GracefulStop
with GracefulStop() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    open(sys.argv[1], "w").write(stop.signal_name)
    raise SystemExit("state saved")
"""


def test_a_closed_terminal_saves_and_leaves(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", CLOSED, str(tmp_path / "saved")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert (tmp_path / "saved").read_text() == "SIGHUP"


def test_second_interrupt_acts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_twice() -> None:
    with pytest.raises(KeyboardInterrupt), GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
