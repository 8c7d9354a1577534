"""Held-out losses of outputs that several terms compare."""

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from small_networks import X
from small_networks import parameters


def model(params, x):
  low = jnp.tanh(x @ params['low'])
  logits = jnp.tanh(low @ params['high']) @ params['out']
  return {'logits': logits, 'b': low}, {}


def square(ours, theirs):
  return jnp.square(ours - theirs).mean(-1)


def distance(ours, theirs):
  return jnp.abs(ours - theirs).mean(-1)


MAIN = cxjax.Term('logits', 'logits', square)
OTHER = cxjax.Term('output:b', 'output:b', square, weight=0.5)


class AddedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('one_of_each', (MAIN, OTHER), ['b', 'logits']),
    (
      'two_of_one_output',
      (MAIN, OTHER, cxjax.Term('output:b', 'output:b', distance, name='abs')),
      ['abs', 'b', 'logits'],
    ),
    (
      'two_of_the_main_output',
      (MAIN, OTHER, cxjax.Term('logits', 'logits', distance, name='abs')),
      ['abs', 'b', 'logits'],
    ),
    (
      'a_term_named_like_an_output',
      (
        cxjax.Term('logits', 'logits', square, name='b'),
        cxjax.Term('output:b', 'output:b', distance, name='other'),
      ),
      ['b', 'other'],
    ),
    (
      'three_without_names',
      (MAIN, OTHER, cxjax.Term('output:b', 'output:b', distance, name='b')),
      ['b', 'b_2', 'logits'],
    ),
  )
  @pytest.mark.slow
  def test_the_sum_has_every_term_once(self, terms, names):
    """The metric that decides is the loss that is trained."""
    teacher, student = (cxjax.from_fn(model, parameters(k)) for k in (0, 1))
    stage = cxjax.Stage('all', 1, terms)
    plan = cxjax.plan(teacher, student, {'x': X}, stages=stage)
    _, history = cxjax.distill(
      plan, [{'x': X}], held_out={'x': X}, learning_rate=1e-30
    )
    last = history[-1]
    found = {n[10:]: v for n, v in last.items() if n.startswith('eval/loss/')}
    self.assertEqual(sorted(found), names)
    np.testing.assert_allclose(last['eval/loss'], [last['loss']], rtol=1e-5)
