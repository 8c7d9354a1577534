"""Tests for float32 master weights of students in half precision."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.models import master_weights
from cxjax.training import checkpoints
import drawn

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
HALF = jnp.bfloat16


class _Net(nn.Module):
  """A perceptron with statistics, which counts what it sees."""

  width: int = 6

  @nn.compact
  def __call__(self, x, train=False):
    h = nn.BatchNorm(use_running_average=not train, momentum=0.999)(
      nn.Dense(self.width)(x)
    )
    return nn.Dense(3)(nn.relu(h))


def variables(dtype=HALF, seed=0):
  found = drawn.parameters(_Net().init, X, seed=seed)
  return jax.tree.map(lambda leaf: leaf.astype(dtype), found)


def adapt(dtype=HALF, **options):
  return cxjax.from_linen(_Net(), variables(dtype), **options)


class MasterWeightsTest(parameterized.TestCase):
  def test_the_model_computes_as_with_its_own_parameters(self):
    model = adapt(training={'train': True})
    new = master_weights.with_master_weights(model)
    params = master_weights.masters(model.params)
    chex.assert_trees_all_equal_dtypes(
      params, jax.tree.map(jnp.float32, model.params)
    )
    chex.assert_trees_all_equal(new.wrap(params), model.wrap(model.params))
    kernel = params['Dense_0']['kernel'] + 1e-5  # Lost in bfloat16.
    nudged = {**params, 'Dense_0': {**params['Dense_0'], 'kernel': kernel}}
    output, _ = new.apply(nudged, X)
    want, _ = new.apply(params, X)
    np.testing.assert_array_equal(output, want)

  @pytest.mark.slow
  def test_statistics_are_updated_in_float32(self):
    model = adapt(training={'train': True})
    new = master_weights.with_master_weights(model)
    params = master_weights.masters(model.params)
    *_, changed = new.training(params, X, jax.random.key(0))
    mean = changed['batch_stats']['BatchNorm_0']['mean']
    self.assertEqual(mean.dtype, jnp.float32)

  def test_others_stay_as_they_are(self):
    model = adapt(jnp.float32)
    self.assertIs(master_weights.with_master_weights(model), model)
    tree = {'key': jax.random.key(0), 'count': jnp.int32(3), 'x': np.ones(2)}
    chex.assert_trees_all_equal(master_weights.masters(tree)['count'], 3)
    self.assertIs(master_weights.masters(tree)['x'], tree['x'])

  @pytest.mark.slow
  def test_float16_is_refused(self):
    teacher = cxjax.from_linen(_Net(), variables(jnp.float16, 1))
    plan = cxjax.plan(teacher, adapt(jnp.float16), X, num_steps=2, layers=())
    with self.assertRaisesRegex(
      errors.UserError, "float16 of .* 'BatchNorm_0/bias': .* bfloat16"
    ):
      cxjax.distill(plan, [X])
    half = cxjax.plan(
      teacher, adapt(), X, num_steps=2, layers=(), dtype=jnp.float16
    )
    with self.assertRaisesRegex(errors.UserError, 'float16 of dtype: '):
      cxjax.distill(half, [X])

  @pytest.mark.slow
  def test_a_student_learns_small_steps(self):
    """At a rate of 1e-4; in bfloat16 they would be lost for large weights."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    teacher = cxjax.from_linen(_Net(), variables(seed=1))
    plan = cxjax.plan(teacher, adapt(), X, num_steps=50, layers=())
    trained, _ = cxjax.distill(
      plan, [X], learning_rate=1e-4, workdir=folder, save_every=50
    )
    before = plan.student.wrap(plan.student.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, before)
    kernel = lambda tree: tree['params']['Dense_1']['kernel']
    changed = np.mean(np.array(kernel(trained) != kernel(before)))
    self.assertGreater(changed, 0.8)
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), jnp.float32),
      before['params'],
    )
    saved = checkpoints.restore(folder, 50, {'params': shapes})['params']
    chex.assert_trees_all_equal(
      jax.tree.map(lambda leaf: leaf[0].astype(HALF), saved), trained['params']
    )


class _Float16(nn.Module):
  """Layers of which some compute in float16, or only read or show it."""

  where: str = ''

  @nn.compact
  def __call__(self, x, train=False):
    half = lambda name: jnp.float16 if name == self.where else None
    if self.where == 'input':
      x = x.astype(jnp.float16)
    h = nn.Dense(4, dtype=jnp.float32)(x)
    if self.where == 'shown':
      self.sow('intermediates', 'shown', h.astype(jnp.float16))
    inner = nn.remat(nn.Dense)(6, dtype=half('inner'), name='inner')(h)
    if train:
      inner = inner.astype(half('training') or inner.dtype)
    return nn.Dense(3, dtype=half('output'))(inner)


def computing(where='', **kwargs):
  module = _Float16(where)
  return cxjax.from_linen(module, drawn.parameters(module.init, X), **kwargs)


class ComputationTest(parameterized.TestCase):
  @parameterized.parameters(
    ('inner', 'output', "layer '.*inner'"),
    ('output', 'output', "layer '.*Dense_1'"),
    ('output', 'inner', None),
    ('training', 'output', 'layer'),
    ('input', 'output', None),
    ('shown', 'output', None),
    ('shown', 'shown', ''),
    ('', 'output', None),
  )
  def test_float16_is_refused_where_a_gradient_passes(self, where, name, at):
    model = computing(where, training={'train': True})
    names = {'logits' if name == 'output' else name}
    check = lambda: master_weights.check_computation(model, X, names)
    if at is None:
      check()
      return
    with self.assertRaisesRegex(errors.UserError, f"^float16 of .*'s {at}.*: "):
      check()

  def test_a_function_has_no_layers(self):
    apply = lambda w, x: (jax.jit(jnp.dot)(x.astype(w.dtype), w), {})
    half = lambda w, x: apply(w.astype(jnp.float16), x)
    model = cxjax.from_fn(half, jnp.ones((5, 3)))
    with self.assertRaisesRegex(errors.UserError, "student's computation: "):
      master_weights.check_computation(model, X, {'logits'})

  def test_rounding_without_a_gradient_passes(self):
    def apply(w, x):
      rounded = w.astype(jnp.float16).astype(w.dtype)
      return x @ (w + jax.lax.stop_gradient(rounded - w)), {}

    model = cxjax.from_fn(apply, jnp.ones((5, 3)))
    master_weights.check_computation(model, X, {'logits'})

  @pytest.mark.slow
  def test_a_run_of_a_teacher_in_float16_and_not_of_a_student(self):
    plan = lambda *models: cxjax.plan(*models, X, num_steps=2, layers=())
    cxjax.distill(plan(computing('inner'), computing()), [X])
    refused = plan(computing(), computing('inner'))
    with self.assertRaisesRegex(errors.UserError, "layer '.*inner'.*bfloat16"):
      cxjax.distill(refused, [X])


class HeldOnceTest(absltest.TestCase):
  @pytest.mark.slow
  def test_the_teacher_and_the_students_are(self):
    """In bfloat16, while a run goes on; a student beside its masters."""
    teacher = cxjax.from_linen(_Net(37), drawn.parameters(_Net(37).init, X))
    half = jax.tree.map(lambda leaf: leaf.astype(HALF), teacher.params)
    teacher = cxjax.from_linen(
      _Net(37), {**teacher.wrap(teacher.params), 'params': half}
    )
    plan = cxjax.plan(teacher, adapt(), X, num_steps=4, layers=())
    held = []

    def count(record):
      del record
      arrays = [a for a in jax.live_arrays() if a.shape[-2:] == (5, 37)]
      held.append({(a.unsafe_buffer_pointer(), a.dtype) for a in arrays})

    cxjax.distill(plan, [X], log_every=1, mesh={'data': 1}, on_record=count)
    kernel = half['Dense_0']['kernel']
    want = {(kernel.unsafe_buffer_pointer(), jnp.dtype(HALF))}
    self.assertEqual(held, [want] * 4)


if __name__ == '__main__':
  absltest.main()
