"""Tables of parameters, and a family that a user registers."""

import dataclasses

from absl.testing import absltest
from flax import linen as nn
import jax
import numpy as np

from cxjax import errors
from cxjax.interop import huggingface
from cxjax.interop.huggingface import base
from tests.interop.huggingface import fixtures


class TableTest(fixtures.TestCase):
  def test_a_kernel_is_transposed_and_a_norm_is_not(self):
    table = [*base.linear('a', 'A'), *base.norm('b/c', 'B')]
    tensors = {
      'A.weight': np.arange(6.0).reshape(2, 3),
      'A.bias': np.ones(2),
      'B.weight': np.full(3, 2.0),
      'B.bias': np.full(3, 3.0),
    }
    variables = base.to_variables(table, tensors)
    want = {
      'a': {'kernel': tensors['A.weight'].T, 'bias': tensors['A.bias']},
      'b': {'c': {'scale': tensors['B.weight'], 'bias': tensors['B.bias']}},
    }
    self.assert_same_tree(variables, {'params': want})
    self.assert_same_tree(base.to_tensors(table, want), tensors)

  def test_parts_of_a_tensor_come_back_as_one(self):
    for transposed in (False, True):
      table = [
        base.Parameter(name, 'qkv', transposed, part=(i, 3))
        for i, name in enumerate('qkv')
      ]
      whole = np.arange(24, dtype=np.float32).reshape(2, 12)
      tensor = whole.T if transposed else whole
      params = base.to_variables(table, {'qkv': tensor})['params']
      np.testing.assert_array_equal(params['k'], whole[:, 4:8])
      back = base.to_tensors(table, params)
      self.assert_same_tree(back, {'qkv': tensor})
      self.assertEqual(base.tensor_shapes(table, params), {'qkv': tensor.shape})

  def test_the_first_row_of_a_second_tensor_is_added(self):
    table = [base.Parameter('position', 'P', added='T')]
    tensors = {'P': np.ones((3, 2)), 'T': np.array([[1, 2], [5, 5]])}
    found = base.to_variables(table, tensors)['params']['position']
    np.testing.assert_array_equal(found, [[2, 3]] * 3)
    del tensors['T']
    with self.assertRaisesRegex(errors.UserError, "Unknown tensor 'T'"):
      base.to_variables(table, tensors)

  def test_half_precision_becomes_float32(self):
    table = base.norm('a', 'A')
    half = {f'A.{n}': np.ones(3, np.float16) for n in ('weight', 'bias')}
    for leaf in jax.tree.leaves(base.to_variables(table, half)):
      self.assertEqual(leaf.dtype, np.float32)


class Doubling(nn.Module):
  """A model of a user: one linear layer."""

  features: int

  @nn.compact
  def __call__(self, tokens):
    return nn.Dense(self.features, name='dense')(tokens * 2.0)


FAMILY = base.Family(
  model_type='doubling',
  module_type=Doubling,
  sizes={'features': 'hidden_size'},
  fixed={},
  defaults={},
  select=lambda tensors, config: tensors,
  module=lambda config, tensors: Doubling(config['hidden_size']),
  parameters=lambda module: base.linear('dense', 'dense'),
  constants=lambda config: {},
  refusal=lambda module: '' if module.features < 9 else 'Too wide for a file.',
  config=lambda module: {
    'model_type': 'doubling',
    'hidden_size': module.features,
  },
  complete=lambda tensors, module: tensors,
)


class RegistryTest(fixtures.TestCase):
  def setUp(self):
    super().setUp()
    base.register(FAMILY)
    self.addCleanup(base.FAMILIES.pop, 'doubling')

  def test_a_family_is_read_and_written(self):
    module, folder = Doubling(4), self.folder()
    kernel = np.arange(4, dtype=np.float32)[None]
    bias = np.ones(4, np.float32)
    variables = {'params': {'dense': {'kernel': kernel, 'bias': bias}}}
    huggingface.write(folder, module, variables)
    found, there = huggingface.read(folder)
    self.assertEqual(found, module)
    self.assert_same_tree(there, variables)

  def test_errors(self):
    with self.assertRaisesRegex(errors.UserError, "'doubling' is registered"):
      base.register(dataclasses.replace(FAMILY))
    with self.assertRaisesRegex(errors.UserError, 'Too wide for a file'):
      huggingface.write(self.folder(), Doubling(9), {})
    with self.assertRaisesRegex(errors.UserError, 'Dense has no Hugging Face'):
      huggingface.write(self.folder(), nn.Dense(3), {})


if __name__ == '__main__':
  absltest.main()
