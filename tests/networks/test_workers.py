"""csrc/workers.h under AddressSanitizer with UBSan, and under ThreadSanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.replay.test_sanitizers import CXX, runtime

SOURCE = Path(__file__).with_name("workers_stress.cc")
# a child forked from a process with threads is what is tested
VARIANTS = {
    "thread": ("libtsan.so", {"TSAN_OPTIONS": "die_after_fork=0"}),
    "address,undefined": ("libasan.so", {"ASAN_OPTIONS": "detect_leaks=0"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", VARIANTS)
def test_stress_is_clean(sanitizer: str, tmp_path: Path) -> None:
    library, options = VARIANTS[sanitizer]
    runtime(library)
    program = str(tmp_path / "stress")
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"]
    build = [CXX, *flags, f"-fsanitize={sanitizer}", str(SOURCE), "-o", program]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    ran = subprocess.run(
        [program], env={**os.environ, **options}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0 and ran.stdout == "good\n", ran.stdout + ran.stderr
