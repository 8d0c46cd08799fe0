"""argparse command lines whose numbers have ranges, like the fields of configs.

A mistake is reported in one line that names the option, its value and what was expected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from common_utils.config_types import Mismatch, coerce, expectation
from common_utils.errors import USER_ERROR


def numeric(kind: Any) -> Callable[[str], Any]:
    """An ``add_argument(type=)`` function for a type of ``common_utils.ranges``, or ``Flag``."""

    def read(text: str) -> Any:
        try:
            value = float(text) if kind is float or not _is_integer(text) else int(text)
            return coerce(value, kind)
        except (Mismatch, ValueError) as error:
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            reason = error if isinstance(error, Mismatch) else ""
            raise argparse.ArgumentTypeError(
                f"expected {expectation(kind)}{reason}, got '{shown}'"
            ) from None

    return read


def _is_integer(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()


class Options(argparse.ArgumentParser):
    """An ArgumentParser that reports mistakes in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit status 2."""
        print(f"error: {message.removeprefix('argument ')}", file=sys.stderr)
        raise SystemExit(USER_ERROR)
