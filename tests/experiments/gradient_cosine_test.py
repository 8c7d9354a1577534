"""Tests of the script on the cosine of gradients."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import flagsaver
import pytest

from cxjax import tables
import scripts

script = scripts.load('experiments.gradient_cosine')


def record(step, accuracy, cosine=None):
  found = {'step': step, 'loss': 1.0, 'eval/accuracy': accuracy}
  return found if cosine is None else {**found, script.COSINE: cosine}


class RowsTest(absltest.TestCase):
  def test_reads_the_end_of_the_hidden_stages_and_of_the_run(self):
    history = [
      record(10, [0.1, 0.1], [0.5, 0.7]),
      record(20, [0.2, 0.2], [0.1, -0.3]),
      record(30, [0.6, 0.8]),
    ]
    (row,) = script.rows('digits', {0.6: (None, history)})
    self.assertEqual(row['hidden steps'], 20)
    self.assertAlmostEqual(row['cosine at its end: mean'], -0.1)
    self.assertEqual((row['cosine: min'], row['cosine: max']), (-0.3, 0.1))
    self.assertEqual(row['metric'], 'accuracy')
    self.assertAlmostEqual(row['mean'], 0.7)
    self.assertAlmostEqual(row['sd'], 0.2 / 2**0.5)


@pytest.mark.slow
class RunTest(absltest.TestCase):
  def test_tiny(self):
    folder = pathlib.Path(tempfile.mkdtemp())
    with flagsaver.flagsaver(
      experiment=['parity_mlp'],  # A flag of other scripts too.
      workdir=str(folder / 'runs'),
      results=str(folder),
      size='tiny',
      shares=['0.5', '0.25'],
      seeds=2,
    ):
      script.main(['gradient_cosine'])
    rows = tables.read_csv(folder / 'gradient_cosine.csv')
    steps = script.CASES['parity_mlp'][0]
    hidden = [int(row['hidden steps']) for row in rows]
    self.assertEqual(hidden, [steps // 4, steps // 2])
    self.assertTrue((folder / 'gradient_cosine.png').exists())
