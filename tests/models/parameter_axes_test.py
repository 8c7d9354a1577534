"""Names of axes: every parameter has them, and they say what is sharded."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp

import cxjax
from cxjax.models import parameter_axes
from cxjax.parallel import partition

SIZES = dict(vocab_size=11, max_length=5, num_classes=11, width=8, heads=2)
DECODER = dict(SIZES, depth=1, mlp_width=6, qk_norm=True, qkv_bias=True)
DECODER |= dict(out_bias=True, mlp_bias=True, post_norms=True)
SHARDED = {
  'block0/query/kernel': (None, 'model'),
  'block0/attention_out/kernel': ('model', None),
  'block0/attention_out/bias': (None,),
  'block0/mlp_in/bias': ('model',),
  'block0/mlp_norm/scale': (None,),
  'tokens/embedding': ('model', None),
  'logits/kernel': (None, 'model'),
  'transform/kernel': (None, None),
  'logits_bias': ('model',),
}


class ParameterAxesTest(parameterized.TestCase):
  @parameterized.parameters(
    cxjax.Decoder(**DECODER),
    cxjax.Decoder(**DECODER, causal=False, embeddings_norm=True),
    cxjax.Transformer(**SIZES, depth=1, causal=False, relative_buckets=4),
  )
  def test_every_parameter_has_names(self, module):
    tokens = jnp.zeros((1, 1), int)
    found = jax.eval_shape(module.init, jax.random.key(0), tokens)
    flat = traverse_util.flatten_dict(found['params'], sep='/')
    sizes = {'width': 8, 'query': 8, 'key_value': 8, 'vocabulary': 11}
    sizes |= {'classes': 11, 'mlp': module.mlp_width or 32, 'head_width': 4}
    sizes |= {'heads': 2, 'buckets': 4, 'positions': 5}
    for path, leaf in flat.items():
      names = parameter_axes.of(path)
      self.assertEqual(tuple(sizes[name] for name in names), leaf.shape, path)
    rules = module.abilities.partition_rules
    sharding = partition.ParameterSharding('tensor', rules)
    self.assertEqual(partition.unmatched(found, sharding), [])

  def test_rules(self):
    sharding = partition.ParameterSharding(
      'tensor', parameter_axes.partition_rules()
    )
    for path, want in SHARDED.items():
      shape, sizes = (8,) * len(want), {'fsdp': 3, 'model': 2}
      spec = partition.partition_spec(path, shape, sharding, sizes)
      self.assertEqual(tuple(spec), want, path)

  def test_another_parameter_has_none(self):
    with self.assertRaises(KeyError):
      parameter_axes.of('linear/kernel')


if __name__ == '__main__':
  absltest.main()
