"""Partition rules: which axes of a parameter are sharded."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax

from cxjax import errors
from cxjax.parallel import partition

RULES = (
  (r'(query|mlp_in|hidden\d+)/kernel$', 1),
  (r'(query|mlp_in)/bias$', 0),
  (r'mlp_out/kernel$', 0),
  (r'tokens/embedding$', 0),
  (r'tokens/embedding$', 1),
  (r'position_embedding$', None),
  (r'kernel$', 0),
)
TENSOR = partition.ParameterSharding('tensor', RULES)
FSDP = partition.ParameterSharding('fsdp', RULES)
SIZES = {'fsdp': 2, 'model': 4}


class ParameterShardingTest(parameterized.TestCase):
  def test_is_a_value(self):
    """That a compiled program can have in its key."""
    listed = partition.ParameterSharding('tensor', [list(r) for r in RULES])
    self.assertEqual(listed, TENSOR)
    self.assertLen({listed, TENSOR, FSDP, partition.REPLICATED}, 3)

  def test_unknown_mode(self):
    with self.assertRaisesRegex(
      errors.UserError, "sharding mode 'tensors'. Did you mean 'tensor'.*fsdp"
    ):
      partition.ParameterSharding('tensors')

  @parameterized.parameters(
    (('kernel$',),),
    (('kernel$', -1),),
    (('kernel$', '1'),),
    (('(kernel', 1),),
    ((3, 1),),
    (3,),
  )
  def test_malformed_rule(self, rule):
    with self.assertRaisesRegex(errors.UserError, 'Partition rule .* must be'):
      partition.ParameterSharding('tensor', (rule,))


class PartitionSpecTest(parameterized.TestCase):
  @parameterized.parameters(
    ('params/block0/query/kernel', (8, 8), P('fsdp', 'model')),
    ('params/block0/mlp_out/kernel', (32, 8), P('model', 'fsdp')),
    ('params/block0/mlp_in/bias', (32,), P('model')),
    ('params/block0/mlp_out/bias', (8,), P('fsdp')),
    # An axis that is no multiple of the mesh stays whole; the next rule counts.
    ('params/tokens/embedding', (32, 8), P('model', 'fsdp')),
    ('params/tokens/embedding', (31, 8), P(None, 'model')),
    ('params/tokens/embedding', (31, 6), P(None, 'fsdp')),
    ('params/tokens/embedding', (31, 7), P(None, None)),
    # Declared to stay whole over 'model'; the rules after it do not count.
    ('params/position_embedding', (16, 8), P('fsdp', None)),
    ('opt_state/0/count', (), P()),
    # Factored optimizer state has the path of its parameter, without its axes.
    ('opt_state/0/v_row/params/block0/query/kernel', (8,), P('model')),
    ('opt_state/0/v_row/params/block0/query/kernel', (2,), P('fsdp')),
    ('opt_state/0/v/params/block0/query/kernel', (1,), P(None)),
  )
  def test_tensor(self, path, shape, expected):
    found = partition.partition_spec(path, shape, TENSOR, SIZES)
    self.assertEqual(found, expected)

  @parameterized.parameters(
    ((8, 8), P('fsdp', None)),
    ((8, 16), P(None, 'fsdp')),
    ((8, 15), P('fsdp', None)),
    ((7, 15), P(None, None)),
    ((), P()),
  )
  def test_fsdp_shards_the_largest_axis(self, shape, expected):
    path = 'params/block0/query/kernel'
    self.assertEqual(
      partition.partition_spec(path, shape, FSDP, SIZES), expected
    )

  def test_replicated(self):
    sharding = partition.ParameterSharding('replicated', RULES)
    spec = partition.partition_spec('query/kernel', (8, 8), sharding, SIZES)
    self.assertEqual(spec, P(None, None))


class UnmatchedTest(parameterized.TestCase):
  def test_lists_what_no_rule_decides(self):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    tree = {
      'query': {'kernel': shape(8, 8), 'bias': shape(8), 'scale': shape(8)},
      'conv': {'weight': shape(3, 3, 4, 8)},
      'position_embedding': shape(16, 8),
      # 7 columns: the mesh may not divide them, but the rule is there.
      'hidden0': {'kernel': shape(8, 7)},
      'heads': [shape(2, 3)],
    }
    self.assertEqual(
      partition.unmatched(tree, TENSOR), ['conv/weight', 'heads/0']
    )
    wide = partition.ParameterSharding('tensor', ((r'.*', 2),))
    self.assertEqual(
      partition.unmatched({'a': shape(2, 2), 'b': shape(2, 2, 2)}, wide), ['a']
    )

  @parameterized.parameters('replicated', 'fsdp')
  def test_other_modes_have_no_rules(self, mode):
    tree = {'w': jnp.zeros((2, 2))}
    sharding = partition.ParameterSharding(mode)
    self.assertEmpty(partition.unmatched(tree, sharding))


class LeafNameTest(absltest.TestCase):
  def test_joins_keys_indices_and_fields(self):
    state = optax.adam(0.1).init({'a': [jnp.zeros(2)]})
    names = [
      partition.leaf_name(path) for path, _ in jax.tree.leaves_with_path(state)
    ]
    self.assertEqual(names, ['0/count', '0/mu/a/0', '0/nu/a/0'])


if __name__ == '__main__':
  absltest.main()
