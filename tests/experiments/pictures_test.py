"""Tests of the pictures that are drawn from CSV files."""

import pathlib

from absl.testing import absltest
from absl.testing import flagsaver
import numpy as np

from cxjax import errors
from experiments import pictures

CSV = """\
method,seed,steps,steps_to_0.99
supervised,0,50,
supervised,1,50,
extracted,0,50,30
extracted,1,50,20
"""


class PicturesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'runs.csv'
    self.path.write_text(CSV)

  def test_steps_of_the_students_that_solved_it(self):
    found = pictures.solved(self.path)
    self.assertEqual(list(found), ['supervised', 'extracted'])
    steps, students, total = found['extracted']
    np.testing.assert_array_equal(steps, [20, 30])
    self.assertEqual((students, total), (2, 50))
    self.assertEmpty(found['supervised'][0])

  def test_draws(self):
    pictures.draw(self.path, self.folder / 'picture.png', 'Parity')
    self.assertGreater((self.folder / 'picture.png').stat().st_size, 1_000)

  def test_ends_of_the_grammar(self):
    picture = self.folder / 'picture.png'
    results = pathlib.Path(pictures.__file__).parent / 'results'
    pictures.draw_budgets(results, picture)
    self.assertGreater(picture.stat().st_size, 1_000)
    self.path.write_text('method,min,top-1: mean,max\na,0.1,0.2,0.4\n')
    self.assertEqual(pictures.ends(self.path), {'a': (0.1, 0.2, 0.4)})
    self.path.write_text(CSV)
    with self.assertRaisesRegex(errors.UserError, 'lacks the columns.*min'):
      pictures.ends(self.path)
    self.path.write_text('method,min,top-1: mean,max\na,low,0.2,0.4\n')
    with self.assertRaisesRegex(errors.UserError, "row 1: min='low' must be"):
      pictures.ends(self.path)

  def test_a_table_of_other_methods_is_refused(self):
    folder, picture = self.folder, self.folder / 'picture.png'
    table = 'method,min,top-1: mean,max\nsupervised,0.1,0.2,0.4\n'
    (folder / 'pcfg_bert.csv').write_text(table)
    with self.assertRaisesRegex(errors.UserError, 'no row of the method .one_'):
      pictures.draw_budgets(folder, picture)
    self.assertFalse(picture.exists())

  def test_a_folder_of_runs_is_refused(self):
    with (
      flagsaver.flagsaver(workdir=str(self.folder), results=str(self.folder)),
      self.assertRaisesRegex(errors.UserError, '--workdir is not read by'),
    ):
      pictures.main([])

  def test_another_file_is_refused(self):
    self.path.write_text('d,k\n1,2\n')
    with self.assertRaisesRegex(errors.UserError, 'lacks the columns'):
      pictures.solved(self.path)


if __name__ == '__main__':
  absltest.main()
