"""Tests of what `distill` returns, without a run."""

import copy
import pickle

from absl.testing import absltest
import jax

from cxjax.api import distilled


def made(*steps, best=None):
  records = [{'step': step, 'stage': 'output', 'loss': 0.5} for step in steps]
  found = distilled.Distilled({'w': 1.0}, records)
  found.best_step = best
  return found


class DistilledTest(absltest.TestCase):
  def test_is_the_pair_that_it_was(self):
    found = made(10, 20, best=10)
    params, history = found
    self.assertEqual((params, history), (found.params, found.history))
    self.assertIsInstance(found, tuple)
    self.assertLen(found, 2)
    self.assertEqual(found, (params, history))
    doubled = jax.tree.map(lambda leaf: leaf, found)
    self.assertEqual(doubled[0], params)

  def test_says_the_step(self):
    self.assertEqual(
      str(made(10, 20, best=10)),
      'Distilled(params, 2 records to step 20, best_step=10)',
    )
    self.assertEqual(
      repr(made(10)), 'Distilled(params, 1 record to step 10, best_step=None)'
    )
    self.assertEqual(
      repr(made()), 'Distilled(params, 0 records, best_step=None)'
    )

  def test_copies_keep_the_step(self):
    found = made(10, best=10)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
      self.assertEqual(copied, found)
      self.assertEqual(copied.best_step, 10)


if __name__ == '__main__':
  absltest.main()
