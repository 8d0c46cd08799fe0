"""stress.py under AddressSanitizer with UBSan, and under ThreadSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STRESS = Path(__file__).with_name("stress.py")
SUPPRESSIONS = Path(__file__).with_name("tsan.supp")
CXX = os.environ.get("CXX", "g++")

VARIANTS = {
    "asan": (["libasan.so", "libubsan.so"], {"ASAN_OPTIONS": "detect_leaks=0"}),
    "tsan": (["libtsan.so"], {"TSAN_OPTIONS": f"halt_on_error=1:suppressions={SUPPRESSIONS}"}),
}


def runtime(library: str) -> str:
    """Full path of a sanitizer runtime of the compiler; skips where it has none."""
    found = subprocess.run(
        [CXX, f"-print-file-name={library}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"{CXX} comes without {library}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_stress_is_clean(variant: str, tmp_path: Path) -> None:
    libraries, options = VARIANTS[variant]
    preload = " ".join(runtime(library) for library in libraries)
    # built into common_utils/build, so that only a changed source is compiled again
    build = ["make", "-C", str(ROOT / "common_utils"), "-j2", variant, f"PYTHON={sys.executable}"]
    made = subprocess.run(build, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stdout + made.stderr
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    module = ROOT / "common_utils" / "build" / variant / f"rela{suffix}"
    ran = subprocess.run(
        [sys.executable, str(STRESS), str(module), str(tmp_path)],
        env={**os.environ, **options, "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "stress finished" in ran.stdout
    assert "Sanitizer" not in ran.stderr, ran.stderr


@pytest.mark.slow
def test_sanitizer_would_notice(tmp_path: Path) -> None:
    """The preloaded runtime really reports: a deliberate out-of-bounds read in the same set-up."""
    source = tmp_path / "bad.cc"
    source.write_text('extern "C" int bad(int n) { int* p = new int[4]; return p[n]; }\n')
    library = tmp_path / "bad.so"
    flags = ["-shared", "-fPIC", "-g1", "-fsanitize=address"]
    subprocess.run([CXX, *flags, str(source), "-o", str(library)], check=True)
    code = f"import ctypes; ctypes.CDLL({str(library)!r}).bad(4)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": runtime("libasan.so"), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode != 0
    assert "heap-buffer-overflow" in ran.stderr
