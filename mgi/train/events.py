"""The rows of metrics.csv as TensorBoard events, written while a run is under way."""

import shutil
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

FOLDER = "events"


class Events:
    """Event files of a run: one for each time that it was started, those of an earlier run removed.

    Parameters
    ----------
    folder : Path
        The run's folder.
    step : int
        Where the run goes on from a saved state, so that what is there is kept; 0 where it starts anew.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder / FOLDER, step
        self._writer: EventsWriter | None = None
        if step == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, row: dict[str, float]) -> None:
        """Write a row of the history, each value under its name, at the row's `step`."""
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"), f".{self._step}")
        for name, value in row.items():
            if name != "step":
                self._writer.write_event(
                    Event(wall_time=time.time(), step=int(row["step"]), summary=scalar(name, value))
                )
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
