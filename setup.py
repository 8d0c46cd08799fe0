"""What pyproject.toml cannot say: common_utils/Makefile builds the C++ modules, and a wheel has
the configurations of ``release/cfgs`` inside ``common_utils`` (see common_utils/paths.py).

``pip install -e .`` builds the modules in the checkout, as ``cd common_utils && make`` does. Those
of a wheel are linked elsewhere, so that the ones of the checkout stay as they are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODULES = ("rela", "kernels", "ebm_kernels", "osc")


class MakeModules(build_ext):
    """Calls make once for all modules."""

    def run(self) -> None:
        command = ["make", "-s", "-C", str(ROOT / "common_utils"), f"PYTHON={sys.executable}"]
        if not self.inplace:
            folder = Path(self.build_lib, "common_utils").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            command.append(f"DEST={folder}")
        try:
            done = subprocess.run(command, check=False)
        except FileNotFoundError:
            raise SystemExit("make is missing (Debian/Ubuntu: apt install make g++)") from None
        if done.returncode:
            raise SystemExit("the C++ modules did not build (see above)")


class WithConfigurations(build_py):
    """Copies release/cfgs into a wheel; an editable installation reads the checkout's."""

    def run(self) -> None:
        if not self.editable_mode:  # or files that are no longer in the checkout would be installed
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib, "common_utils", "release", "cfgs")
            shutil.copytree(ROOT / "release" / "cfgs", inside, dirs_exist_ok=True)


setup(
    ext_modules=[Extension(f"common_utils.{name}", sources=[]) for name in MODULES],
    # the default, build/, would hold a second copy of the sources where people and tools search
    options={"build": {"build_base": ".cache/package"}},
    cmdclass={"build_ext": MakeModules, "build_py": WithConfigurations},
)
