"""The processes of the peers, seen from the benchmark."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from typing import Any

from experiments.benchmarks.accelerator import pipe as pipe

PACKAGE = 'experiments.benchmarks.peers'


class Left(Exception):
  """A side is left out; the message says why."""


@dataclasses.dataclass
class Side:
  """One way of one library to train.

  Attributes:
    process: where it runs.
    first_step: seconds from the start of the process to its first step.
    seeds: number of students.
    unit: steps of which a round is a multiple.
    lookahead: batches that its teacher sees at once.
    limit: longest round.
    cpu: seconds of CPU of the last round.
    losses: losses of the first steps.
    compile: seconds of compilation.
  """

  process: pipe.Process
  first_step: float
  seeds: int
  unit: int
  lookahead: int
  limit: int
  cpu: float = 0.0
  losses: tuple[float, ...] = ()
  compile: float = 0.0

  def check(self, num_steps: int) -> None:
    """Trains the first steps, and keeps what they say.

    Args:
      num_steps: number of steps.

    Raises:
      Left: the side failed.
    """
    found = ask(self.process, order='check', num_steps=num_steps)
    self.losses, self.compile = tuple(found['losses']), found['compile']

  def seconds(self, num_steps: int) -> float:
    """Trains; returns the seconds that it took."""
    found = ask(self.process, order='run', num_steps=num_steps)
    self.cpu = found['cpu']
    return found['seconds']

  def whole(self, seconds: float) -> float | None:
    """Returns the seconds of a step of a whole run; None if there is none."""
    return ask(self.process, order='whole', seconds=seconds)

  def memory(self) -> float:
    """Returns the largest resident size of the process, in MB."""
    return ask(self.process, order='memory')


def ask(process: pipe.Process, **message: Any) -> Any:
  """Sends an order; returns the answer.

  Args:
    process: the process.
    **message: 'order' and its arguments.

  Raises:
    Left: the peer cannot do it, or it failed or ended.
  """
  process.send(message)
  try:
    answer = process.receive()
  except pipe.Ended as error:
    raise Left(f'{error}, see its log') from error
  if 'cannot' in answer:
    raise Left(f'cannot do it: {answer["cannot"]}')
  if 'error' in answer:
    raise Left(f'failed: {answer["error"]}')
  return answer['value']


@contextlib.contextmanager
def started(
  module: str,
  job: pathlib.Path,
  variant: str,
  python: str = sys.executable,
) -> Iterator[Side]:
  """Starts a side and makes its first step; ends it in the end.

  Args:
    module: module of the peer.
    job: folder of the job; the logs go there.
    variant: name of the peer's variant.
    python: interpreter of the peer.

  Yields:
    The side.

  Raises:
    Left: it cannot do the case, or it failed.
  """
  # Unless the user says something else.
  threads = {'OMP_NUM_THREADS': str(len(os.sched_getaffinity(0)))}
  threads |= {name: os.environ[name] for name in threads if name in os.environ}
  name = f'{module}_{variant}'.rstrip('_')
  with (job / f'{name}.log').open('wb') as log:
    begin = time.perf_counter()
    process = pipe.Process(
      'serve',
      [module, str(job), variant],
      extra={**threads, 'JAX_PLATFORMS': 'cpu'},
      log=log,
      python=python,
      package=PACKAGE,
    )
    try:
      found = ask(process, order='start')
      spent = time.perf_counter() - begin
      yield Side(process, first_step=spent, **found)
    finally:
      process.close()
