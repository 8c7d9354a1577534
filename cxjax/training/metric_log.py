"""The metrics of a run: JSON lines, TensorBoard event files and progress.

In a run of several processes, the first process writes and shows them.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import copy
import hashlib
import itertools
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import tqdm

from cxjax import errors
from cxjax import files
from cxjax import streams
from cxjax import tables
from cxjax import types
from cxjax.parallel import multihost
from cxjax.training import event_file

OnRecord = Callable[[types.Record], Any]

# Seconds between two updates of a progress bar, and between two lines of a log.
BAR_INTERVAL, LINE_INTERVAL = 0.2, 10.0
# Forms of a progress bar and of a line of a log, from the longest: the first
# that fits is used, with the whole title or with its last part.
BAR_FORMATS = (
  '{desc} {bar} {n_fmt}/{total_fmt} {elapsed}<{remaining} {rate_fmt}{postfix}',
  '{desc} {bar} {n_fmt}/{total_fmt} {remaining} left{postfix}',
  '{desc} {n_fmt}/{total_fmt}{postfix}',
)
LINE_FORMATS = (
  '{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} '
  '[{elapsed}<{remaining}, {rate_fmt}{postfix}]',
  '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]',
  '{desc}: {n_fmt}/{total_fmt} [{remaining} left{postfix}]',
  '{desc}: {n_fmt}/{total_fmt}{postfix}',
)


def read(folder: pathlib.Path) -> list[types.Record]:
  """Reads `FOLDER/metrics.jsonl`, up to the first line that is damaged.

  Args:
    folder: the folder of the run.

  Returns:
    The records; none if there is no file.

  Raises:
    UserError: the file cannot be read, or is no file.
  """
  path = folder / 'metrics.jsonl'
  records: list[types.Record] = []
  try:
    text = files.read_text(path, on_error='replace')
  except FileNotFoundError:
    return records
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error}). Restore it, or remove it to make its '
      'records again.'
    ) from error
  for line in text.splitlines():
    try:
      record = files.parse_json(line)
    except ValueError:
      break
    if not isinstance(record, dict) or not isinstance(record.get('step'), int):
      break
    records.append(record)
  return records


def digest_records(records: Sequence[types.Record]) -> dict[str, Any]:
  """Returns the number of records, and the SHA-256 of their lines in order."""
  text = ''.join(map(_line, records))
  return {
    'records': len(records),
    'records_sha256': hashlib.sha256(text.encode()).hexdigest(),
  }


def fault(
  folder: pathlib.Path,
  records: Sequence[types.Record],
  expected: Mapping[str, Any],
) -> str | None:
  """Compares the records of a run with the digest that was saved of them.

  Args:
    folder: the folder of the run.
    records: its records, up to the time of the digest.
    expected: JSON values with those of `digest_records`; without 'records'
      there is nothing to compare.

  Returns:
    The fault of metrics.jsonl, as text, or None.
  """
  if 'records' not in expected:
    return None
  path, number = folder / 'metrics.jsonl', expected['records']
  if 'records_sha256' not in expected:
    return f'it has no digest of the records in {path}'
  found = digest_records(records)
  if found['records'] < number:
    return f'{path} lacks some of its {number} records'
  if found['records'] > number:
    return f'{path} has more than its {number} records'
  if found['records_sha256'] != expected['records_sha256']:
    return f'{path} was edited: its records are not those that were written'
  return None


def evaluations(
  records: Sequence[types.Record], metric: str
) -> Iterator[tuple[int, list[float]]]:
  """Yields `(step, values)` of a held-out metric, with a value per seed."""
  for record in records:
    if f'eval/{metric}' in record:
      yield record['step'], record[f'eval/{metric}']


def steps_to(
  records: Sequence[types.Record],
  metric: str,
  threshold: float,
  higher_is_better: bool = True,
) -> list[int | None]:
  """Finds the first evaluation at which each seed reaches a threshold.

  Args:
    records: the records of a run.
    metric: name of a held-out metric.
    threshold: the value to reach.
    higher_is_better: whether values above the threshold reach it; otherwise
      values below do.

  Returns:
    A step per seed, None for a seed that never reaches the threshold.
  """
  sign = 1 if higher_is_better else -1
  first: list[int | None] = []
  for step, values in evaluations(records, metric):
    first = first or [None] * len(values)
    first = [
      step if found is None and sign * value >= sign * threshold else found
      for found, value in zip(first, values, strict=True)
    ]
  return first


class MetricLog:
  """Writes the records of a run, one per logging step.

  A context manager; leaving it closes the files.

  Attributes:
    records: the lines of metrics.jsonl.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    step: int,
    title: str,
    primary: str,
    on_record: OnRecord | None = None,
    temporary: bool = False,
  ) -> None:
    """Opens the log of a run that starts or resumes at `step`.

    Args:
      folder: the folder of the run.
      step: number of updates so far; later records are dropped, since the run
        is about to write them again.
      title: title of the progress bar.
      primary: name of the held-out metric that the progress bar shows.
      on_record: called in the first process with a copy of every new record,
        once it is written.
      temporary: whether the folder is removed after the run; nobody looks at
        its curves in TensorBoard, which are not written.

    Raises:
      UserError: the folder cannot be written.
    """
    self.records = [one for one in read(folder) if one['step'] <= step]
    self._primary, self._on_record = primary, on_record
    self._digest = hashlib.sha256(''.join(map(_line, self.records)).encode())
    path = folder / 'metrics.jsonl'
    files.write_text(path, ''.join(map(_line, self.records)))
    self._files: list[Any] = []
    self._step = step
    self._refused: errors.UserError | None = None
    if multihost.is_first():
      try:
        self._open(folder, step, temporary)
      except errors.UserError as error:
        if not files.is_forbidden(error):
          raise
        self._refused = error  # A finished run writes nothing.
    self._progress = _Progress(title, step, shown=bool(self._files))

  def _open(self, folder: pathlib.Path, step: int, temporary: bool) -> None:
    with files.written(folder):
      if not temporary:
        opened = event_file.EventFile(folder / 'tensorboard', step)
        self._files.append(opened)
      lines = (folder / 'metrics.jsonl').open('a', encoding='utf-8')
      self._files.append(lines)

  def __enter__(self) -> 'MetricLog':
    """Returns the log."""
    return self

  def __exit__(self, *error: Any) -> None:
    """Closes the files and the progress bar."""
    for file in self._files:
      # Every line was flushed, and a disk that is full was reported then.
      with contextlib.suppress(OSError):
        file.close()
    self._progress.close()

  def digest_records(self) -> dict[str, Any]:
    """Returns the result of `digest_records` for the records so far."""
    digest = self._digest.hexdigest()
    return {'records': len(self.records), 'records_sha256': digest}

  def expect(self, total: int) -> None:
    """Sets the number of steps at which the progress bar is full.

    Args:
      total: the last step of the run, as far as is known.

    Raises:
      UserError: there are steps to come, and the folder cannot be written.
    """
    if self._refused is not None and self._step < total:
      raise self._refused
    self._progress.expect(total)

  def write(self, record: types.Record) -> None:
    """Appends a record, shows it and passes it on.

    Args:
      record: 'step', 'stage', 'loss', and other numbers or lists of a number
        per seed.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    self.records.append(record)
    self._digest.update(_line(record).encode())
    if self._files:
      *events, lines = self._files
      with files.written(lines.name):
        lines.write(_line(record))
        lines.flush()
        for file in events:
          file.write(record)
    self._progress.update(record['step'], self._summary(record))
    if self._files and self._on_record is not None:
      self._on_record(copy.deepcopy(record))

  def _summary(self, record: types.Record) -> str:
    """Returns the loss, the primary metric and the stage of a record."""
    parts = [f'loss {record["loss"]:.3g}']
    values = record.get(f'eval/{self._primary}')
    if values is not None:
      name = 'held-out' if self._primary == 'loss' else self._primary
      parts.append(f'{name} {np.mean(values):.4g}')
    return ', '.join([*parts, record['stage']])


def _line(record: types.Record) -> str:
  return json.dumps(record) + '\n'


class _Progress:
  """A progress bar on a terminal; in a log file, a line every 10 seconds."""

  def __init__(self, title: str, step: int, shown: bool) -> None:
    # A program without a console may have no stderr, or one that knows little.
    shown = shown and streams.is_usable(sys.stderr)
    self._terminal = shown and streams.is_terminal(sys.stderr)
    self._bar = tqdm.tqdm(
      desc=title,
      # A terminal that is closed meanwhile, or a stdout that is, ends no run.
      file=streams.Tolerant(sys.stderr),
      initial=step,
      unit='',
      unit_scale=True,
      bar_format=BAR_FORMATS[0],
      dynamic_ncols=True,
      mininterval=BAR_INTERVAL,
      disable=not self._terminal,
    )
    self._title, self._step, self._begin = title, step, step
    self._total: int | None = None
    self._shown = shown
    self._started = self._printed = time.monotonic()
    self._postfix = ''  # Of the record that no line has shown yet.
    self._choice = 0  # Number of the format and title.

  def expect(self, total: int) -> None:
    self._total = self._bar.total = total
    self._bar.refresh()

  def update(self, step: int, postfix: str) -> None:
    self._bar.set_postfix_str(postfix, refresh=False)
    if self._terminal:
      self._fit_bar()
    self._bar.update(step - self._step)
    self._step, self._postfix = step, postfix
    if time.monotonic() - self._printed >= LINE_INTERVAL:
      self._print()

  def close(self) -> None:
    self._bar.close()
    self._print()

  def _print(self) -> None:
    """Prints a line with the last record, unless a bar shows it."""
    if self._terminal or not self._shown or not self._postfix:
      return
    elapsed = time.monotonic() - self._started
    _, _, line = self._first_that_fits(
      LINE_FORMATS,
      n=self._step,
      total=self._total,
      elapsed=elapsed,
      unit='step',
      postfix=self._postfix,
      initial=self._begin,
    )
    stream: Any = streams.Tolerant(sys.stderr)
    print(line, file=stream, flush=True)
    self._printed, self._postfix = time.monotonic(), ''

  def _fit_bar(self) -> None:
    """Shortens the bar until its numbers fit the terminal."""
    state = {k: v for k, v in self._bar.format_dict.items() if k != 'ncols'}
    state['bar_format'] = state['prefix'] = None
    form, title, _ = self._first_that_fits(BAR_FORMATS, **state)
    self._bar.bar_format = form
    self._bar.set_description_str(title, refresh=False)

  def _first_that_fits(
    self, forms: Sequence[str], **state: Any
  ) -> tuple[str, str, str]:
    """The first format and title that fit, or the shortest, and the text.

    Once a run has used a short one, it goes on with it.
    """
    columns, text = tables.width(sys.stderr), ''
    titles = self._title, self._title.rpartition('/')[2]
    choices = list(itertools.product(forms, titles))
    for i in range(self._choice, len(choices)):
      self._choice, (form, title) = i, choices[i]
      now = {**state, 'bar_format': form, 'prefix': title}
      text = tqdm.tqdm.format_meter(**now)
      if len(text) <= columns:
        break
    return (*choices[self._choice], text)
