"""Cases of the accelerator benchmark that are not timed, run at once.

agreement  runs on the device and on the CPU (accelerator/agreement.py).
tests      the fast tests on the device.
tests_cpu  the fast tests on the CPU, with the packages of this machine.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any
from typing import TypeAlias

from experiments.benchmarks.accelerator import agreement as agreement
from experiments.benchmarks.accelerator import pipe as pipe

Row: TypeAlias = dict[str, Any]
Rows: TypeAlias = list[Row]

CPU = {'JAX_PLATFORMS': 'cpu'}
EXACT = {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
WORKERS = 8
# Every worker of the tests has JAX and takes memory as it needs it.
SHARED = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.1'}
SUMMARY_SECONDS = 10  # Time for pytest to say what it found when interrupted.
SHOWN = 10  # Failures in the table.
# Column of the table, and outcome in pytest's words.
COUNTED = {
  'passed': 'PASSED',
  'failed': 'FAILED',
  'errors': 'ERROR',
  'skipped': 'SKIPPED',
}
_OUTCOME = re.compile(r'\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b')
_SUMMARY = 'short test summary info'


@dataclasses.dataclass(frozen=True)
class Command:
  """A process of a case.

  Attributes:
    args: arguments of Python.
    extra: environment variables.
  """

  args: Sequence[str]
  extra: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Together:
  """A case of several processes at once.

  Attributes:
    commands: its processes, by the name of their log.
    rows: makes the rows of a case from its folder; it raises RuntimeError if
      what it reads is not there.
  """

  commands: Mapping[str, Command]
  rows: Callable[[pathlib.Path], Rows]


def make(name: str, folder: pathlib.Path, tiny: bool) -> Together:
  """Makes a case.

  Args:
    name: one of `cases.TOGETHER`.
    folder: folder of its files.
    tiny: whether the case is small enough to take a CPU seconds.

  Returns:
    The case.
  """
  if name == 'agreement':
    return _agreement(folder, tiny)
  # A plugin of some machines warns beside xdist, and warnings are errors.
  args = ['-m', 'pytest', '-p', 'no:benchmark', '-m', 'not slow', '-vv', '-rfE']
  args += ['-p', 'no:cacheprovider']
  if importlib.util.find_spec('xdist') is None:
    args += ['-o', 'addopts=']
  else:
    args += ['-n', '0' if tiny else str(WORKERS)]
  if tiny:
    args += ['tests/errors_test.py']
  extra = {**SHARED, **EXACT, **(CPU if name == 'tests_cpu' else {})}
  command = Command(args, extra)
  return Together(
    {name: command}, lambda folder: read_tests(name, folder / f'{name}.log')
  )


def _agreement(folder: pathlib.Path, tiny: bool) -> Together:
  groups = list(agreement.GROUPS)[: 1 if tiny else None]
  module = f'{pipe.PACKAGE}.agreement'
  commands = {}
  for group in groups:
    for place, extra in (('device', {}), ('cpu', CPU)):
      path = str(folder / f'{group}_{place}.json')
      args = ['-m', module, group, path]
      commands[f'{group}_{place}'] = Command(
        args, {**pipe.CACHE, **EXACT, **extra}
      )

  def rows(folder: pathlib.Path) -> Rows:
    found: Rows = []
    for group in groups:
      device, cpu = (
        _read(folder / f'{group}_{place}.json') for place in ('device', 'cpu')
      )
      found += agreement.compare(device, cpu)
    return found

  return Together(commands, rows)


def _read(path: pathlib.Path) -> Any:
  if path.exists():
    return json.loads(path.read_text('utf-8'))
  log = path.with_suffix('.log')
  lines = log.read_text('utf-8', errors='replace').strip().splitlines()
  raise RuntimeError(f'{path.stem}: {lines[-1] if lines else "no output"}')


def run(
  names: Sequence[str],
  seconds: float,
  folder: pathlib.Path,
  *,
  tiny: bool,
) -> Iterator[tuple[str, Rows, str, float]]:
  """Runs cases at once.

  Args:
    names: the cases.
    seconds: time limit of all.
    folder: folder of their files.
    tiny: whether the cases are small enough to take a CPU seconds.

  Yields:
    Name, rows, result ('done', or an error in one line) and seconds of each,
    when it ends.
  """
  begin = time.monotonic()
  with contextlib.ExitStack() as stack:
    running = {}
    for name in names:
      case = make(name, folder, tiny)
      processes = [
        stack.enter_context(_started(command, folder / f'{log}.log'))
        for log, command in case.commands.items()
      ]
      running[name] = case, processes
    while running:
      time.sleep(0.1)
      spent = time.monotonic() - begin
      late = spent > seconds
      if late:
        _interrupt([p for _, processes in running.values() for p in processes])
      for name, (case, processes) in list(running.items()):
        if late or all(process.poll() is not None for process in processes):
          del running[name]
          limit = f'stopped after {seconds:.0f} s' if late else 'done'
          yield name, *_collected(case, folder, limit), spent


@contextlib.contextmanager
def _started(
  command: Command, log: pathlib.Path
) -> Iterator[subprocess.Popen[Any]]:
  """A running process, which does not outlive the block."""
  env = pipe.environment(command.extra)
  with log.open('wb') as file:
    process = subprocess.Popen(
      [sys.executable, *command.args],
      stdout=file,
      stderr=subprocess.STDOUT,
      env=env,
      cwd=pipe.ROOT,
      process_group=0,
    )
  try:
    yield process
  finally:
    pipe.kill(process)


def _interrupt(processes: Sequence[subprocess.Popen[Any]]) -> None:
  """Stops processes; pytest says what it has found so far."""
  for process in processes:
    if process.poll() is None:
      process.send_signal(signal.SIGINT)
  end = time.monotonic() + SUMMARY_SECONDS
  for process in processes:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(max(end - time.monotonic(), 0))


def _collected(
  case: Together, folder: pathlib.Path, limit: str
) -> tuple[Rows, str]:
  """Rows and result of a case that has ended."""
  try:
    return case.rows(folder), limit
  except Exception as error:  # Its files are not as they should be.
    result = pipe.one_line(error)
    return [], result if limit == 'done' else f'{limit}; {result}'


def read_tests(name: str, log: pathlib.Path) -> Rows:
  """Reads what pytest printed, whole or not.

  Args:
    name: name of the case.
    log: its output, of -vv and -rfE.

  Returns:
    A row of the counts, and a row for each of the first failures.

  Raises:
    RuntimeError: no test ran.
  """
  text = log.read_text('utf-8', errors='replace')
  progress, _, summary = text.partition(_SUMMARY)
  outcomes, failed = [], []
  for line in progress.splitlines():
    found = _OUTCOME.search(line)
    if found and '::' in line:
      outcomes.append(found[1])
      if found[1] in ('FAILED', 'ERROR'):
        test = next(word for word in line.split() if '::' in word)
        failed.append((test, ''))
  if not outcomes:
    lines = text.strip().splitlines() or ['no output']
    raise RuntimeError(f'no test ran: {lines[-1]}')
  # The summary also has the first line of the error.
  told = re.findall(r'^(?:FAILED|ERROR) (\S+)(?: - (.*))?$', summary, re.M)
  count = {name: outcomes.count(outcome) for name, outcome in COUNTED.items()}
  rows: Rows = [{'table': 'tests', 'case': name, **count}]
  rows += (
    {
      'table': 'failures',
      'case': name,
      'test': test,
      'error': pipe.one_line(error),
    }
    for test, error in (told or failed)[:SHOWN]
  )
  return rows
