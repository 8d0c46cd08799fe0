"""Paths as people write them: with ``~`` for the home folder, or relative.

A relative path in a configuration file is looked up next to that file, then in the working
directory, then in the program's folder (which holds ``release/``). On the command line it is looked
up in the working directory only, except that ``--config_path release/cfgs/x.yaml`` names the
program's own configuration where the working directory has no such file. A path that is found
becomes absolute, so that the configuration that a run saves names the same files from anywhere. A
path that is not found stays as written, for the error message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

_HERE = Path(__file__).resolve().parent
IS_CHECKOUT = (_HERE.parent / "release").is_dir()
# the folder with release/: the checkout; in an installed copy this package (setup.py puts it here)
REPO = _HERE.parent if IS_CHECKOUT else _HERE
RELEASED = REPO / "release" / "cfgs"
"""The configurations that come with the program."""


class _Input:
    """Marks the type of fields that name an input file."""

    def __init__(self, joined: bool = False, folder: bool = False) -> None:
        self.joined, self.folder = joined, folder


InputFile = Annotated[str, _Input()]
InputFiles = Annotated[str, _Input(joined=True)]
"""Several input files, joined by "+"."""
InputData = Annotated[str, _Input(folder=True)]
"""A file, or a folder that is one input as a whole."""


def is_input(kind: Any) -> bool:
    """Whether a field of this type names an input file (or several)."""
    return any(isinstance(mark, _Input) for mark in get_args(kind)[1:])


def expand_home(text: str) -> str:
    """``~/x`` with the home folder filled in; anything without ``~`` in front unchanged.

    Raises ValueError for another user's home folder (``~name/x``) and if no home folder is known,
    because a folder called ``~name`` or ``~`` is never meant.
    """
    if not text.startswith("~"):
        return text
    if not re.match(r"~(/|$)", text):
        raise ValueError(
            f"'{text}', expected a path without '{text.partition('/')[0]}': only '~' alone, your "
            "own home folder, is filled in"
        )
    if (path := os.path.expanduser(text)) == text:
        raise ValueError(f"'{text}', expected a path without '~': no home folder is known (HOME)")
    return path


def expand_home_in_options(args: Sequence[str]) -> list[str]:
    """The same for ``--option=~/x``, which shells do not expand, and ``'~/x'``.

    Raises ValueError, naming the option.
    """
    out = []
    for before, arg in zip(["", *args], args, strict=False):
        option = re.match(r"--[\w.-]+=", arg)
        start = option.end() if option else 0
        named = option[0].rstrip("=") if option else before if before.startswith("--") else ""
        try:
            out.append(arg[:start] + expand_home(arg[start:]))
        except ValueError as error:
            raise ValueError(f"{named}: {error}" if named else str(error)) from None
    return out


def split_paths(text: str, exists: Callable[[str], bool] = os.path.isfile) -> list[str]:
    """Split ``a.pt+b.pt`` into its paths; a "+" in the name of an existing file is part of it."""
    parts, paths = text.split("+"), []
    while parts:
        lengths = range(len(parts), 0, -1)
        length = next((n for n in lengths if exists("+".join(parts[:n]))), 1)
        paths.append("+".join(parts[:length]))
        parts = parts[length:]
    return paths


def locate(
    text: str, folders: Sequence[Path], exists: Callable[[str], bool] = os.path.isfile
) -> str:
    """Absolute path of the file in the first of ``folders`` that has it, else ``text`` itself.

    exists: what else than a file may be found. Raises ValueError as :func:`expand_home` does.
    """
    text = expand_home(text)
    if not text or "\0" in text:
        return text
    for folder in folders:
        path = os.path.abspath(folder / text)
        if exists(path):
            return path
    return text


def locate_input(text: str, kind: Any, folders: Sequence[Path]) -> str:
    """:func:`locate` for a field of type ``kind``, which may hold several paths."""
    marks = [mark for mark in get_args(kind)[1:] if isinstance(mark, _Input)]
    if not any(mark.joined for mark in marks):
        folder = any(mark.folder for mark in marks)
        return locate(text, folders, os.path.exists if folder else os.path.isfile)

    def exists(part: str) -> bool:
        return os.path.isfile(locate(part, folders))

    return "+".join(locate(part, folders) for part in split_paths(text, exists))


def beside(path: str | os.PathLike[str]) -> list[Path]:
    """The folders in which files named in the configuration file ``path`` are looked up."""
    return [Path(path).absolute().parent, Path.cwd(), REPO]


def config_file(text: str) -> str:
    """``text``, or the program's own ``release/cfgs/...`` if the working directory lacks that.

    Raises ValueError if ``~`` has no meaning.
    """
    path = expand_home(text)
    if not path.startswith("release/cfgs/") or os.path.lexists(path):
        return path
    return locate(path, [REPO])


def cache_folder() -> Path:
    """The user's folder of things that are measured once per machine; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "ibrl"


def same_input(before: str, now: str) -> bool:
    """Whether both name the same file or, if ``before`` is gone, a file of the same name. A file
    that is gone is the same by the same path, absolute in ``before``; ``now`` may be several.
    """
    if "+".join(map(os.path.abspath, split_paths(now))) == before:
        return True
    if not os.path.exists(now):
        return False
    if os.path.exists(before):
        return os.path.samefile(before, now)
    return os.path.basename(before) == os.path.basename(now)
