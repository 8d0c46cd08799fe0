"""What a generator of hostile cases gives, and what may become of one.

A generator is a module of this package with

    KIND: str                                             its name on the command line
    def cases(rng: random.Random) -> Iterator[Case]       endless, drawn from rng alone

and, where preparing takes time or memory, ``def prepare() -> None``, called once before the
children are forked. The n-th case of a seed is the first of ``cases(generator_of(seed, KIND, n))``,
so that each can be repeated alone. A case runs in a forked child with a limit on time and memory:
there a hang or the child's death is noticed, everything else is what :meth:`Case.run` returns or
raises.
"""

from __future__ import annotations

import os
import random
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from common_utils.errors import UserError

MAX_LINES = 3  # of a message


class Verdict(Enum):
    """What became of a case; everything after REFUSED is a fault."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    TRACEBACK = "tracebacks"  # another exception, or a message that names nothing or is long
    HANG = "hangs"
    CRASH = "crashes"
    SILENT = "silent acceptances"  # accepted, and not what the undamaged original holds

    @property
    def is_fault(self) -> bool:
        return self not in (Verdict.ACCEPTED, Verdict.REFUSED)


@dataclass(frozen=True)
class Outcome:
    """The verdict, what was said or went wrong, and what else is to be summed up of all cases."""

    verdict: Verdict
    detail: str = ""
    numbers: dict[str, int] = field(default_factory=dict)


class Case(Protocol):
    """One thing to try: ``name`` says in a line what it is."""

    name: str

    def run(self) -> Outcome: ...


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder to work in: what a relative path of a case makes goes away with the case."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


@dataclass(frozen=True)
class Trial:
    """A case that is a call, in a scratch folder of its own.

    call: returns None if all is well, or text that says what was accepted and is wrong.
    refusals: the exceptions by which it may refuse.
    names: one of these must be in the message (of up to three lines); none: any message is fine.
    """

    name: str
    call: Callable[[Path], str | None]
    refusals: tuple[type[BaseException], ...] = (UserError,)
    names: Sequence[str] = ()

    def run(self) -> Outcome:
        with scratch_folder() as folder:
            try:
                wrong = self.call(folder)
            except self.refusals as error:
                return judge_message(str(error), self.names)
            except Exception as error:
                return Outcome(Verdict.TRACEBACK, brief(error))
        if wrong is not None:
            return Outcome(Verdict.SILENT, wrong)
        return Outcome(Verdict.ACCEPTED)


def judge_message(text: str, names: Sequence[str] = ()) -> Outcome:
    """A refusal, if its message is short and names the file or field."""
    if len(text.splitlines()) > MAX_LINES:
        return Outcome(Verdict.TRACEBACK, f"a message of {len(text.splitlines())} lines: {text}")
    if not text.strip() or (names and not any(name in text for name in names)):
        return Outcome(Verdict.TRACEBACK, f"the message names none of {list(names)}: {text!r}")
    return Outcome(Verdict.REFUSED, text)


def brief(error: BaseException) -> str:
    """The exception, and the innermost lines of ours that it came through."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    text = (str(error).splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {text} ({' < '.join(reversed(frames[-6:]))})"


def generator_of(seed: int, kind: str, number: int) -> random.Random:
    """The generator of one case."""
    return random.Random(f"{seed}/{kind}/{number}")
