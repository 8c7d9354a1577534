"""The sizes that grow, and the exponents."""

import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.benchmarks.peers import cases as cases_lib
import scripts

growth = scripts.load('experiments.benchmarks.growth')


class GrowthTest(parameterized.TestCase):
  @parameterized.parameters(
    ('students', 1, 1),
    ('width', 48, 1),
    ('depth', 4, 1),
    ('batch', 32, 1),
    ('vocabulary', 2_048, 1),
    ('length', 64, 1),
  )
  def test_one_size_grows(self, axis, size, students):
    case = cases_lib.FULL['bert']
    self.assertEqual(growth.scaled(case, axis, 1), (case, students, size))
    grown, number, twice = growth.scaled(case, axis, 2)
    self.assertEqual(twice, 2 * size)
    self.assertEqual(number, 2 if axis == 'students' else 1)
    self.assertEqual(grown == case, axis == 'students')

  def test_rows_are_predicted_in_proportion(self):
    grown, *_ = growth.scaled(cases_lib.FULL['bert'], 'length', 2)
    self.assertEqual((grown.inputs, grown.predicted), (128, 20))

  def test_exponents(self):
    sizes = np.array([1, 2, 4, 8])
    self.assertAlmostEqual(growth.exponent(sizes, 3 * sizes**2), 2)
    self.assertAlmostEqual(growth.error(sizes, 3 * sizes**2), 0)
    # By scipy.stats.linregress of the logarithms.
    self.assertAlmostEqual(growth.error(sizes, [1, 2, 4, 4]), 0.1732051)
    self.assertIsNone(growth.error([1, 2], [3, 4]))

  def test_page_and_picture(self):
    rows = [
      {
        'axis': 'batch',
        'size': n,
        'us': 1e4 * n,
        'low': 8e3 * n,
        'high': 3e4 * n,
        'compile s': 1.0,
      }
      for n in (1, 2, 4)
    ]
    text = growth.render(rows, 5, 0.2)
    self.assertIn('2 cores, 0.2 busy', re.sub('[0-9]+ cores', '2 cores', text))
    self.assertRegex(
      text, r'\| 1, 2, 4 \| 10, 20, 40 \| 8 to 30, .* \| +1 \| +0 \| +1 \|'
    )
    path = pathlib.Path(self.create_tempdir().full_path) / 'growth.png'
    growth.plot(rows, path)
    self.assertGreater(path.stat().st_size, 1_000)


if __name__ == '__main__':
  absltest.main()
