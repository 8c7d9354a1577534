"""Tests of the benchmark of the start of a run."""

import pathlib
from unittest import mock

from absl.testing import absltest
import pytest

import scripts

start = scripts.load('experiments.benchmarks.start')

RUN = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[-1].partition('=')[2]) / 'teacher'
folder.mkdir(parents=True)
time.sleep(0.2)
(folder / 'metrics.jsonl').write_text('{}')
(folder / 'summary.json').write_text(json.dumps({'seconds': {'compile': 3.5}}))
"""


class StartTest(absltest.TestCase):
  def measure(self, run):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'run.py').write_text(run)
    words, cache = [str(folder / 'run.py')], str(folder / 'cache')
    return start.measure(words, start.ROOT, folder / 'run', cache)

  def test_measures_a_process(self):
    found = self.measure(RUN)
    self.assertGreater(found['first'], 0.2)
    self.assertEqual(found['compile'], 3.5)
    self.assertGreater(found['peak'], 1)

  def test_a_run_that_fails_is_told(self):
    with self.assertRaisesRegex(RuntimeError, 'run.py failed: no such thing'):
      self.measure('raise SystemExit("no such thing")')

  def test_an_earlier_version_may_lack_an_experiment(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    command = mock.patch.object(start, 'command', return_value=['absent.py'])
    with command, mock.patch.object(start.cli, 'show') as show:
      (row,) = start.rows(['new'], 'tiny', {'earlier': folder})
      self.assertIn('absent.py', show.call_args.args[0])
      with self.assertRaisesRegex(RuntimeError, 'absent.py failed'):
        list(start.rows(['new'], 'tiny', {'now': start.ROOT}))
    self.assertEqual(row['version'], 'earlier')
    self.assertEqual({row[name] for name in start.COLUMNS}, {None})

  @pytest.mark.slow
  def test_each_stage_of_the_students_has_one_record(self):
    words = start.command('parity_mlp', 'tiny')
    self.assertIn('--config.extracted.steps=(10, 10)', words)
    self.assertIn('--config.num_steps=20', words)
    self.assertIn('--config.teacher.num_steps=10', words)
