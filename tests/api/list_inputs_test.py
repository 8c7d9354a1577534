"""Models of one input that is a list, and examples that are lists."""

from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp

import cxjax
from cxjax import errors


class Sum(nn.Module):
  """Reads `count` arrays in one list."""

  count: int = 1

  @nn.compact
  def __call__(self, xs):
    if not isinstance(xs, list | tuple) or len(xs) != self.count:
      raise ValueError('not my list')
    hidden = sum(
      nn.relu(nn.Dense(4, name=f'in{i}')(x)) for i, x in enumerate(xs)
    )
    return nn.Dense(3, name='out')(nn.Dense(4, name='hidden')(hidden))


def model(module, x, seed):
  return cxjax.from_linen(module, module.init(jax.random.key(seed), x))


class ListInputsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jnp.ones((2, 5))

  def models(self, count):
    xs = [self.x] * count
    return (model(Sum(count), xs, seed) for seed in range(2))

  @parameterized.parameters(
    (1, lambda x: [x], r'a list .*example \[x\] .*Give \{.x.: \[x\]\}, '),
    (1, lambda x: (x,), r'a tuple of .*example \(x,\) .*\{.x.: \(x,\)\}, '),
    (1, lambda x: ([x],), r'\{.x.: \[x\]\}, '),
    (2, lambda x: [x, x], r'Give \{.x.: \[x, y\]\}, also in the batches'),
    (2, lambda x: (x, x), r'Give \{.x.: \(x, y\)\}, also in the batches'),
  )
  def test_a_list_that_is_read_otherwise_says_how_to_give_it(
    self, count, example, message
  ):
    with self.assertRaisesRegex(
      errors.UserError, f'^The teacher reads .*{message}'
    ) as caught:
      cxjax.plan(*self.models(count), example(self.x), num_steps=2, layers=())
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    (1, lambda x: {'x': [x]}),
    (1, lambda x: {'x': (x,)}),
    (2, lambda x: {'x': [x, x]}),
    (2, lambda x: ([x, x], jnp.zeros(2, jnp.int32))),
  )
  def test_what_it_says_to_give_runs(self, count, example):
    planned = cxjax.plan(
      *self.models(count), example(self.x), num_steps=2, layers=()
    )
    self.assertLen(jax.tree.leaves(planned.batch['x']), count)

  @parameterized.parameters(
    (1, lambda x: x), (2, lambda x: {'x': x}), (2, lambda x: [x])
  )
  def test_others_keep_their_error(self, count, example):
    with self.assertRaisesRegex(errors.UserError, 'does not run on an x'):
      cxjax.plan(*self.models(count), example(self.x), num_steps=2, layers=())
