"""The loggers that a configuration can ask for. A new one is a field of RunConfig and a row."""

from __future__ import annotations

from collections.abc import Callable

from common_utils.loggers.sink import RunInfo, Sink
from common_utils.loggers.trackio import TrackioSink
from common_utils.loggers.wandb import WandbSink

# by the field that turns each on; those first that need no network
SINKS: dict[str, Callable[[RunInfo], Sink]] = {"use_trackio": TrackioSink, "use_wb": WandbSink}
