"""Runs the cases of the accelerator benchmark within its minutes."""

from collections.abc import Sequence
import pathlib
import tempfile
import time
from typing import Any
from typing import TypeAlias

from experiments.benchmarks.accelerator import cases as cases_lib
from experiments.benchmarks.accelerator import commands as commands
from experiments.benchmarks.accelerator import page as page_lib
from experiments.benchmarks.accelerator import pipe as pipe

Row: TypeAlias = dict[str, Any]

# Seconds that are kept for the cases that are not timed, as they come last.
RESERVE = 75
SHORTEST = 5  # Seconds; with less left a case does not start.


class Worker:
  """Runs cases in a process, which is renewed after a failure."""

  def __init__(self, log: Any, seconds: float, tiny: bool) -> None:
    """Starts nothing yet.

    Args:
      log: file of what the process prints.
      seconds: longest life of the process.
      tiny: sizes for a CPU.
    """
    self._log, self._tiny, self._seconds = log, tiny, int(seconds) + 1
    self._process: pipe.Process | None = None
    self._extra: Any = None

  def run(self, case: cases_lib.Case, seconds: float, rows: list[Row]) -> str:
    """Runs a case.

    Args:
      case: the case.
      seconds: time limit.
      rows: its rows are appended.

    Returns:
      'done', or the error in one line.
    """
    if self._extra != case.extra:
      self.close()
    if self._process is None:
      self._extra = case.extra
      self._process = pipe.Process(
        'worker',
        [str(self._seconds)],
        extra={**pipe.CACHE, **case.extra},
        log=self._log,
      )
    result = self._answers(self._process, case, seconds, rows)
    if result != 'done':
      self.close()  # What a failure leaves behind is not known.
    return result

  def _answers(
    self,
    process: pipe.Process,
    case: cases_lib.Case,
    seconds: float,
    rows: list[Row],
  ) -> str:
    end = time.monotonic() + seconds
    process.send(
      {
        'module': case.module,
        'function': case.function,
        'options': dict(case.options),
        'tiny': self._tiny,
      }
    )
    while True:
      try:
        answer = process.receive(max(end - time.monotonic(), 0))
      except pipe.Ended as error:
        return f'{error}; see the log'
      if answer is None:
        return f'stopped after {seconds:.0f} s'
      if 'row' not in answer:
        return answer.get('error', 'done')
      rows.append(answer['row'])

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._process.close()
      self._process = None


class Board:
  """The results so far, on disk after every case."""

  def __init__(self, folder: pathlib.Path) -> None:
    """Takes the folder of the results."""
    self._folder = folder
    self.rows: list[Row] = []
    self.cases: list[Row] = []
    self.text = ''

  def add(self, name: str, result: str, seconds: float) -> None:
    """Notes that a case ended, prints that, and writes the files."""
    self.cases.append({'case': name, 'result': result, 'seconds': seconds})
    print(f'{name}: {result}, {seconds:.0f} s', flush=True)
    self.text = page_lib.write(self._folder, self.rows, self.cases)


def run(
  names: Sequence[str], seconds: float, folder: pathlib.Path, *, tiny: bool
) -> Board:
  """Runs cases, those that are timed first.

  Args:
    names: the cases.
    seconds: time for all of them.
    folder: folder of the results, and of the log of the processes.
    tiny: sizes for a CPU.

  Returns:
    The board with the results.
  """
  deadline = time.monotonic() + seconds
  board = Board(folder)
  timed = [cases_lib.TIMED[name] for name in names if name in cases_lib.TIMED]
  together = [name for name in names if name in cases_lib.TOGETHER]
  kept = min(RESERVE, 0.35 * seconds) if together else 0
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / 'accelerator.log').open('wb') as log:
    run_timed(timed, deadline - kept, board, log, tiny=tiny)
  left = deadline - time.monotonic() - commands.SUMMARY_SECONDS
  if left < SHORTEST:
    for name in together:
      board.add(name, 'no time left', 0)
    return board
  with tempfile.TemporaryDirectory() as temporary:
    found = commands.run(together, left, pathlib.Path(temporary), tiny=tiny)
    for name, rows, result, spent in found:
      board.rows += rows
      board.add(name, result, spent)
    with (folder / 'accelerator.log').open('ab') as log:
      for path in sorted(pathlib.Path(temporary).glob('*.log')):
        log.write(f'\n== {path.name}\n'.encode() + path.read_bytes())
  return board


def run_timed(
  cases: Sequence[cases_lib.Case],
  deadline: float,
  board: Board,
  log: Any,
  *,
  tiny: bool,
) -> None:
  """Runs cases one after the other.

  Args:
    cases: the cases.
    deadline: when the last must have ended, by `time.monotonic`.
    board: where the rows go.
    log: file of what the processes print.
    tiny: sizes for a CPU.
  """
  worker = Worker(log, deadline - time.monotonic(), tiny)
  try:
    for case in cases:
      begin = time.monotonic()
      left = deadline - begin
      result = 'no time left'
      if left > SHORTEST:
        result = worker.run(case, min(case.seconds, left), board.rows)
      board.add(case.name, result, time.monotonic() - begin)
  finally:
    worker.close()
