r"""The process of a peer: trains as it is asked, and answers.

`peers` starts it in the virtual environment of each peer:
  python -m experiments.benchmarks.peers.serve MODULE FOLDER VARIANT
"""

import importlib
import pathlib
import re
import signal
import sys
import time
import traceback
from typing import Any

from experiments.benchmarks.accelerator import pipe as pipe
from experiments.benchmarks.peers import protocol as protocol

LONGEST_LIFE = 3_600  # Seconds after which a peer ends by itself.
PACKAGE = 'experiments.benchmarks.peers'
FOREVER = 1 << 30  # Longest round, where there is no limit.
STATUS = pathlib.Path('/proc/self/status')


class Peer:
  """The answers of a peer to the orders of the benchmark."""

  def __init__(self, module: str, job: protocol.Job) -> None:
    """Imports nothing yet.

    Args:
      module: name of a module of this folder with `make(job)`, which returns a
        trainer or raises `Cannot`.
      job: the job.
    """
    self._module, self._job = module, job

  def start(self) -> dict[str, Any]:
    """Imports the library, builds the trainer and makes its first step."""
    module = importlib.import_module(f'{PACKAGE}.{self._module}')
    self._trainer = module.make(self._job)
    begin = time.perf_counter()
    (self._first,) = self._trainer.losses(1)
    self._first_seconds = time.perf_counter() - begin
    return {
      'seeds': self._trainer.seeds,
      'unit': self._trainer.unit,
      'lookahead': getattr(self._trainer, 'lookahead', 1),
      'limit': getattr(self._trainer, 'limit', FOREVER),
    }

  def check(self, num_steps: int) -> dict[str, Any]:
    """Returns the losses of the first steps, and the seconds of compilation.

    Those are what the trainer says, or what its first step took longer than
    a later one.
    """
    begin = time.perf_counter()
    found = self._trainer.losses(num_steps - 1)
    each = (time.perf_counter() - begin) / (num_steps - 1)
    compiled = getattr(self._trainer, 'compile_seconds', None)
    if compiled is None:
      compiled = max(self._first_seconds - each, 0.0)
    return {'losses': [self._first, *found], 'compile': compiled}

  def run(self, num_steps: int) -> dict[str, float]:
    """Returns the seconds, and the seconds of CPU, of some steps."""
    prepare = getattr(self._trainer, 'prepare', None)
    if prepare is not None:  # What a user does once is not timed.
      prepare(num_steps)
    begin, cpu = time.perf_counter(), time.process_time()
    self._trainer.run(num_steps)
    return {
      'seconds': time.perf_counter() - begin,
      'cpu': time.process_time() - cpu,
    }

  def whole(self, seconds: float) -> float | None:
    """Returns the seconds of a step of a whole run, as the library ships it.

    Args:
      seconds: about how long to train.
    """
    whole = getattr(self._trainer, 'whole', None)
    return None if whole is None else whole(seconds)

  def memory(self) -> float:
    """Returns the largest resident size of this process until now, in MB."""
    # `getrusage` counts the process that started this one.
    found = re.search(r'VmHWM:\s+(\d+) kB', STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def main(module: str, folder: str, variant: str) -> None:
  """Serves orders until the benchmark closes.

  Args:
    module: name of the module.
    folder: folder of the job.
    variant: name of the peer's variant.
  """
  signal.alarm(LONGEST_LIFE)
  server = pipe.Server()
  peer = Peer(module, protocol.Job.read(pathlib.Path(folder), variant))
  for message in server:
    order = getattr(peer, message.pop('order'))
    try:
      server.reply(value=order(**message))
    except protocol.Cannot as reason:
      server.reply(cannot=pipe.one_line(str(reason)))
    except Exception as error:  # Whatever a library raises.
      traceback.print_exc()
      server.reply(error=pipe.one_line(error))


if __name__ == '__main__':
  main(*sys.argv[1:])
