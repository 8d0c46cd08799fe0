"""HDF5 files on disks that fill up at any moment."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from common_utils.h5_write import atomic_h5

REPO = Path(__file__).resolve().parents[2]


def fill(file: h5py.File) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        group = file.create_group(f"group_{i}")
        group["a"] = rng.random(500)
        group["b"] = rng.integers(0, 255, (7, 3, 8, 8), dtype=np.uint8)
        group.attrs["text"] = "x" * 9000


def test_the_same_file_as_the_librarys_own(tmp_path):
    with atomic_h5(tmp_path / "a.h5") as file:
        fill(file)
        assert file["group_3/a"][0] == file["group_3"]["a"][()][0]  # readable while open
    with h5py.File(tmp_path / "b.h5", "w") as file:
        fill(file)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert list(a) == list(b) and len(a) == 20
        for name in b:
            for key in ("a", "b"):
                np.testing.assert_array_equal(a[name][key], b[name][key])
            assert a[name].attrs["text"] == b[name].attrs["text"]


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.h5"
    with atomic_h5(path) as file:
        file["a"] = 1
    with pytest.raises(KeyError, match="mine"), atomic_h5(path) as file:
        file["a"] = 2
        raise KeyError("mine")
    with h5py.File(path) as file:
        assert file["a"][()] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_no_write_that_fails_is_overlooked_or_crashes(tmp_path):
    """Each limit in a separate process, which the HDF5 library might take down."""
    script = (
        "import resource, sys\n"
        "from common_utils.h5_write import atomic_h5\n"
        "from tests.infra.test_h5_write import fill\n"
        "for limit in (0, 90, 1000, 3000, 10_000, 50_000, 100_000, 200_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        with atomic_h5(sys.argv[1] + '/a.h5') as file:\n"
        "            fill(file)\n"
        "    except OSError as error:\n"
        "        print(limit, error.errno, error.filename, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=REPO, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = [line.split() for line in done.stdout.splitlines()]
    assert [int(limit) for limit, *_ in printed] == [
        0,
        90,
        1000,
        3000,
        10_000,
        50_000,
        100_000,
        200_000,
    ]
    assert {tuple(rest) for _, *rest in printed} == {(str(errno.EFBIG), f"{tmp_path}/a.h5")}
    assert not list(tmp_path.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
