"""Which parameters are trained: by type, by path, by a function."""

import functools

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.api import trainable
from small_networks import BIG
from small_networks import ONE
from small_networks import PLAN
from small_networks import SMALL
from small_networks import C
from small_networks import D
from small_networks import X
from small_networks import batches


class Adapted(nnx.Module):
  """Two linear layers, the first with LoRA."""

  def __init__(self, seed=0):
    rngs = nnx.Rngs(seed)
    self.low = nnx.LoRA(
      D, 2, 5, base_module=nnx.Linear(D, 5, rngs=rngs), rngs=rngs
    )
    self.head = nnx.Linear(5, C, rngs=rngs)

  def __call__(self, x):
    return self.head(jnp.tanh(self.low(x)))


def changed(before, after):
  """Paths of the leaves that differ."""
  before, after = map(leaves, (before, after))
  return {
    name for name in before if not np.array_equal(before[name], after[name])
  }


def leaves(module):
  state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(state)
  }


NNX = cxjax.from_nnx(Adapted())
HEAD = {'head/kernel', 'head/bias'}


class TypesTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_lora_in_two_stages_and_of_two_students(self):
    students = [Adapted(0), Adapted(1)]
    plan = cxjax.plan(
      BIG, cxjax.from_nnx(students), X, num_steps=4, layers=[('high', 'low')]
    )
    found, _ = cxjax.distill(plan, batches(), trainable=nnx.LoRAParam)
    for before, after in zip(students, found, strict=True):
      self.assertEqual(changed(before, after), {'low/lora_a', 'low/lora_b'})

  @parameterized.parameters(
    (nnx.BatchStat, 'trainable=BatchStat: the student has .* LoRAParam, Param'),
    (int, 'trainable=int: only types of nnx variables'),
  )
  def test_refuses(self, kind, message):
    with self.assertRaisesRegex(errors.UserError, message):
      trainable.resolved(kind, NNX)

  def test_a_student_that_is_not_of_nnx(self):
    with self.assertRaisesRegex(errors.UserError, 'LoRAParam is a type of nnx'):
      trainable.resolved(nnx.LoRAParam, SMALL)


class FunctionsTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda path, leaf: leaf.shape[0] == D, {'low'}),
    (lambda path, leaf: np.bool_(path != 'low'), {'high', 'out'}),
    ((lambda path, leaf: path == 'low', 'out'), {'low', 'out'}),
    (['low', 'high'], {'low', 'high'}),
    ((nnx.LoRAParam, 'head'), {'low/lora_a', 'low/lora_b', *HEAD}),
  )
  def test_chooses(self, rule, want):
    student = NNX if want >= HEAD else SMALL
    self.assertEqual(set(trainable.resolved(rule, student).paths), want)

  @parameterized.parameters(
    (lambda path, leaf: None, "returns None for .'high', leaf.: it must"),
    (lambda path: True, "raises a TypeError for .'high', leaf.: .*positional"),
    (lambda path, leaf: False, 'matches no parameter of the student.*: high'),
    ((), 'must not be empty'),
    (('low', ''), 'must not be empty'),
    (('low', 'hihg'), "trainable='hihg' matches no parameter"),
    (3, 'trainable=3 must be a pattern'),
    (None, 'trainable=None must be a pattern'),
  )
  def test_refuses(self, rule, message):
    with self.assertRaisesRegex(errors.UserError, message):
      trainable.resolved(rule, SMALL)

  @pytest.mark.slow
  def test_resumes_by_the_parameters_that_are_chosen(self):
    """Another function that chooses the same is the same run."""
    folder = self.create_tempdir().full_path
    train = functools.partial(
      cxjax.distill, ONE, batches(), workdir=folder, log_every=10
    )
    first, _ = train(trainable=lambda path, leaf: path == 'out')
    again, _ = train(trainable=('out',))
    np.testing.assert_array_equal(first['out'], again['out'])
    np.testing.assert_array_equal(first['low'], SMALL.params['low'])
    with self.assertRaisesRegex(errors.UserError, r'trainable \(.*out'):
      train(trainable=lambda path, leaf: path == 'low')

  def test_a_stage_that_would_train_nothing(self):
    with self.assertRaisesRegex(
      errors.UserError, "trains no parameter .*'low'"
    ):
      cxjax.distill(PLAN, batches(), trainable=lambda path, leaf: path == 'out')
