"""Becomes a program that is asked to end when the process that started it ends, however that ends.

Its arguments: the process id of its parent, the program, its options.

A trial must not go on unseen when its sweep or its cluster's node is killed: the next start would
find its folder in use. SIGTERM lets it save its state. The setting survives ``exec``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before this was set
        raise SystemExit(128 + signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, *program])


if __name__ == "__main__":
    main()
