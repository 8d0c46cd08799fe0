"""``python -m ibrl train-rl ...`` is ``ibrl train-rl ...``."""

from __future__ import annotations

import sys

from ibrl.commands import program

if __name__ == "__main__":
    sys.exit(program())
