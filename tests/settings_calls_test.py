"""Public functions under settings of JAX that raise, and in a user's mesh."""

import contextlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

import argument_cases

# They take what a user has placed, so that his guard of transfers is his.
PRIMITIVES = (
  'agreement',
  'cosine',
  'cross_entropy',
  'degree_one',
  'evaluate',
  'hard_kl',
  'jensen_shannon',
  'kl',
  'l2',
  'make_targets',
  'methods.relational.attention',
  'methods.relational.cka',
  'methods.relational.gram',
  'mse',
  'project',
  'reverse_kl',
  'top_k',
  'top_k_kl',
  'train_many_steps',
  'train_step',
)
WHOLE = (
  'compare',
  'distill',
  'generate',
  'huggingface.read',
  'huggingface.write',
  'plan',
  'shrink',
)


@contextlib.contextmanager
def strict(transfers):
  with (
    jax.set_mesh(jax.make_mesh((1,), ('x',))),
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
    jax.transfer_guard(transfers),
  ):
    yield


class CallsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    for table in argument_cases.REGISTRIES:
      self.enter_context(mock.patch.dict(table))

  @parameterized.parameters(*PRIMITIVES)
  @pytest.mark.slow
  def test_a_primitive_returns_the_same(self, name):
    case = argument_cases.CASES[name]
    expected = case.function(**case.given)
    with strict('allow'):
      found = case.function(**case.given)
    arrays = lambda tree: [
      np.asarray(leaf)
      for leaf in jax.tree.leaves(tree)
      if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    chex.assert_trees_all_close(arrays(found), arrays(expected), rtol=1e-5)

  @parameterized.parameters(*WHOLE)
  @pytest.mark.slow
  def test_what_reads_batches_or_files_runs(self, name):
    case = argument_cases.CASES[name]
    with strict('disallow'):
      result = case.function(**case.given)
    case.then(result)


if __name__ == '__main__':
  absltest.main()
