"""Faults that tests inflict on runs, and what is left afterwards; no tests.

As a program, in a process that has not used a device yet:
  python tests/faults.py kills FOLDER NUMBER
  python tests/faults.py disk FOLDER TEACHER
"""

import contextlib
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from unittest import mock

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import metric_log
from experiments import parity_mlp


class Killed(Exception):
  """Stands for `kill -9`: nothing in cxjax catches it."""


@contextlib.contextmanager
def killed_after(records):
  """Ends a run once it has written so many records of metrics."""
  write, written = metric_log.MetricLog.write, itertools.count(1)

  def kill(self, record):
    write(self, record)
    if next(written) == records:
      raise Killed

  with mock.patch.object(metric_log.MetricLog, 'write', kill):
    try:
      yield
    except Killed:
      return
  raise AssertionError(f'Not killed: it wrote fewer than {records} records.')


def arrays(config, folder):
  """All arrays of the last checkpoint of the students, by name."""
  opened = builders.open_experiment(config, folder.parent)
  teacher = teachers.train_teacher(opened, folder.parent)
  spec = builders.student_spec(opened, teacher)
  last = checkpoints_lib.latest(folder)
  index = sum(last > end for end in spec.ends[:-1])
  shapes = spec.state_shapes(spec.plan()[index])
  names = ('params', 'regressors', 'opt_state')
  items = {name: getattr(shapes, name) for name in names}
  return checkpoints_lib.restore(folder, last, items)


def config():
  """The config of the runs."""
  return parity_mlp.tiny('extracted')


def begin(workdir):
  """Starts the run in its own process, and returns the id of that."""
  pid = os.fork()
  if pid == 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    experiment.run(config(), workdir)
    os._exit(0)
  return pid


def ended(pid, seconds):
  """Whether a process ends within so many seconds; otherwise kills it."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      assert status == 0, f'The run failed with status {status}.'
      return True
    time.sleep(0.002)
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)
  return False


def kills(folder, number):
  """Kills runs at random times, and starts them again until all have ended.

  Leaves the run that was not killed in `whole`, the others in `run0`, `run1`.
  """
  # Once, before every fork: it is slow to import.
  import tensorboard.summary.writer.record_writer  # noqa: F401, PLC0415

  assert ended(begin(folder / 'whole'), 300)
  start = time.monotonic()
  assert ended(begin(folder / 'run0'), 300)  # With what that one compiled.
  seconds, done, runs = time.monotonic() - start, 0, 1
  while done < number:
    workdir = folder / f'run{runs}'
    if ended(begin(workdir), random.uniform(0, seconds)):
      runs += 1
      continue
    done += 1
    found = {
      name: checkpoints_lib.steps(workdir / name)[-1:]
      for name in ('teacher', 'extracted')
    }
    print(f'kill {done} of {workdir.name}: {found}', flush=True)
  assert ended(begin(folder / f'run{runs}'), 300)


def _wait_for_checkpoint(folder, seconds=60):
  """Waits for a first checkpoint: it is written beside the steps."""
  end = time.monotonic() + seconds
  while checkpoints_lib.latest(folder) is None and time.monotonic() < end:
    time.sleep(0.05)


def disk(folder, teacher):
  """Breaks the disk of a run twice, mends it, and prints the messages."""
  c = config()
  c.teacher.folder = str(teacher)
  workdir, ballast = folder / 'run', folder / 'ballast'
  write = metric_log.MetricLog.write

  def fill():
    with ballast.open('wb', buffering=0) as f:
      try:
        while f.write(bytes(4096)):
          pass
      except OSError:
        pass

  def lock():
    subprocess.run(['chmod', '-R', 'a-w', workdir], check=True)

  for break_it, step in ((fill, 30), (lock, 50)):

    def break_at(self, record, break_it=break_it, step=step):
      write(self, record)
      if record['step'] == step:
        _wait_for_checkpoint(workdir / 'extracted')
        break_it()

    try:
      with mock.patch.object(metric_log.MetricLog, 'write', break_at):
        experiment.run(c, workdir)
    except errors.UserError as error:
      print(error)
    print(checkpoints_lib.latest(workdir / 'extracted'), flush=True)
    ballast.unlink(missing_ok=True)
    subprocess.run(['chmod', '-R', 'u+w', workdir], check=True)
  experiment.run(c, workdir)
  print((workdir / 'extracted' / 'metrics.jsonl').read_text())


if __name__ == '__main__':
  what, root, *rest = sys.argv[1:]
  if what == 'kills':
    kills(pathlib.Path(root), int(rest[0]))
  else:
    disk(pathlib.Path(root), *rest)
