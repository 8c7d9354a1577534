"""Sizes and inputs of transformers that are refused, and what they declare."""

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.methods import targets
from cxjax.models import base
from cxjax.models import transformer
from cxjax.parallel import partition
from tests.models.transformed import KINDS
from tests.models.transformed import POSITIONS
from tests.models.transformed import REAL
from tests.models.transformed import TOKENS
from tests.models.transformed import make
from tests.models.transformed import params


class AbilitiesTest(parameterized.TestCase):
  @parameterized.named_parameters(*KINDS)
  def test_satisfies_the_protocols(self, causal):
    model = make(causal, dropout=0.1)
    self.assertIsInstance(model, base.ModelWithHead)
    abilities = model.abilities
    self.assertEqual(abilities.inputs, transformer.INPUTS)
    self.assertEqual(abilities.dropout, 0.1)
    self.assertTrue(abilities.head)

  @parameterized.named_parameters(*KINDS)
  @pytest.mark.slow
  def test_partition_rules_decide_about_every_matrix(self, causal):
    sharding = partition.ParameterSharding(
      'tensor', make(causal).abilities.partition_rules
    )
    self.assertEmpty(partition.unmatched(params(causal), sharding))

  def test_products_are_split_by_output_then_by_input(self):
    rules = make(False).abilities.partition_rules
    sharding = partition.ParameterSharding('tensor', rules)
    sizes = {'model': 2, 'fsdp': 1}
    leaves = jax.tree.leaves_with_path(params(False))
    found = {}
    for path, leaf in leaves:
      name = partition.leaf_name(path)
      spec = partition.partition_spec(name, leaf.shape, sharding, sizes)
      axes = [i for i, axis in enumerate(spec) if axis == 'model']
      found[name.removeprefix('params/')] = axes
    for name, axes in {
      'block0/query/kernel': [1],
      'block0/key/bias': [0],
      'block1/value/kernel': [1],
      'block0/attention_out/kernel': [0],
      'block0/attention_out/bias': [],
      'block0/mlp_in/kernel': [1],
      'block0/mlp_in/bias': [0],
      'block0/mlp_out/kernel': [0],
      'block0/mlp_norm/scale': [],
      'position_embedding': [],
      'transform/kernel': [],
    }.items():
      self.assertEqual(found[name], axes, name)


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(heads=5), 'heads=5 do not divide width=16'),
    (dict(depth=0), 'depth=0'),
    (dict(tied=True), r'classes \(5\).*ids \(7\)'),
    (dict(width=0), 'width=0'),
    (dict(num_classes=-1), 'num_classes=-1 must be a whole number, at least 0'),
    (dict(norm_eps=-1.0), 'norm_eps=-1.0'),
  )
  def test_sizes_that_do_not_fit(self, kwargs, message):
    with self.assertRaisesRegex(errors.UserError, message):
      make(False, **kwargs)

  def test_sequence_longer_than_max_length(self):
    with self.assertRaisesRegex(errors.UserError, '13 tokens.*12 positions'):
      make(True).init(jax.random.key(0), np.zeros((1, 13), int))

  @parameterized.parameters(
    ({'positions': POSITIONS}, "'positions' is called 'target_positions' now"),
    ({'places': TOKENS}, "'places' is called 'position_ids' now"),
    (
      {'attention_mask': REAL},
      "Unknown input 'attention_mask'.*: tokens, mask",
    ),
    ({'tokens': TOKENS.astype(np.float32)}, r"'tokens' are float32\[3, 10\]"),
    ({'tokens': TOKENS[0]}, r"'tokens' are int64\[10\]; they must be \[B, L\]"),
  )
  def test_inputs_that_it_cannot_read(self, x, message):
    with self.assertRaisesRegex(errors.UserError, message):
      make(True).apply(params(True), {'tokens': TOKENS, **x})

  def test_input_without_tokens(self):
    with self.assertRaisesRegex(errors.UserError, "has no 'tokens'"):
      make(True).apply(params(True), {'mask': REAL})

  @pytest.mark.slow
  def test_unknown_activation_lists_those_that_exist(self):
    with self.assertRaisesRegex(errors.UserError, "'block7'.*block1/mlp"):
      targets.activation(make(True).apply, params(True), TOKENS, 'block7')
