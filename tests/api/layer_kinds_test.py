"""Layers of `plan` that are no modules of whole blocks: of one kind each."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

import cxjax

X = jax.ShapeDtypeStruct((4, 7, 5), jnp.float32)


class Loop(nn.Module):
  """Blocks in a loop, whose residual sums no module returns."""

  width: int
  depth: int
  final: bool = True
  after: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width, name='embed')(x)
    attention = lambda x: nn.MultiHeadDotProductAttention(num_heads=2)(x, x)
    wide = lambda x: nn.Dense(2 * self.width)(x)
    for _ in range(self.depth):
      if self.after:
        x = nn.LayerNorm()(x + attention(x))
        x = nn.LayerNorm()(x + nn.Dense(self.width)(nn.gelu(wide(x))))
      else:
        x = x + attention(nn.LayerNorm()(x))
        h = nn.LayerNorm()(x)
        x = x + nn.Dense(self.width)(nn.gelu(wide(h)))
    if self.final:
      x = nn.LayerNorm()(x)
    return nn.Dense(3, name='head')(x.mean(1))


class Named(nn.Module):
  """Blocks in a loop, whose modules have the names of their roles."""

  width: int
  depth: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width, name='embed')(x)
    for i in range(self.depth):
      attention = nn.MultiHeadDotProductAttention(2, name=f'attention_{i}')
      x = x + attention(nn.LayerNorm(name=f'norm1_{i}')(x))
      h = nn.LayerNorm(name=f'norm2_{i}')(x)
      h = nn.gelu(nn.Dense(2 * self.width, name=f'wide_{i}')(h))
      x = x + nn.Dense(self.width, name=f'narrow_{i}')(h)
    return nn.Dense(3, name='head')(x.mean(1))


class Attentions(nn.Module):
  """Norm and attention in turns; the sums are outside of both."""

  width: int
  depth: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width, name='embed')(x)
    for i in range(self.depth):
      h = nn.LayerNorm()(x)
      layer = nn.MultiHeadDotProductAttention(num_heads=2, name=f'layer_{i}')
      x = x + layer(h, h)
    return nn.Dense(3, name='head')(x.mean(1))


class Residual(nn.Module):
  """Norm and dense layer in turns, after an embedding."""

  width: int
  depth: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width, name='embed')(x)
    for i in range(self.depth):
      h = nn.LayerNorm(name=f'norm{i}')(x)
      x = x + nn.relu(nn.Dense(self.width, name=f'fc{i}')(h))
    return nn.Dense(3, name='head')(x.mean(1))


def model(module):
  shapes = jax.eval_shape(module.init, jax.random.key(0), X)
  return cxjax.from_linen(module, shapes)


def pairs(teacher, student):
  plan = cxjax.plan(model(teacher), model(student), X, num_steps=50)
  return [(s.terms[0].target, s.terms[0].student) for s in plan.stages[:-1]]


@pytest.mark.slow
class KindsTest(parameterized.TestCase):
  """Norm `2 i` is of the residual stream after `i` blocks."""

  @parameterized.parameters(
    (Loop(8, 4), Loop(4, 2), 'LayerNorm_4 LayerNorm_2 LayerNorm_8 LayerNorm_4'),
    (Loop(8, 4), Loop(4, 1), 'LayerNorm_8 LayerNorm_2'),
    (
      Loop(8, 4, final=False),
      Loop(4, 2, final=False),
      'LayerNorm_4 LayerNorm_2 Dense_6 Dense_2',
    ),
    (Loop(8, 4, final=False), Loop(4, 1, final=False), 'Dense_6 Dense_0'),
    # The stream itself is what the norms of the student return.
    (
      Loop(8, 4),
      Loop(4, 2, final=False, after=True),
      'LayerNorm_4 LayerNorm_1 LayerNorm_8 LayerNorm_3',
    ),
    (Attentions(8, 4), Attentions(4, 2), 'LayerNorm_2 LayerNorm_1 layer_3 la'),
    (Attentions(8, 3), Attentions(4, 1), 'layer_2 layer_0'),
    (Attentions(8, 6), Attentions(4, 3), 'LayerNorm_2 LayerNorm_1 LayerNorm_4'),
    (Named(8, 6), Named(4, 2), 'norm1_3 norm1_1 narrow_5 narrow_1'),
    (Residual(8, 4), Residual(4, 2), 'norm2 norm1 fc3 fc1'),
    (Residual(8, 4), Residual(4, 1), 'fc3 fc0'),
  )
  def test_the_same_in_both(self, teacher, student, want):
    with self.assertNoLogs('absl', 'WARNING'):
      found = ' '.join(
        name for pair in pairs(teacher, student) for name in pair
      )
    self.assertStartsWith(found, want)

  def test_others_are_warned_of(self):
    """A teacher that ends with its dense layer, a student with its norm."""
    student = Loop(4, 2, final=False, after=True)
    with self.assertLogs('absl', 'WARNING') as logs:
      found = pairs(Loop(8, 4, final=False), student)
    self.assertIn(('Dense_6', 'LayerNorm_3'), found)
    message = 'other kinds .*: Dense_6 with LayerNorm_3. Name pairs in layers='
    self.assertRegex('\n'.join(logs.output), message)


if __name__ == '__main__':
  absltest.main()
