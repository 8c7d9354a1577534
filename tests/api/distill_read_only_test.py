"""Finished runs and stored targets on a disk that may only be read."""

import pathlib
import subprocess
import sys

from absl.testing import absltest
import pytest

from tests import processes

# Prints a line for each call that is refused.
SCRIPT = """
import pathlib, subprocess, sys
import chex
import numpy as np
import cxjax
sys.path.insert(0, 'tests')
from small_networks import BIG, SMALL, ONE, X, batches

root = pathlib.Path(sys.argv[1])
cache = {'folder': root / 'targets'}
options = dict(held_out=X, log_every=5)
distill = lambda workdir=None, **fields: cxjax.distill(
  ONE, batches(), workdir=workdir, **options, **fields
)
compare = lambda: cxjax.compare(
  BIG, SMALL, batches(), held_out=X, num_steps=4, methods=('one_shot',),
  rates=(1e-2,), seeds=2, workdir=root / 'compared', report=lambda line: None,
)
calls = (
  lambda: distill(root / 'run', cache=cache, keep_best='loss').params,
  lambda: distill(cache=cache).params,
  lambda: [one.students for one in compare().contenders],
)
want = [call() for call in calls]

class Ended(Exception):
  pass

def end(record):
  raise Ended

try:
  distill(root / 'begun', save_every=5, on_record=end)
except Ended:
  pass
# A copy need not have the locks.
for name in ('run', 'targets', 'compared'):
  for lock in (root / name).rglob('lock'):
    lock.unlink()
subprocess.run(['mount', '-o', 'remount,ro', root], check=True)
for call, params in zip(calls, want):
  chex.assert_trees_all_equal(call(), params)
for call in (
  lambda: distill(root / 'new'),
  lambda: distill(root / 'begun', save_every=5),
  lambda: distill(cache={'folder': root / 'others'}),
  lambda: compare().plot(root / 'other.png'),
):
  try:
    call()
  except cxjax.UserError as error:
    print(error)
subprocess.run(['mount', '-o', 'remount,rw', root], check=True)
chex.assert_trees_all_equal(
  distill(root / 'begun', save_every=5).params, distill().params
)
"""


@pytest.mark.slow
class ReadOnlyTest(absltest.TestCase):
  def test_what_is_finished_is_read(self):
    """Runs that are not finished, and pictures, are refused in one line."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    before = processes.on_tmpfs(folder, size='32m')
    if before is None:
      self.skipTest('Needs the right to mount a tmpfs.')
    done = subprocess.run(
      [*before, sys.executable, '-c', SCRIPT, folder],
      cwd=processes.ROOT,
      env=processes.environment(),
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    said = done.stdout.splitlines()
    self.assertLen(said, 4, said)
    for line, name in zip(
      said, ('new/lock', 'begun', 'others', 'other.png'), strict=True
    ):
      self.assertIn(f'{folder}/{name}', line)
      self.assertRegex(line, 'Read-only file system|permission denied')


if __name__ == '__main__':
  absltest.main()
