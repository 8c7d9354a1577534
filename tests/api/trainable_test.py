"""Which parameters are trained: by type, by path, by a function."""

import functools

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.api import trainable
from small_networks import BIG
from small_networks import ONE
from small_networks import PLAN
from small_networks import SMALL
from small_networks import TEACHER
from small_networks import C
from small_networks import D
from small_networks import Net
from small_networks import X
from small_networks import batches
from small_networks import network
from tests.api.distilled import FolderTest
from tests.api.distilled import distill


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


@pytest.mark.slow
class TrainableTest(FolderTest):
  DECAYING = staticmethod(functools.partial(optax.adamw, 0.1, weight_decay=0.5))

  @parameterized.parameters(
    ('lo*', {'low'}),
    ('^(low|out)$', {'low', 'out'}),
  )
  def test_the_others_are_bit_for_bit_what_they_were(self, pattern, moved):
    plan = cxjax.plan(BIG, SMALL, X, num_steps=6, layers=())
    params, _ = distill(plan, trainable=pattern, optimizer=self.DECAYING())
    for name, before in SMALL.params.items():
      self.assertEqual(
        np.array_equal(params[name], before), name not in moved, name
      )

  def test_paths_of_flax_and_several_students(self):
    students = network(Net((4,)), X, 0, 1)
    plan = cxjax.plan(TEACHER, students, X, num_steps=20, share=0.5)
    found, _ = distill(
      plan, trainable='Dense_*/bias', optimizer=self.DECAYING()
    )
    for before, after in zip(students.params, found, strict=True):
      for path, leaf in jax.tree.leaves_with_path(before):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        layer, kind = name.split('/')[-2:]
        same = np.array_equal(after['params'][layer][kind], leaf)
        self.assertEqual(same, kind == 'kernel', name)

  @parameterized.parameters(
    ('hidden', 'no parameter of the student. Their paths are: high, low, out'),
    ('(low', 'is no regular expression'),
    ('out', "trains no parameter with 'low'"),
    (('low', 3), "must be a pattern of paths, as 'block*'"),
  )
  def test_refuses(self, pattern, message):
    plan = cxjax.plan(BIG, SMALL, X, num_steps=6, layers=[('low', 'low')])
    with self.assertRaises(errors.UserError) as caught:
      distill(plan, trainable=pattern)
    self.assertIn(message, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))
