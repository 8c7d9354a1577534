"""Tests of the cosine of the gradients of two stages."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.training import gradient_cosine
import small_networks

BATCHES = small_networks.batches(number=3)


def history(stages, rows=BATCHES, num_steps=4, **kwargs):
  plan = cxjax.plan(
    small_networks.BIG, small_networks.SMALL, rows[0], stages=stages
  )
  options = dict(log_every=1, eval_every=1, learning_rate=1e-6)
  options |= dict(gradient_cosine=True) | kwargs
  _, found = cxjax.distill(plan, rows, **options)
  return found


def stages(*terms):
  return tuple(cxjax.Stage(f'{i}', 2, term) for i, term in enumerate(terms))


class CosineTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_by_hand(self):
    """With a learning rate of nearly 0 the student is the start."""
    found = history(
      stages(cxjax.Term('low', 'low', loss='mse'), cxjax.Term(loss='mse')),
      held_out=np.concatenate(BATCHES),  # As many as a batch has are read.
    )
    x, student = BATCHES[0], small_networks.SMALL.params
    run = small_networks.two_layers
    output, wanted = run(small_networks.BIG.params, x)

    def gradient(loss):
      return np.asarray(jax.grad(loss)(student)['low']).ravel()  # Shared.

    a = gradient(lambda p: jnp.mean((run(p, x)[1]['low'] - wanted['low']) ** 2))
    b = gradient(lambda p: jnp.mean((run(p, x)[0] - output) ** 2))
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    first, second, *rest = [one.get('eval/gradient_cosine') for one in found]
    np.testing.assert_allclose(first, [expected], atol=1e-4)
    self.assertLen(second, 1)
    self.assertEqual(rest, [None, None])  # The last stage has none.

  @pytest.mark.slow
  def test_the_same_loss_twice_has_1(self):
    given = stages(cxjax.Term(loss='mse'), cxjax.Term(loss='mse'))
    folder = self.create_tempdir().full_path
    found = history(given, workdir=folder)
    np.testing.assert_allclose(found[0]['eval/gradient_cosine'], 1, atol=1e-5)
    # A run without it has other records.
    with self.assertRaisesRegex(errors.UserError, r'cosine \(True there, abs'):
      history(given, workdir=folder, gradient_cosine=False)

  @pytest.mark.slow
  def test_is_that_of_parameters_that_both_train(self):
    low = cxjax.Stage('0', 2, cxjax.Term('low', 'low', loss='mse'))
    last = cxjax.Stage('1', 2, cxjax.Term(loss='mse'), frozen='low')
    found = history((low, last))
    self.assertEqual(found[0]['eval/gradient_cosine'], [0.0])  # None of them.

  def test_zeros_and_nan(self):
    some = np.float32([3, 4])
    self.assertEqual(gradient_cosine.cosine(some, 0 * some), 0)
    bad = gradient_cosine.cosine(some, np.float32([np.nan, 1]))
    self.assertTrue(np.isnan(bad))

  @pytest.mark.slow
  def test_regressors_projections_and_labels(self):
    hidden = cxjax.Term(
      'low', 'high', projection='gaussian', regressor=True, width=4
    )
    labels = np.arange(small_networks.B) % small_networks.C
    rows = [(x, labels) for x in BATCHES]
    found = history(stages(hidden, cxjax.Term(target='labels')), rows)
    (cosine,) = found[0]['eval/gradient_cosine']
    self.assertBetween(abs(cosine), 1e-6, 1)

  @parameterized.parameters(
    (stages(cxjax.Term()), 'has one stage'),
    (
      stages(
        cxjax.Term(),
        cxjax.Term('low', 'high', projection='identity', regressor=True),
      ),
      'a regressor that is not trained yet',
    ),
    (  # Evaluated by the teacher's output, which is no label.
      stages(cxjax.Term(target='labels'), cxjax.Term(loss='mse')),
      "labels in held_out, from which the stage '",
    ),
  )
  def test_refuses(self, given, message):
    rows = [(x, np.arange(small_networks.B) % 2) for x in BATCHES]
    learns = any(stage.needs_labels for stage in given)
    with self.assertRaisesRegex(errors.UserError, message):
      history(given, *([rows] if learns else []))


if __name__ == '__main__':
  absltest.main()
