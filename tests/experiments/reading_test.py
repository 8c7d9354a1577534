"""Tests of the benchmark of reading a Hugging Face folder."""

import json
import pathlib
import types
from unittest import mock

from absl.testing import absltest
import pytest

import scripts

reading = scripts.load('experiments.benchmarks.reading')


@pytest.mark.slow
class ReadingTest(absltest.TestCase):
  def test_a_row_is_made_of_processes_that_read_the_files(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for name in ('model', 'tiny'):
      reading.write(folder / name, 'tiny')
    seen = []

    def run(command, **_):
      seen.append(reading.measure('cxjax', folder))
      self.assertIn('--way=cxjax', command)
      return types.SimpleNamespace(stdout=json.dumps(seen[-1]).encode())

    with mock.patch.object(reading.subprocess, 'run', run):
      row = reading.row('cxjax', folder, 2)
    self.assertLen(seen, 2)
    self.assertGreater(row['min'], 0)
    self.assertLessEqual(row['min'], row['seconds'])
    size = (folder / 'model' / 'model.safetensors').stat().st_size
    self.assertEqual(row['files, MB'], size / 1e6)
    peak = max(one['peak'] for one in seen)
    self.assertEqual(row['peak over files'], peak / size)
