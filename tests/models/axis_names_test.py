"""Names of the axes of parameters: ignored, or mapped to our mesh."""

from absl.testing import parameterized
import chex
from flax import linen as nn
from flax import nnx
import jax
import numpy as np

from cxjax import errors
from cxjax.models import axis_names
from cxjax.models import linen_adapter
from cxjax.models import nnx_adapter
from cxjax.parallel import partition

X = np.ones((4, 5), np.float32)
INIT = nn.initializers.lecun_normal()


class Named(nn.Module):
  @nn.compact
  def __call__(self, x):
    init = nn.with_partitioning(INIT, ('embed', 'tp'))
    x = nn.relu(nn.Dense(8, kernel_init=init, name='up')(x))
    init = nn.with_logical_partitioning(INIT, (('tp', 'other'), None))
    return nn.Dense(3, kernel_init=init, name='down')(x)


class BoxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.variables = Named().init(jax.random.key(0), X)

  @parameterized.parameters(True, False)
  def test_boxes_are_taken_off_and_put_on_again(self, collections):
    given = self.variables if collections else self.variables['params']
    for training in (None, {}):
      model = linen_adapter.from_linen(Named(), given, training=training)
      kernel = model.params['up']['kernel']
      self.assertIsInstance(kernel, jax.Array)
      chex.assert_trees_all_equal(model.wrap(model.params), given)
    np.testing.assert_array_equal(
      model.apply(model.params, X)[0], Named().apply(self.variables, X)
    )
    self.assertIsNone(model.abilities.partition_rules)

  def test_names_become_rules(self):
    mesh_axes = {'tp': 'model', 'embed': None, 'other': 'fsdp'}
    own = ((r'nothing', 0),)
    model = linen_adapter.from_linen(
      Named(), self.variables, mesh_axes=mesh_axes, partition_rules=own
    )
    rules = model.abilities.partition_rules
    self.assertEqual(rules[0], own[0])
    sharding = partition.ParameterSharding('tensor', rules)
    spec = lambda path, *shape: tuple(
      partition.partition_spec(path, shape, sharding, {'model': 2, 'fsdp': 3})
    )
    self.assertEqual(spec('up/kernel', 5, 8), (None, 'model'))
    self.assertEqual(spec('mu/down/kernel', 8, 3), ('model', 'fsdp'))
    self.assertEqual(spec('up/bias', 8), (None,))
    self.assertEmpty(partition.unmatched(model.params, sharding))

  @parameterized.parameters(
    ({'tp': 'model'}, "does not map the axis '(embed|other)' of (up|down)/k"),
    ({'tp': 'model', 'embed': 'model', 'other': None}, 'two axes of up/kernel'),
    ({'tp': 'data'}, "'tp': 'data'}.* must map to 'model', 'fsdp' or None"),
    ('tp', "mesh_axes='tp' must be a dict by names"),
  )
  def test_errors(self, mesh_axes, message):
    with self.assertRaisesRegex(errors.UserError, message):
      linen_adapter.from_linen(Named(), self.variables, mesh_axes=mesh_axes)


class MetadataTest(parameterized.TestCase):
  def test_names_of_an_nnx_module(self):
    with nnx.use_eager_sharding(False):
      init = nnx.with_partitioning(nnx.initializers.zeros, (None, 'tp'))
      module = nnx.Linear(5, 8, kernel_init=init, rngs=nnx.Rngs(0))
    model = nnx_adapter.from_nnx(module, mesh_axes={'tp': 'model'})
    self.assertEqual(
      model.abilities.partition_rules,
      (('(^|/)bias$', None), ('(^|/)kernel$', 1)),
    )
    back = model.wrap(model.params)
    self.assertEqual(axis_names.of_module(back)['kernel'], (None, 'tp'))
    with self.assertRaisesRegex(errors.UserError, "axis 'tp' of kernel"):
      nnx_adapter.from_nnx(module, mesh_axes={})
