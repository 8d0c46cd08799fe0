"""A trial, by itself: jobs on other machines load this and nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One start of a program; plain values, so that it can be sent to another machine.

    options: as on the command line, without ``--resume``. needs: names of trials that must have
    finished. digest: of the configuration that the options mean. steps: of the whole run. cores:
    that it keeps busy. shape: trials with the same one take the same memory.
    """

    name: str
    program: str
    folder: str
    options: tuple[str, ...]
    seed: int
    group: str
    digest: str
    steps: int
    cores: int = 1
    shape: str = ""
    values: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
