"""``python -m env_server``."""

import sys

from .program import program

if __name__ == "__main__":
    sys.exit(program())
