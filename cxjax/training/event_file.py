"""The event file of a run, which TensorBoard shows as curves."""

import math
import os
import pathlib
import socket
import time
from typing import Any

import numpy as np

from cxjax import types


class EventFile:
  """The means of the numbers of each record, for TensorBoard.

  Not a SummaryWriter: the thread of one dies of a full disk with a traceback
  while the run goes on.
  """

  def __init__(self, folder: pathlib.Path, step: int) -> None:
    """Begins a file of a run that starts or resumes.

    Args:
      folder: the folder of the event files.
      step: number of updates so far.

    Raises:
      OSError: the file cannot be written.
    """
    # Slow to import.
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.summary.writer import record_writer

    folder.mkdir(parents=True, exist_ok=True)
    now, host = f'{int(time.time()):010d}', socket.gethostname()
    path = folder / f'events.out.tfevents.{now}.{host}.{os.getpid()}'
    self._file = path.open('ab')  # A run that is resumed at once has the name.
    self._records = record_writer.RecordWriter(self._file)
    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    self._add(0, file_version='brain.Event:2')
    # TensorBoard drops the later steps that another process wrote.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step + 1, session_log=start)
    self._flushed = time.monotonic()

  def _add(self, step: int, **content: Any) -> None:
    event = self._event(step=step, wall_time=time.time(), **content)
    self._records.write(event.SerializeToString())

  def write(self, record: types.Record) -> None:
    """Adds the numbers of a record, lists as their means."""
    values = []
    for name, value in record.items():
      if name in ('step', 'stage'):
        continue
      scope, _, term = name.partition('/')
      if scope == 'loss':  # The losses of two stages have different units.
        name = '/'.join(filter(None, (scope, record['stage'], term)))
      mean = float(np.mean(value))
      if math.isfinite(mean):  # Of a student that diverged there is no curve.
        values.append(self._summary.Value(tag=name, simple_value=mean))
    if values:
      self._add(record['step'], summary=self._summary(value=values))
    # Flushing waits for the disk, so that it is not done for every record.
    if time.monotonic() - self._flushed > 10:  # Seconds.
      self._records.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._records.close()
