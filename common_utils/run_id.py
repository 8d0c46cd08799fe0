"""The random id of a run: written in its folder and in each of its states.

States are named after their steps, so one that was copied from another run of the same kind looks
like the folder's own. Its id shows the difference. A whole folder may be copied or moved: the id
goes with it. Runs of earlier versions have no id, and get none.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from common_utils import records
from common_utils.atomic import atomic_write
from common_utils.plain_file import read_id
from common_utils.run_state import RunState, StateError

ID_FILE = "run_id.txt"
ENTRY = "run_id"  # of a saved state
_SHOWN = 8  # characters of an id in a message


def new_id() -> str:
    """An id that no other run has: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def take_id(folder: Path, state: RunState) -> str:
    """Removes the id from ``state`` and returns it; "" if the state has none.

    Raises StateError if the state is not of the run in ``folder``. A folder whose id was lost is
    not refused: nothing else would be wrong with it.
    """
    theirs = str(state.tree.pop(ENTRY, None) or "")
    mine = read_id(folder / ID_FILE)
    if mine and mine != theirs:
        raise StateError(
            f"{state.path}: belongs to another run (id {_short(theirs)}) than '{folder}' "
            f"({ID_FILE}: {_short(mine)}); remove it to continue from the state before it, or copy "
            "the whole folder of the other run and continue there"
        )
    return theirs


def write_id(folder: Path, run_id: str) -> str:
    """Give ``folder`` its id; returns a note if another thing was in its place, else ""."""
    path, note = folder / ID_FILE, ""
    before = read_id(path)
    if before == run_id:
        return note
    if os.path.lexists(path) and not before:
        note = f"{path}: holds no id; it is kept as {records.set_aside(path).name}"
    with atomic_write(path, "w") as handle:
        handle.write(f"{run_id}\n")
    return note


def _short(run_id: str) -> str:
    return run_id[:_SHOWN] or "none"
