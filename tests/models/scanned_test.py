"""Layers of scans: their values, their costs, and a student that learns."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax.models import scanned
import drawn

X = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + jnp.tanh(nn.Dense(x.shape[-1], name='dense')(x)), None


class Stack(nn.Module):
  """Three blocks in a scan, as many as there are examples."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width)(x)
    blocks = nn.scan(
      Block,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True},
      length=3,
    )
    return nn.Dense(3, name='head')(blocks(name='blocks')(x, None)[0])


class NnxBlock(nnx.Module):
  def __init__(self, rngs):
    self.dense = nnx.Linear(6, 6, rngs=rngs)

  def __call__(self, x):
    return x + jnp.tanh(self.dense(x))


class NnxStack(nnx.Module):
  def __init__(self, rngs):
    make = nnx.vmap(NnxBlock, in_axes=0, out_axes=0)
    self.blocks = nnx.split_rngs(splits=3)(make)(rngs)
    self.head = nnx.Linear(6, 3, rngs=rngs)

  def __call__(self, x):
    carry = (nnx.Carry, 0)
    run = nnx.scan(lambda x, b: b(x), in_axes=carry, out_axes=nnx.Carry)
    return self.head(run(x, self.blocks))


def adapt(width):
  module = Stack(width)
  return cxjax.from_linen(module, drawn.parameters(module.init, X, seed=width))


class ScannedTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_values_and_costs(self):
    for model in (adapt(6), cxjax.from_nnx(NnxStack(nnx.Rngs(0)))):
      out, found = model.apply(model.one, X)
      split = scanned.with_layers(model, ['blocks/1'])
      same, layers = split.apply(split.one, X)
      np.testing.assert_array_equal(out, same)
      self.assertEqual(set(layers) - set(found), {'blocks/1'})
      np.testing.assert_allclose(layers['blocks/1'], found['blocks'][1], 1e-6)
      taps = cxjax.taps(model, X)
      self.assertEqual(taps.layers, ('blocks/0', 'blocks/1', 'blocks/2'))
      steps = np.diff([tap.flops for tap in taps if tap.layer])
      self.assertEqual(steps[0], steps[1])
      self.assertGreater(steps[0], 2 * 3 * 6 * 6)

  @pytest.mark.slow
  def test_layers_above_are_not_run(self):
    model = scanned.with_layers(adapt(6), ['blocks/0'])
    layer = lambda params, x: model.apply(params, x)[1]['blocks/0']
    text = jax.jit(layer).lower(model.one, X).compile().as_text()
    self.assertNotIn('known_trip_count', text.replace('{"n":"1"}', ''))
    self.assertNotIn('while(', text)

  @pytest.mark.slow
  def test_a_student_learns_layer_by_layer(self):
    teacher, student = adapt(8), adapt(4)
    plan = cxjax.plan(teacher, student, X, num_steps=12)
    pairs = [(s.terms[0].target, s.terms[0].student) for s in plan.stages[:-1]]
    self.assertEqual(pairs, [(f'blocks/{i}',) * 2 for i in range(3)])
    self.assertIn('blocks/* (3) with blocks/* (3)', plan.matched)
    pair = {'blocks/1': 'blocks/0'}
    plan = cxjax.plan(teacher, student, X, num_steps=4, layers=pair)
    trained, _ = cxjax.distill(plan, [X] * 4, log_every=2)
    kernels = lambda tree: tree['params']['blocks']['dense']['kernel']
    moved = kernels(trained) != kernels(student.wrap(student.params))
    self.assertTrue(moved.any(axis=(1, 2)).all())

  def test_the_stack_itself_is_no_batch(self):
    model = adapt(4)  # The scan has as many steps as the batch has examples.
    with self.assertRaisesRegex(
      cxjax.UserError, "'blocks'.* 3 steps of a scan"
    ):
      cxjax.plan(model, model, X, num_steps=4, layers=[('blocks', 'blocks')])

  def test_a_scan_over_time_is_no_stack(self):
    def apply(params, x):
      step = lambda h, row: (jnp.tanh(h @ params + row), None)
      rows = jnp.stack([x, x, x])
      return jax.lax.scan(step, x, rows)[0], {}

    model = cxjax.from_fn(apply, jnp.eye(6))
    self.assertEqual([tap.name for tap in cxjax.taps(model, X)], ['logits'])

  def test_the_layers_read_the_carry(self):
    """Neither what they add to the output nor a condition, though larger."""

    def apply(params, x):
      def step(carry, layer):
        h, sums, given = carry
        new = jnp.tanh(h @ layer['w'] + given @ layer['v'])
        return (h + new, sums + new @ layer['s'], given), None

      carry = (x, jnp.zeros((3, 20)), jnp.ones((3, 9)))
      return jax.lax.scan(step, carry, params['blocks'])[0][1], {}

    shapes = {'w': (4, 6, 6), 'v': (4, 9, 6), 's': (4, 6, 20)}
    blocks = {n: jax.ShapeDtypeStruct(s, 'float32') for n, s in shapes.items()}
    taps = cxjax.taps(cxjax.from_fn(apply, {'blocks': blocks}), X)
    found = {tap.name: tap.shape for tap in taps if tap.name != 'logits'}
    self.assertEqual(found, {f'blocks/{k}': (3, 6) for k in range(4)})

  @parameterized.parameters(
    ({'a': {'w': 2}, 'b': {'w': 2}}, ['net/a', 'net/b']),
    ({'a': 2, 'b': 2}, ['net/a', 'net/b']),
    ({'a': 2, 'b': {'w': 2}}, ['net', 'net/b']),
    ({'a': 2}, ['net']),
  )
  def test_stacks_side_by_side_have_names_of_their_own(self, stacks, names):
    def apply(params, x):
      step = lambda h, w: (jnp.tanh(h @ w), None)
      for leaf in jax.tree.leaves(params):
        x = jax.lax.scan(step, x, leaf)[0]
      return x, {}

    shape = lambda steps: jax.ShapeDtypeStruct((steps, 6, 6), 'float32')
    model = cxjax.from_fn(apply, {'net': jax.tree.map(shape, stacks)})
    _, found = jax.eval_shape(scanned.with_layers(model).apply, model.one, X)
    self.assertEqual(list(found), [f'{n}/{k}' for n in names for k in (0, 1)])

  def test_stacks_inside_of_an_activation(self):
    def apply(params, x):
      step = lambda h, w: (jnp.tanh(h @ w), None)
      for name in ('a', 'b'):
        x = jax.lax.scan(step, x, params['net'][name]['w'])[0]
      return x, {'net': x}

    shape = {'w': jax.ShapeDtypeStruct((1, 6, 6), 'float32')}
    model = cxjax.from_fn(apply, {'net': {'a': shape, 'b': shape}})
    _, found = jax.eval_shape(scanned.with_layers(model).apply, model.one, X)
    self.assertEqual(list(found), ['net', 'net/a/0', 'net/b/0'])

  @pytest.mark.slow
  def test_scans_inside_of_scans_are_counted(self):
    class Nested(nn.Module):
      @nn.compact
      def __call__(self, x):
        blocks = nn.remat_scan(Inner, lengths=(2, 3))
        return nn.Dense(3)(blocks(name='blocks')(x))

    class Inner(nn.Module):
      @nn.compact
      def __call__(self, x):
        return x + jnp.tanh(nn.Dense(x.shape[-1], name='dense')(x))

    module = Nested()
    nested = cxjax.from_linen(module, drawn.parameters(module.init, X))
    self.assertEqual(scanned.nested(nested, X), {'blocks': 3})
    self.assertEqual(scanned.nested(adapt(4), X), {})
    with self.assertLogs(level='WARNING') as logged:
      cxjax.plan(nested, adapt(4), X, num_steps=9)
    self.assertRegex('\n'.join(logged.output), "'blocks/.' of the teacher is 3")


if __name__ == '__main__':
  absltest.main()
