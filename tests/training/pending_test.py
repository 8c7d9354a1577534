"""Tests of the record of dispatched steps."""

import types

from absl.testing import absltest
import numpy as np

from cxjax.training import pending as pending_lib


class PendingTest(absltest.TestCase):
  def record(self, **out):
    rate = lambda stage, step, out: {'learning_rate': 10 * stage + step}
    stages = [types.SimpleNamespace(name=name) for name in ('a', 'b')]
    spec = types.SimpleNamespace(stages=stages, learning_rate=rate)
    return pending_lib.Pending(20, 24, 1, None, {}, None).record(spec, out)

  def test_losses_are_means_of_the_steps_and_students(self):
    found = self.record(loss=np.array([8.0, 16.0]))
    want = {'step': 24, 'stage': 'b', 'loss': 3.0, 'learning_rate': 34}
    self.assertEqual(found, want)

  def test_several_terms_have_a_loss_each(self):
    terms = {'h': np.array([4.0, 12.0]), 'output': np.array([2.0, 2.0])}
    found = self.record(loss=np.array([6.0, 14.0]), terms=terms)
    losses = {n: x for n, x in found.items() if n.startswith('loss')}
    want = {'loss': 2.5, 'loss/h': 2.0, 'loss/output': 0.5}
    self.assertEqual(losses, want)


if __name__ == '__main__':
  absltest.main()
