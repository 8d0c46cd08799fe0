from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common_utils.resources import (
    Need,
    ResourceError,
    available_disk,
    available_memory,
    check_fits,
    cpu_name,
    format_bytes,
)

GIB = 1 << 30


def _machine(tmp_path: Path, cgroup: str, free_gib: float = 8) -> dict[str, str]:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {int(free_gib * 2**20)} kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    (tmp_path / "cg").mkdir()
    return {"cgroup": str(tmp_path / "cg"), "proc": str(proc)}


def _group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_machine_without_limits(tmp_path: Path) -> None:
    where = _machine(tmp_path, "0::/\n")
    _group(tmp_path / "cg", memory__max="max", memory__current=5)
    assert available_memory(**where) == 8 * GIB


def test_the_tightest_enclosing_group_counts_and_page_cache_is_free(tmp_path: Path) -> None:
    where = _machine(tmp_path, "0::/job/step\n")
    _group(tmp_path / "cg/job", memory__max=4 * GIB, memory__current=3 * GIB)
    (tmp_path / "cg/job/memory.stat").write_text(f"anon 1\ninactive_file {GIB}\n")
    _group(tmp_path / "cg/job/step", memory__max="max", memory__current=1)
    assert available_memory(**where) == 2 * GIB


def test_version_one_groups(tmp_path: Path) -> None:
    where = _machine(tmp_path, "5:cpu:/x\n3:memory:/docker/ab\n")
    _group(
        tmp_path / "cg/memory",  # the host's path is not visible inside the container
        memory__limit_in_bytes=3 * GIB,
        memory__usage_in_bytes=GIB,
    )
    assert available_memory(**where) == 2 * GIB


def test_this_machine_has_something() -> None:
    assert available_memory() > 1 << 26
    assert available_disk("not/there/yet") > 1 << 20


def test_a_run_that_fits_says_what_it_takes(tmp_path: Path) -> None:
    lines = check_fits(
        {"replay": Need(1 << 20, "replay_buffer_size")}, {"state": 3 << 10}, tmp_path
    )
    assert lines[0].startswith("memory: replay 1.0 MiB; ")
    assert lines[1].startswith(f"disk ({tmp_path}): state 3.0 KiB; ")


def test_a_run_that_cannot_fit_names_the_field_to_lower(tmp_path: Path) -> None:
    huge = {"networks": Need(1 << 20), "replay": Need(1 << 50, "replay_buffer_size")}
    with pytest.raises(ResourceError, match=r"1024\.0 TiB of memory.*lower replay_buffer_size"):
        check_fits(huge)
    with pytest.raises(ResourceError, match="of disk"):
        check_fits({}, {"state": 1 << 60}, tmp_path)


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")]
)
def test_format_bytes(n: int, text: str) -> None:
    assert format_bytes(n) == text


def test_the_cpu_is_named_with_its_family_and_model() -> None:
    # "AMD EPYC" alone is the name of CPUs with AVX-512 and of others without, and measurements of
    # one are kept for that CPU
    said = subprocess.run(
        ["lscpu"], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
    )
    rows = (line.partition(":") for line in said.stdout.splitlines())
    lscpu = {name.strip(): value.strip() for name, _, value in rows}
    assert cpu_name() == (
        f"{lscpu['Model name']} (family {lscpu['CPU family']}, model {lscpu['Model']})"
    )
