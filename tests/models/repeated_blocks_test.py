"""Blocks of models whose residual sums lie outside of their modules."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cxjax.models import adapters
from cxjax.models import repeated_blocks
from cxjax.models import taps

X = jax.ShapeDtypeStruct((4, 7, 8), jnp.float32)
EYE = jax.ShapeDtypeStruct((8, 8), jnp.float32)


class Named:
  """Activations by kind and number, as linen names its modules."""

  def __init__(self):
    """Starts without any."""
    self.found = {}

  def __call__(self, kind, value):
    number = sum(name.startswith(f'{kind}_') for name in self.found)
    self.found[f'{kind}_{number}'] = value
    return value


def loop(depth, final=False, after=False, mlp=True):
  """Taps of a loop of modules; none of them returns the sum of the stream.

  Args:
    depth: number of blocks.
    final: adds a norm at the end.
    after: norms are behind the sums, in place of before the products.
    mlp: adds two dense layers to the one in each block.
  """

  def apply(params, x):
    put = Named()
    norm = lambda x: put('Norm', x - x.mean(-1, keepdims=True))
    wide = jnp.concatenate([params, params], 1)
    x = put('Embed', x @ params)
    for _ in range(depth):
      if after:
        x = norm(x + put('Mixer', jnp.tanh(x @ params)))
        x = norm(x + put('Dense', put('Dense', jnp.tanh(x @ wide)) @ wide.T))
        continue
      x = x + put('Mixer', jnp.tanh(norm(x) @ params))
      if mlp:
        h = put('Dense', jnp.tanh(norm(x) @ wide))
        x = x + put('Dense', h @ wide.T)
    x = norm(x) if final else x
    return x.mean(1) @ params, put.found

  return taps.taps(adapters.from_fn(apply, EYE), X)


class BlocksTest(parameterized.TestCase):
  @parameterized.parameters(2, 3, 6)
  def test_norms_of_the_stream_stand_for_the_blocks(self, depth):
    """Norm `2 i` reads what `i` blocks have added; the last is at the end."""
    found = loop(depth, final=True)
    want = tuple(f'Norm_{2 * i}' for i in range(1, depth + 1))
    self.assertEqual(found.layers, want)
    self.assertEqual(found.runs, {'Norm_*': want})

  def test_the_last_block_has_no_norm_behind_it(self):
    found = loop(3)
    self.assertEqual(found.layers, ('Norm_2', 'Norm_4', 'Dense_5'))

  def test_norms_at_the_ends_of_blocks(self):
    found = loop(3, after=True)
    self.assertEqual(found.layers, ('Norm_1', 'Norm_3', 'Norm_5'))

  def test_the_norm_of_an_embedding_is_no_layer(self):
    """The same holds for layers of two kinds in turns."""
    found = loop(4, mlp=False)
    self.assertEqual(found.layers, ('Norm_1', 'Norm_2', 'Norm_3', 'Mixer_3'))

  def test_a_few_repetitions_are_no_blocks(self):
    """A model is not cut down to those of its modules that repeat."""
    names = 'a', 'b', 'c', 'd', 'e', 'mix_0', 'out_0', 'mix_1', 'out_1'

    def apply(params, x):
      found = {}
      for name in names:
        x = found[name] = x @ params
      return x @ params, found

    candidates = taps.taps(adapters.from_fn(apply, EYE), X).candidates
    self.assertIsNone(repeated_blocks.find(candidates))

  def test_one_block_is_found_by_those_of_another_model(self):
    teacher = repeated_blocks.find(loop(3, final=True).candidates)
    student = loop(1, final=True).candidates
    self.assertIsNone(repeated_blocks.find(student))
    found = repeated_blocks.find(student, teacher.word)
    self.assertEqual(found.layers, ('Norm_2',))
    self.assertEqual(found.label, 'Norm_*')
    self.assertIsNone(repeated_blocks.find(student, [('Other_*', 3)] * 2))


if __name__ == '__main__':
  absltest.main()
