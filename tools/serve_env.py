"""Offer an environment to a trainer in another process or on another machine (docs/remote.md).

    python -m tools.serve_env --env my_robot:make_env --name peg --port 8765

``my_robot.make_env()`` returns a ``gymnasium.Env``, or an environment of this project. It is used
in the main thread. A person ends an episode as success or failure on the page at port + 1, or by
typing s or f and Enter here. A robot needs only the folder ``tools/env_server``, see there.
"""

from __future__ import annotations

import sys

from common_utils.errors import UserError, run_program
from common_utils.extras import how_to_install, missing_package

MISSING = ""
try:
    from tools.env_server.messages import ServeError
    from tools.env_server.program import parser as parser
    from tools.env_server.program import run
except ModuleNotFoundError as error:  # said when it is used, not when it is imported
    if not (MISSING := missing_package(error)):
        raise


def main() -> int:
    """Entry point; returns the exit status."""
    if MISSING:
        raise UserError(
            f"the package '{MISSING}' is not installed; expected what this installs: "
            f"{how_to_install('serve')}"
        )
    try:
        run()
    except ServeError as error:
        raise UserError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
