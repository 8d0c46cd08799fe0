"""TensorBoard's files, in ``save_dir/tb``. Every run writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common_utils import records
from common_utils.loggers.sink import Sink


class TensorBoard(Sink):
    """Event files; ``common_utils.records`` cuts them back when a run is resumed.

    purge_step: TensorBoard itself skips records from this step on (for states of earlier versions,
    which do not say how long the files were); None: it skips nothing.
    """

    NAME = "TensorBoard"

    def __init__(self, save_dir: Path, purge_step: int | None = None) -> None:
        self._folder, self._purge = str(save_dir / records.EVENTS), purge_step
        self._writer: Any = None

    def open(self, before: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`Sink`."""
        # imported here, because it takes a second and many programs have no logger
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=self._purge)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See :class:`Sink`."""
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def flush(self) -> None:
        """See :class:`Sink`."""
        self._writer.flush()

    def close(self) -> None:
        """See :class:`Sink`."""
        self._writer.close()
