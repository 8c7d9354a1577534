"""A power loss at every operation on the files of a run or of targets."""

import pathlib
import re

from absl.testing import absltest
import chex
import pytest

from cxjax import errors
from cxjax.configs import experiment
from cxjax.training import target_cache
from experiments import parity_mlp
import power_loss
from tests.training.target_cache import fixtures

pytestmark = pytest.mark.slow

NAMES = ('teacher', 'one_shot')
PERIOD = 3  # Batches of stored targets.
UNREAD = ('/lock', '.tmp', '/environment.json')


def config():
  """Returns a config of two checkpoints for teacher and students."""
  found = parity_mlp.tiny('one_shot')
  found.num_steps = found.teacher.num_steps = 20
  for block in (found, found.teacher):
    block.log_every = block.eval_every = block.save_every = 10
  return found


def key(tree):
  """Tells trees apart by what a run reads of them.

  TensorBoard's files, the lock, environment.json, and the files of a checkpoint
  without a record are not read; of folders, those of checkpoints are, once
  orbax has given them their name.
  """
  finished = {
    name.removesuffix('/record.json')
    for name, content in tree.items()
    if name.endswith('/record.json') and content
  }
  found = []
  for name, content in tree.items():
    if '/tensorboard' in name or name.endswith(UNREAD):
      continue
    parts = re.fullmatch(r'(.*/checkpoints/[^/]+)/.+', name)
    if parts and parts[1] not in finished:
      continue
    if content is not None or re.search('/checkpoints/[0-9]+$', name):
      found.append((name, content))
  return found


class PowerLossTest(absltest.TestCase):
  def test_a_run_survives_it_at_every_operation(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    (root / 'whole').mkdir()
    disk = power_loss.Disk(root / 'whole', key)
    with disk.recorded():
      experiment.run(config(), root / 'whole')
      left = disk.left('lost')
    for name in NAMES:  # What is finished is on the disk.
      self.assertIn(f'{name}/summary.json', left)
      self.assertIn(f'{name}/checkpoints/000000020/record.json', left)
    whole = [(root / 'whole' / n / 'metrics.jsonl').read_text() for n in NAMES]
    self.assertGreater(disk.operations, 100)
    self.assertGreater(len(disk.states), 10)
    for number, tree in enumerate(disk.states):
      workdir = root / str(number)
      power_loss.restore(tree, workdir)
      with self.subTest(number):
        experiment.run(config(), workdir)
        found = [(workdir / n / 'metrics.jsonl').read_text() for n in NAMES]
        self.assertEqual(found, whole)


def stored(folder):
  """Returns the arrays of every batch of a cache."""
  cache = target_cache.load(folder)
  return [cache.read(i, n)[0] for i in range(2) for n in range(PERIOD)]


class StoredTargetsTest(absltest.TestCase):
  def test_they_are_whole_or_made_again(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    (root / 'whole').mkdir()
    spec = fixtures.live_spec(period=PERIOD)
    write = lambda folder: target_cache.write(
      folder, spec, fixtures.CONFIG, 'float32'
    )
    read = lambda tree: [
      one for one in tree.items() if not one[0].endswith(UNREAD)
    ]
    disk = power_loss.Disk(root / 'whole', read)
    with disk.recorded():
      write(root / 'whole')
      left = disk.left('lost')
    whole = stored(root / 'whole')
    power_loss.restore(left, root / 'left')  # What is finished is on the disk.
    chex.assert_trees_all_equal(stored(root / 'left'), whole)
    self.assertGreater(len(disk.states), 5)
    for number, tree in enumerate(disk.states):
      folder = root / str(number)
      power_loss.restore(tree, folder)
      with self.subTest(number):
        if 'index.json' not in tree:
          with self.assertRaisesRegex(errors.UserError, 'no finished cache'):
            target_cache.load(folder)
        write(folder)
        chex.assert_trees_all_equal(stored(folder), whole)


if __name__ == '__main__':
  absltest.main()
