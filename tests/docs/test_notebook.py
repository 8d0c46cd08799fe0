"""The notebook runs from top to bottom, from the repository root and from its own folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

REPO = Path(__file__).resolve().parents[2]
NOTEBOOK = REPO / "docs" / "notebooks" / "q_agent.ipynb"


def kernel_of_this_python(folder: Path) -> AsyncKernelManager:
    """ipykernel in the running interpreter, whatever kernels are (or aren't) registered here."""
    spec = folder / "here"
    spec.mkdir()
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "here", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    specs = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name="here", kernel_spec_manager=specs)


@pytest.mark.parametrize("folder", [REPO, NOTEBOOK.parent], ids=["root", "its folder"])
def test_notebook_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its own folder as far as the imports: what comes later depends on no folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the notebook finds the repository itself
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if folder != REPO:
        first = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code")
        del notebook.cells[first + 1 :]
        assert "from rl.q_agent import QAgent" in notebook.cells[first].source
    client = NotebookClient(
        notebook,
        km=kernel_of_this_python(tmp_path),
        timeout=300,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == (3 if folder == REPO else 0)
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o["text"] for o in outputs if o.get("name") == "stderr"]


def test_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert code
    assert all(not c.outputs and c.execution_count is None for c in code)
