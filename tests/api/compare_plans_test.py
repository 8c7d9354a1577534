"""Comparisons of plans that are more than names: masks, several outputs."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors

ROWS, LENGTH = 8, 4
random = np.random.default_rng(0)
TOKENS = random.integers(0, 9, (ROWS, LENGTH))
LABELS = random.integers(0, 5, (ROWS, LENGTH))
LOSS = {'logits': 'kl', 'boxes': 'mse'}


def tagger(params, x):
  h = jnp.tanh(params['embedding'][x] @ params['mix'])
  return h @ params['head'], {'h': h}


def detector(params, x):
  h = jnp.tanh(params['embedding'][x].mean(1) @ params['mix'])
  return {'logits': h @ params['head'], 'boxes': h @ params['boxes']}, {'h': h}


def model(apply, width):
  draw = lambda *shape: random.normal(size=shape).astype(np.float32)
  params = {'embedding': draw(9, 6), 'mix': draw(6, width)}
  params |= {'head': draw(width, 5), 'boxes': draw(width, 3)}
  return cxjax.from_fn(apply, params)


MODELS = {
  apply: (model(apply, 7), model(apply, 4)) for apply in (tagger, detector)
}


def plan(apply, example, **options):
  return cxjax.plan(*MODELS[apply], example, num_steps=4, **options)


def real(batch):
  return batch['x'] != 0


def compare(apply, example, methods, **options):
  return cxjax.compare(
    *MODELS[apply],
    [example],
    num_steps=4,
    methods=methods,
    rates=(1e-2,),
    seeds=1,
    costs='counted',
    report=lambda text: None,
    **{'held_out': example, **options},
  )


@pytest.mark.slow
class ComparePlansTest(absltest.TestCase):
  def test_a_mask_holds_for_the_held_out_set_too(self):
    for example in (TOKENS, (TOKENS, LABELS)):
      one_shot = plan(tagger, example, layers=(), mask=real)
      methods = {
        'one_shot': one_shot,
        'hidden': plan(tagger, example, layers=[('h', 'h')], mask=real),
      }
      found = compare(tagger, example, methods)
      _, history = cxjax.distill(
        one_shot, [example], learning_rate=1e-2, held_out=example
      )
      name = 'accuracy' if isinstance(example, tuple) else 'agreement'
      (score,) = history[-1][f'eval/{name}']
      self.assertAlmostEqual(found.rows[0][f'{name}: mean'], score, places=3)

  def test_other_masks_are_refused(self):
    masked = plan(tagger, TOKENS, layers=(), mask=real)
    few = plan(tagger, TOKENS, layers=(), mask=lambda batch: batch['x'] > 4)
    for other in (few, {'method': 'one_shot'}):
      with self.assertRaisesRegex(errors.UserError, "masks of 'a' and 'b'"):
        compare(tagger, TOKENS, {'a': masked, 'b': other})

  def test_features_are_compared_with_the_teacher_or_with_labels(self):
    """The teacher is the reference of the default, labels of a function."""
    example, first = (TOKENS, LABELS), ('one_shot',)
    found = compare(tagger, example, first, loss='mse')
    self.assertGreater(found.rows[0]['loss: mean'], 0.01)
    see = lambda got, labels: got.argmax(-1) == labels
    right = {'right': cxjax.Metric(see)}
    found = compare(tagger, example, first, loss='mse', metrics=right)
    output, _ = tagger(found.best.params, TOKENS)
    score = np.mean(np.argmax(output, -1) == LABELS)
    self.assertAlmostEqual(found.rows[0]['right: mean'], score, places=4)

  def test_several_outputs(self):
    for example in (TOKENS, (TOKENS, LABELS[:, 0])):
      methods = {
        'one_shot': plan(detector, example, layers=(), loss=LOSS),
        'extracted': plan(detector, example, loss=LOSS),
      }
      batches = iter([example, example])
      found = compare(detector, example, methods, held_out=batches, loss=LOSS)
      self.assertLen(found.rows, 2)
      # The plans have the losses.
      with self.assertNoLogs('absl', 'WARNING'):
        again = compare(detector, example, methods, held_out=[example] * 2)
      self.assertEqual(again.rows, found.rows)
    params = jax.tree.map(lambda leaf: 2 * leaf, MODELS[detector][0].params)
    theirs = cxjax.from_fn(detector, params), MODELS[detector][1]
    doubled = cxjax.plan(*theirs, TOKENS, num_steps=4, layers=(), loss=LOSS)
    with self.assertRaisesRegex(errors.UserError, "'a' has another teacher"):
      compare(detector, TOKENS, {'a': doubled})
    with self.assertRaisesRegex(errors.UserError, r'layers=\(\)\), .extracted'):
      compare(detector, TOKENS, ('one_shot',), loss=LOSS)


if __name__ == '__main__':
  absltest.main()
