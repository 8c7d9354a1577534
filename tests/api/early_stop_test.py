"""Early stopping by `on_record`."""

from absl.testing import absltest
import jax
import numpy as np
import pytest

import cxjax
import small_networks as small

pytestmark = pytest.mark.slow


class Patience:
  """Raises StopIteration at a step; keeps what it was called with."""

  def __init__(self, at):
    self.at, self.seen = at, []

  def __call__(self, record):
    self.seen.append(record['step'])
    if record['step'] >= self.at:
      raise StopIteration


class EarlyStopTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    teacher = cxjax.from_fn(small.two_layers, small.parameters(0))
    student = cxjax.from_fn(small.two_layers, small.parameters(1))
    cls.batches = small.batches(number=40)
    hidden = cxjax.Stage('hidden', 20, (cxjax.Term('low', 'low'),))
    output = cxjax.Stage('output', 20, (cxjax.Term(),))
    cls.plan = cxjax.plan(
      teacher, student, cls.batches[0], stages=(hidden, output)
    )
    cls.hook = Patience(24)
    cls.stopped = cls.distill(on_record=cls.hook)

  @classmethod
  def distill(cls, **options):
    every = {'log_every': 4, 'eval_every': 20, 'learning_rate': 1e-2}
    return cxjax.distill(cls.plan, cls.batches, **every, **options)

  def test_the_run_ends_with_the_next_record_and_is_evaluated(self):
    for at, end in ((20, 24), (24, 28), (40, 40)):
      with self.subTest(at):
        hook, (_, history) = self.hook, self.stopped
        if at != 24:
          hook = Patience(at)
          _, history = self.distill(on_record=hook)
        self.assert_ends(history, hook, end)

  def assert_ends(self, history, hook, end):
    self.assertEqual(history[-1]['step'], end)
    self.assertEqual(hook.seen[-1], end)
    self.assertIn('eval/agreement', history[-1])

  def test_the_students_are_those_of_that_step(self):
    _, whole = self.distill()
    params, history = self.stopped
    self.assertEqual(
      [r['loss'] for r in history], [r['loss'] for r in whole[: len(history)]]
    )
    output = small.two_layers(params, self.batches[0])[0]
    wanted = small.two_layers(self.plan.teacher.params, self.batches[0])[0]
    np.testing.assert_allclose(
      history[-1]['eval/agreement'],
      [np.mean(output.argmax(-1) == wanted.argmax(-1))],
      rtol=1e-6,
    )

  def test_a_run_that_was_stopped_is_finished(self):
    folder = self.create_tempdir().full_path
    hook = Patience(8)  # In the first stage.
    params, history = self.distill(on_record=hook, workdir=folder)
    self.assert_ends(history, hook, 12)
    with self.assertLogs(level='WARNING') as log:
      again, same = self.distill(workdir=folder)
    self.assertRegex(' '.join(log.output), 'ended at step 12 of 40, by its on_')
    jax.tree.map(np.testing.assert_array_equal, params, again)
    self.assertEqual(history, same)


if __name__ == '__main__':
  absltest.main()
