"""``python -m common_utils.doctor``: what is installed here, and how to fix each problem.

Exit status 0 if states can be trained on (Python, torch, the C++ module, a simulator);
1 if not. Rendering and CUDA are extras. ``--json`` prints the same as a list of records.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from common_utils.errors import run_program
from common_utils.extras import how_to_build, how_to_install
from common_utils.native_output import silenced
from common_utils.paths import IS_CHECKOUT
from common_utils.version import __version__

ROOT = Path(__file__).resolve().parents[1]
OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``status``: ok, note (works without), problem (core unusable)."""

    name: str
    status: str
    found: str
    advice: str = ""


def check_program() -> Finding:
    return Finding("ibrl", OK, f"{__version__} ({ROOT})")


def check_python() -> Finding:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding("Python", OK, f"{version} ({sys.executable})")
    advice = "use Python 3.10 to 3.12: deactivate this environment, then source set_env.sh"
    return Finding("Python", PROBLEM, version, advice)


def _package(name: str, module: str, required: bool, advice: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
        with silenced():  # pybullet announces its build
            importlib.import_module(module)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, PROBLEM if required else NOTE, "not installed", advice)
    except Exception as error:  # a broken installation may raise anything
        found = f"{version}, but importing it fails: {error}"
        return Finding(name, PROBLEM if required else NOTE, found, advice)
    return Finding(name, OK, version)


def check_packages() -> list[Finding]:
    needed = {
        "train": ("numpy", "torch", "gymnasium", "h5py", "pyrallis", "rich"),
        "sim": ("mujoco", "metaworld"),
    }
    found = [
        _package(name, name, True, how_to_install(extra))
        for extra, names in needed.items()
        for name in names
    ]
    extra = "optional, for block pushing: pip install pybullet (no wheels from Python 3.12 on)"
    found.append(_package("pybullet", "pybullet", False, extra))
    return found


def _installed_names() -> list[str]:
    """Top-level names of the program as an installed package; none if it is not installed."""
    try:
        return (importlib.metadata.distribution("ibrl").read_text("top_level.txt") or "").split()
    except importlib.metadata.PackageNotFoundError:
        return []


def check_names() -> Finding:
    """The program's packages have plain names, which another installed package may have too."""
    own = _installed_names()
    owners = importlib.metadata.packages_distributions()
    taken = [f"{n} ({', '.join(sorted(set(owners[n]) - {'ibrl'}))})" for n in own
             if set(owners.get(n, ())) - {"ibrl"}]  # fmt: skip
    if not taken:
        return Finding("Names of packages", OK, "no other package has one of the program's")
    found = f"also in other packages, whose files may have replaced ours: {', '.join(taken)}"
    return Finding("Names of packages", PROBLEM, found, "install the program alone, in a new venv")


def _run_program(text: str) -> subprocess.CompletedProcess[str]:
    """Run Python text in a process of its own, in which the repository can be imported."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MUJOCO_GL": "disabled"}
    command = [sys.executable, "-c", text]
    return subprocess.run(
        command, env=os.environ | more, capture_output=True, text=True, timeout=300
    )


_ROBOSUITE_PROGRAM = """
import numpy as np
from env.config import EnvConfig
from env.factory import make_env
env = make_env(EnvConfig(suite="robosuite", task="Lift", use_state=1))
env.reset(seed=0)
env.step(np.zeros(7))
print("a step of Lift works")
"""


def check_robosuite() -> Finding:
    """Takes a step of Lift from states, in a separate process."""
    name, advice = "robosuite", f"for the robomimic tasks: {how_to_install('sim')}"
    try:
        version = importlib.metadata.version("robosuite")
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, NOTE, "not installed", advice)
    try:
        done = _run_program(_ROBOSUITE_PROGRAM)
    except subprocess.TimeoutExpired:
        return Finding(name, NOTE, f"{version}, but Lift does not start in 300 s", advice)
    if done.returncode == 0:
        return Finding(name, OK, f"{version}: {done.stdout.strip()}")
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Finding(name, NOTE, f"{version}, but {last}", advice)


def check_cuda() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("CUDA", NOTE, "unknown without torch")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        what = (
            f"torch is built for CUDA {built}, but sees no GPU" if built else "CPU build of torch"
        )
        return Finding("CUDA", NOTE, what, "fine for states; pixels train faster on a GPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("CUDA", OK, f"{torch.version.cuda}: {', '.join(names)}")


def check_compiler() -> Finding:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return Finding("C++ compiler", NOTE, f"no {compiler}", "apt-get install g++ make")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return Finding("C++ compiler", OK, (version.stdout.splitlines() or [compiler])[0])


def check_replay_core() -> Finding:
    advice = how_to_build()
    try:
        module = importlib.import_module("common_utils.rela")
    except ImportError as error:
        return Finding("C++ replay core", PROBLEM, f"not usable: {error}", advice)
    built = Path(str(module.__file__))
    newer = [p.name for p in (ROOT / "csrc").glob("*") if p.stat().st_mtime > built.stat().st_mtime]
    if newer:
        found = f"older than {', '.join(sorted(newer))}"
        return Finding("C++ replay core", NOTE, found, advice)
    return Finding("C++ replay core", OK, built.name)


def check_kernels() -> list[Finding]:
    """The C++ modules that only save time; without them everything is slower but works."""
    parts = (
        ("C++ kernels", "kernels", "plain torch takes", "for faster training"),
        ("C++ energy networks", "ebm_kernels", "plain torch takes", "Implicit BC at full speed"),
        (
            "C++ control loop",
            "osc",
            "robosuite's own in Python takes",
            "steps in a third of the time",
        ),
    )
    findings = []
    for name, module, instead, gain in parts:
        try:
            built = importlib.import_module(f"common_utils.{module}")
        except ImportError as error:
            found = f"not usable, {instead} its place: {error}"
            findings.append(Finding(name, NOTE, found, f"{gain}: {how_to_build()}"))
            continue
        isa = f" ({built.isa()})" if hasattr(built, "isa") else ""
        findings.append(Finding(name, OK, f"{Path(str(built.__file__)).name}{isa}"))
    return findings


_PRODUCTS_PROGRAM = """
from networks.fast import keep_freed_memory, measure
keep_freed_memory()
print("\\n".join(measure.report()))
"""


def check_matrix_products() -> Finding:
    """Measures who multiplies matrices fastest, or reads what was measured earlier."""
    name = "Matrix products"
    done = _run_program(_PRODUCTS_PROGRAM)
    if done.returncode == 0:
        return Finding(name, OK, done.stdout.strip())
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Finding(name, PROBLEM, f"measuring them fails: {last}", "source set_env.sh")


def check_rendering() -> Finding:
    """Renders a real image with each back end, each in a separate process."""
    from common_utils import gl

    tried = {backend: gl.probe(backend) for backend in ("egl", "osmesa")}
    working = [b for b, (ok, _) in tried.items() if ok]
    chosen = os.environ.get("MUJOCO_GL", "")
    found = "; ".join(message for _, message in tried.values())
    if not working:
        return Finding(
            "GL rendering",
            NOTE,
            found,
            f"states work, pixels and videos do not: sudo {gl.APT_LINE}, then source set_env.sh",
        )
    if chosen not in working:
        set_now = f"MUJOCO_GL={chosen}" if chosen else "MUJOCO_GL is not set"
        return Finding(
            "GL rendering", NOTE, f"{found} ({set_now})", f"export MUJOCO_GL={working[0]}"
        )
    return Finding("GL rendering", OK, f"{found} (MUJOCO_GL={chosen})")


def check_resources() -> list[Finding]:
    from common_utils.resources import available_disk, available_memory, format_bytes

    memory, disk = available_memory(), available_disk(ROOT)
    low_memory, low_disk = memory < 4 << 30, disk < 5 << 30
    return [
        Finding(
            "Memory",
            NOTE if low_memory else OK,
            f"{format_bytes(memory)} available, {os.cpu_count()} CPUs",
            "pixel runs may need a smaller replay_buffer_size" if low_memory else "",
        ),
        Finding(
            "Disk",
            NOTE if low_disk else OK,
            f"{format_bytes(disk)} free at {ROOT}",
            "checkpoints of pixel runs may not fit" if low_disk else "",
        ),
    ]


def check_shell() -> list[Finding]:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    paths = [Path(p).resolve() for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    advice = "source set_env.sh in this shell" if IS_CHECKOUT else "export OMP_NUM_THREADS=1"
    found = "has the repository" if ROOT in paths else "lacks the repository"
    if _installed_names():
        found += " (not needed: the program is installed)"
    importable = bool(ROOT in paths or _installed_names())
    return [
        Finding(
            "OMP_NUM_THREADS",
            OK if threads == "1" else NOTE,
            threads or "not set",
            ""
            if threads == "1"
            else f"{advice}: more threads slow small networks and workers down",
        ),
        Finding(
            "PYTHONPATH",
            OK if importable else NOTE,
            found,
            "" if importable else advice,
        ),
    ]


def examine() -> list[Finding]:
    """All findings; a check that fails unexpectedly becomes a problem itself."""
    checks: list[Callable[[], Finding | list[Finding]]] = [
        check_program,
        check_python,
        check_packages,
        check_names,
        check_cuda,
        check_compiler,
        check_replay_core,
        check_kernels,
        check_matrix_products,
        check_robosuite,
        check_rendering,
        check_resources,
        check_shell,
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            result = check()
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            text = f"the check failed: {type(error).__name__}: {error}"
            result = Finding(name, PROBLEM, text, "source set_env.sh")
        findings += result if isinstance(result, list) else [result]
    return findings


def report(findings: list[Finding]) -> None:
    """Print the findings as a table, then the problems as sentences."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        for f in findings:
            print(f"{f.status:8} {f.name}: {f.found}{' -> ' + f.advice if f.advice else ''}")
        return
    table = Table(title="What was found")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    colour = {OK: "green", NOTE: "yellow", PROBLEM: "red"}
    for f in findings:
        status = Text(f.status, style=colour[f.status])
        table.add_row(status, Text(f.name), Text(f.found), Text(f.advice))
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common_utils.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a list of records")
    args = parser.parse_args(argv)
    findings = examine()
    usable = all(f.status != PROBLEM for f in findings)
    if args.json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
        return 0 if usable else 1
    report(findings)
    if usable:
        renders = any(f.name == "GL rendering" and f.status == OK for f in findings)
        print(f"States {'and pixels ' if renders else ''}can be trained on here.")
    else:
        print("Not usable yet: " + "; ".join(f.name for f in findings if f.status == PROBLEM))
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(run_program(main))
