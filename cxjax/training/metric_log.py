"""The rows of a run: JSON lines, TensorBoard event files, a progress bar.

Of several processes the first alone writes and shows them.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
import tqdm

from cxjax import files
from cxjax.parallel import multihost

Row = dict[str, Any]


def read(folder: pathlib.Path) -> list[Row]:
  """The rows of `FOLDER/metrics.jsonl`, up to the first that is damaged."""
  path = folder / 'metrics.jsonl'
  rows = []
  if path.exists():
    for line in path.read_text(errors='replace').splitlines():
      try:
        row = json.loads(line)
      except ValueError:
        break
      if not isinstance(row, dict) or not isinstance(row.get('step'), int):
        break
      rows.append(row)
  return rows


class MetricLog:
  """Writes rows; one row per logging step, none twice."""

  def __init__(self, folder: pathlib.Path, step: int, title: str):
    """Opens the journal of a run that goes on after `step` updates.

    Args:
      folder: of the run.
      step: rows after it are dropped: the run is about to write them again.
      title: of the progress bar.
    """
    self.rows = [row for row in read(folder) if row['step'] <= step]
    text = ''.join(json.dumps(row) + '\n' for row in self.rows)
    path = folder / 'metrics.jsonl'
    files.write_text(path, text)
    self._files: Any = None
    if multihost.is_first():
      with files.written(folder):
        self._files = path.open('a'), _Events(folder / 'tensorboard', step)
    # A terminal gets a moving bar, a log file a line now and then.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    self._bar = tqdm.tqdm(
      desc=title,
      initial=step,
      unit='step',
      mininterval=interval,
      disable=not self._files,
    )

  def __enter__(self) -> 'MetricLog':
    """The journal itself."""
    return self

  def __exit__(self, *exception) -> None:
    """Closes the files and the bar."""
    for file in self._files or ():
      # Every row was flushed: what cannot be written was said then.
      with contextlib.suppress(OSError):
        file.close()
    self._bar.close()

  def expect(self, total: int) -> None:
    """Sets the number of steps at which the bar is full."""
    self._bar.total = total
    self._bar.refresh()

  def sync(self) -> int:
    """Puts the rows on the disk for good; how many there are."""
    if self._files:
      lines, _ = self._files
      with files.written(lines.name):
        os.fsync(lines.fileno())
    return len(self.rows)

  def write(self, row: Row) -> None:
    """Appends a row and shows it.

    Args:
      row: `step`, `stage`, and numbers or lists of numbers over the seeds.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    self.rows.append(row)
    if self._files:
      lines, events = self._files
      with files.written(lines.name):
        lines.write(json.dumps(row) + '\n')
        lines.flush()
        events.write(row)
    self._bar.set_postfix_str(_summary(row), refresh=False)
    self._bar.update(row['step'] - self._bar.n)


class _Events:
  """A TensorBoard event file.

  Not tensorboardX's SummaryWriter: on a full disk its thread dies with a
  traceback, and the run goes on.
  """

  def __init__(self, folder: pathlib.Path, step: int):
    # These import torch, where there is one: two seconds.
    from tensorboardX import event_file_writer
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    self._file = event_file_writer.EventsWriter(str(folder / 'events'))
    self._event, self._scalar = event_pb2.Event, summary.scalar
    # TensorBoard drops what another process wrote of later steps.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step + 1, session_log=start)
    self._flushed = time.monotonic()

  def _add(self, step, **what):
    event = self._event(step=step, wall_time=time.time(), **what)
    self._file.write_event(event)

  def write(self, row: Row) -> None:
    """Adds the numbers of a row, lists as their means."""
    for name, value in row.items():
      if name not in ('step', 'stage'):
        self._add(row['step'], summary=self._scalar(name, np.mean(value)))
    if time.monotonic() - self._flushed > 10:  # Seconds; it waits for the disk.
      self._file.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._file.close()


def _summary(row: Row) -> str:
  text = f'{row["stage"]}, loss {row["loss"]:.3g}'
  found = [name for name in row if name.startswith('eval/')]
  if found:
    name = found[0].removeprefix('eval/')
    text += f', {name} {np.mean(row[found[0]]):.3f}'
  return text


def evaluations(
  rows: Sequence[Row], metric: str = 'accuracy'
) -> Iterator[tuple[int, list[float]]]:
  """`(step, metric of each seed)` of the evaluation rows."""
  for row in rows:
    if f'eval/{metric}' in row:
      yield row['step'], row[f'eval/{metric}']


def steps_to(rows: list[Row], accuracy: float) -> list[int | None]:
  """First step at which each seed is at `accuracy`, None where it never is."""
  first: list[int | None] = []
  for step, values in evaluations(rows):
    first = first or [None] * len(values)
    first = [
      step if f is None and v >= accuracy else f
      for f, v in zip(first, values, strict=True)
    ]
  return first
