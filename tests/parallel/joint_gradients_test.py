"""Gradients that the devices exchange at once."""

import re
from types import SimpleNamespace
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.models import base
from cxjax.models import mlp
from cxjax.parallel import joint_gradients
from cxjax.parallel import mesh as mesh_lib

ROWS = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
PARAMS = {
  'kernel': np.float32([[1, 2], [3, 4], [5, 6]]),
  'bias': np.float32([0.5, -0.5]),
  'table': np.linspace(0, 1, 2 * 40, dtype=np.float32).reshape(40, 2),
  'half': np.linspace(0, 1, 2).astype(jnp.bfloat16),
  'none': None,
}
FIXED = {'scale': np.float32(2)}


def network(learned, fixed, rows):
  h = rows @ learned['kernel'] + learned['bias'][None]
  h = jnp.tanh(h) * fixed['scale']
  at = jnp.abs(10 * rows[:, 0]).astype(int) % 4
  half = learned['half'].astype(jnp.float32)[None]
  return {'h': h + learned['table'][at] * half}


def loss(run, learned, fixed, rows):
  """Compares examples with each other, as a loss may."""
  h = run(network, learned, fixed, rows)['h']
  return jnp.mean((h @ h.T) ** 2)


def plain(fun, *args):
  return fun(*args)


def found(run):
  return jax.jit(jax.value_and_grad(lambda *args: loss(run, *args)))


@pytest.mark.devices(8)
class ByExampleTest(parameterized.TestCase):
  def assert_close(self, got, expected):
    """Asserts that a loss and its gradients agree, in bfloat16 to 2%."""
    chex.assert_trees_all_equal_dtypes(got, expected)
    ours, theirs = (grads.pop('half') for _, grads in (got, expected))
    wide = lambda leaf: np.asarray(leaf, np.float32)
    np.testing.assert_allclose(wide(ours), wide(theirs), rtol=0.03)
    chex.assert_trees_all_close(got, expected, rtol=1e-5)

  @parameterized.parameters(
    {'data': 8}, {'data': 2, 'fsdp': 2}, {'data': 2, 'model': 2}, {'seed': 2}
  )
  def test_is_that_of_one_device(self, **sizes):
    expected = found(plain)(PARAMS, FIXED, ROWS)
    with jax.set_mesh(mesh_lib.make(sizes, batch_size=8)):
      got = found(joint_gradients.by_example)(PARAMS, FIXED, ROWS)
    self.assert_close(got, expected)

  def test_large_arrays_are_exchanged_by_themselves(self):
    expected = found(plain)(PARAMS, FIXED, ROWS)
    with (
      jax.set_mesh(mesh_lib.make({'data': 2}, batch_size=8)),
      mock.patch.object(joint_gradients, 'SMALL', 4),
    ):
      got = found(joint_gradients.by_example)(PARAMS, FIXED, ROWS)
    self.assert_close(got, expected)

  def test_of_every_seed(self):
    two = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), PARAMS)
    each = lambda run: jax.jit(
      jax.vmap(
        jax.value_and_grad(lambda *args: loss(run, *args)), (0, None, None)
      )
    )
    expected = each(plain)(two, FIXED, ROWS)
    with jax.set_mesh(mesh_lib.make({'data': 2, 'seed': 2}, batch_size=8)):
      got = each(joint_gradients.by_example)(two, FIXED, ROWS)
    self.assert_close(got, expected)

  def test_examples_that_do_not_divide(self):
    rows = ROWS[:7]
    with jax.set_mesh(mesh_lib.make({'data': 2}, batch_size=8)):
      got = found(joint_gradients.by_example)(PARAMS, FIXED, rows)
    self.assert_close(got, found(plain)(PARAMS, FIXED, rows))

  def test_what_is_fixed_has_no_gradient(self):
    run = lambda fixed: loss(joint_gradients.by_example, PARAMS, fixed, ROWS)
    with jax.set_mesh(mesh_lib.make({'data': 2}, batch_size=8)):
      self.assertEqual(jax.jit(jax.grad(run))(FIXED)['scale'], 0)
    self.assertEqual(jax.grad(run)(FIXED)['scale'], 0)

  def test_small_arrays_are_exchanged_as_one(self):
    params = {
      **{f'bias{i}': np.float32([i, 1]) for i in range(9)},
      'large': np.ones((joint_gradients.SMALL // 2 + 1, 2), np.float32),
    }

    def many(learned, fixed, rows):
      del fixed
      h = rows[:, :2] * learned['large'][:1]
      return {
        'h': sum(jnp.sin(h + learned[f'bias{i}'][None]) for i in range(9))
      }

    def run(via):
      fun = lambda learned, rows: jnp.sum(via(many, learned, {}, rows)['h'])
      mesh = mesh_lib.make({'data': 2}, batch_size=8)
      with jax.set_mesh(mesh):
        rows = mesh_lib.place_batch(ROWS, mesh, axis=0)
        text = jax.jit(jax.grad(fun)).lower(params, rows).compile().as_text()
      return _exchanged(text)

    self.assertGreater(run(plain), 9)
    self.assertLessEqual(run(joint_gradients.by_example), 2)


@pytest.mark.devices(8)
class FitTest(parameterized.TestCase):
  @parameterized.parameters(
    (True, {'data': 2}, True),
    (None, {'data': 2}, False),
    (True, {'data': 2, 'model': 2}, False),
    (True, {'data': 2, 'fsdp': 2}, False),
  )
  def test_a_model_that_says_so(self, declared, sizes, expected):
    model = SimpleNamespace(abilities=base.Abilities(by_example=declared))
    mesh = mesh_lib.make(sizes, batch_size=8)
    self.assertEqual(joint_gradients.fit(model, mesh), expected)

  def test_a_model_without_abilities(self):
    mesh = mesh_lib.make({'data': 2}, batch_size=8)
    self.assertFalse(joint_gradients.fit(SimpleNamespace(), mesh))

  def test_a_subclass_says_so_itself(self):
    class Inherits(mlp.MLP):
      pass

    class Declares(mlp.MLP):
      abilities = base.Abilities(by_example=True)

    mesh = mesh_lib.make({'data': 2}, batch_size=8)
    for kind, expected in ((mlp.MLP, 1), (Inherits, 0), (Declares, 1)):
      with self.subTest(kind=kind.__name__):
        model = kind((3,), 2)
        self.assertEqual(joint_gradients.fit(model, mesh), expected)


def _exchanged(text):
  """Number of arrays that the devices of a program exchange."""
  calls = re.findall(r' all-reduce(?:-start)?\((.*?)\), ', text)
  return sum(len(operands.split(',')) for operands in calls)


if __name__ == '__main__':
  absltest.main()
