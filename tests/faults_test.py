"""Tests of runs that are killed, or whose disk breaks."""

import os
import pathlib
import shutil
import subprocess
import sys

from absl.testing import absltest
import chex
import pytest

from cxjax.training import checkpoints as checkpoints_lib
import faults
import processes

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get('KILLS', '3'))


class FaultsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.code, cls.kills, cls.said = processes.forked(
      'tests/faults.py', 'kills', str(cls.root), str(KILLS)
    )
    cls.whole = cls.root / 'whole'
    cls.metrics = (cls.whole / 'extracted' / 'metrics.jsonl').read_text()

  def test_kill_at_any_moment(self):
    self.assertEqual(self.code, 0, self.said)
    self.assertLen(self.kills.splitlines(), KILLS)
    others = sorted(self.root.glob('run*'))
    self.assertNotEmpty(others)
    for workdir in others:
      for name in ('teacher', 'extracted'):
        whole, other = self.whole / name, workdir / name
        self.assertEqual(
          (whole / 'metrics.jsonl').read_text(),
          (other / 'metrics.jsonl').read_text(),
          self.kills,
        )
        self.assertEqual(
          checkpoints_lib.steps(whole), checkpoints_lib.steps(other)
        )
      chex.assert_trees_all_equal(
        faults.arrays(faults.config(), self.whole / 'extracted'),
        faults.arrays(faults.config(), workdir / 'extracted'),
      )

  def test_damage_to_any_file_of_a_checkpoint_is_noticed(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    shutil.copytree(self.whole / 'extracted', folder, dirs_exist_ok=True)
    path = folder / 'checkpoints' / '000000060'
    self.assertEqual(checkpoints_lib.latest(folder), 60)
    found = [p for p in path.rglob('*') if p.is_file()]
    for file in found:
      content = file.read_bytes()
      middle = len(content) // 2
      flipped = bytearray(content)
      flipped[middle] ^= 1
      for damaged in (content[:middle], bytes(flipped), None):
        if damaged is None:
          file.unlink()
        else:
          file.write_bytes(damaged)
        with self.assertLogs(level='WARNING') as log:
          self.assertEqual(checkpoints_lib.latest(folder), 40)
        self.assertRegex(log.output[0], f'Checkpoint 60 .*{file.name}')
        file.write_bytes(content)
    self.assertEqual(checkpoints_lib.latest(folder), 60)

  def test_a_disk_that_breaks(self):
    """A tmpfs of its own; without the right to ignore permissions."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    before = processes.on_tmpfs(folder, size='1m', overrides=False)
    if before is None:
      self.skipTest('Needs the right to mount a tmpfs.')
    done = subprocess.run(
      [*before, sys.executable, 'tests/faults.py', 'disk', folder]
      + [self.whole / 'teacher'],
      cwd=processes.ROOT,
      env=processes.environment(),
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    lines = done.stdout.splitlines(keepends=True)
    full, first, read_only, second, *metrics = lines
    said = f'^Cannot write {folder}/run.*: %s. (Make room|Allow it)'
    self.assertRegex(full, said % 'No space left on device')
    self.assertEqual(first, '20\n')
    self.assertRegex(read_only, said % 'Permission denied')
    # Checkpoint 40 is written beside the steps that follow.
    self.assertIn(second, ('20\n', '40\n'))
    self.assertEqual(''.join(metrics), self.metrics + '\n')
