"""Build a wheel of the program for each CPython from 3.10 to 3.12 that is found here.

    python -m tools.build_wheels [--out dist] [--python PATH ...]

Needs a checkout, g++, make, and each Python's headers. pip installs the build's own packages
(setuptools, pybind11) into a folder of its own. A wheel runs on machines with the same or a newer C
library. Exit status 0 if every wheel was built.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common_utils.errors import UserError, run_program
from common_utils.options import Options

VERSIONS = ("3.10", "3.11", "3.12")


def version_of(python: str) -> str:
    """``3.11`` of an interpreter; "" if it does not run (a shim of pyenv may not)."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def chosen(paths: Sequence[str]) -> dict[str, str]:
    """Version -> interpreter, of ``paths`` or, without any, of those in PATH; raises UserError."""
    found: dict[str, str] = {}
    for path in paths:
        version = version_of(path)
        if version not in VERSIONS:
            shown = f"of version {version}" if version else "not a Python that runs"
            raise UserError(f"--python: {path} is {shown}, expected one of {', '.join(VERSIONS)}")
        found[version] = path
    if paths:
        return found
    for version in VERSIONS:
        path = shutil.which(f"python{version}") or ""
        if path and version_of(path) == version:
            found[version] = path
        else:
            print(f"CPython {version}: not found in PATH (--python names one that is elsewhere)")
    if not found:
        raise UserError(f"no CPython {' or '.join(VERSIONS)} was found in PATH")
    return found


def build(python: str, out: Path) -> bool:
    """Build the wheel of one interpreter; pip prints what is wrong."""
    pip = [sys.executable, "-m", "pip", "--python", python, "wheel", "-q", "--no-deps"]
    return subprocess.run([*pip, "-w", str(out), str(ROOT)], check=False).returncode == 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = Options(prog="python -m tools.build_wheels", description="Build wheels.")
    options.add_argument("--out", type=Path, default=Path("dist"), help="folder of the wheels")
    options.add_argument(
        "--python", nargs="+", default=[], metavar="PATH", help="the interpreters to build for"
    )
    return options


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit status is described above."""
    args = parser().parse_args(argv)
    if not (ROOT / "setup.py").is_file():
        raise UserError(f"{ROOT} has no setup.py, expected a checkout of the program")
    failed = 0
    for version, python in chosen(args.python).items():
        done = build(python, args.out.absolute())
        print(f"CPython {version}: {'built' if done else 'FAILED'} ({python})", flush=True)
        failed += not done
    for wheel in sorted(args.out.glob("ibrl-*.whl")):
        print(wheel)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
