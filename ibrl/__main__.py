"""``python -m ibrl train-rl ...`` is ``ibrl train-rl ...``."""

from __future__ import annotations

import sys

from common_utils.errors import run_program
from ibrl.commands import main

if __name__ == "__main__":
    sys.exit(run_program(main))
