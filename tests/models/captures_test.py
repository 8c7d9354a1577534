"""Captures: tags that are lifted out of what a model runs, by name."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.models import captures

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def tanh(x):
  return captures.tagged('tanh', jnp.tanh(x))


def with_derivative(x):
  fun = jax.custom_vjp(tanh)
  fun.defvjp(lambda x: (tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))
  return fun(x)


def scanned(x):
  return jax.lax.scan(lambda h, _: (tanh(h), None), x, None, length=2)[0]


def run(fun, *args, axes=2):
  return captures.captured(fun, fun, 'Net', *args, axes=axes)


class CapturedTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda x: tanh(x),
    lambda x: jax.jit(tanh)(x),
    lambda x: jax.checkpoint(tanh)(x),
    lambda x: jax.jit(jax.checkpoint(lambda x: jax.jit(tanh)(x)))(x),
    lambda x: jax.vmap(tanh)(x),
    # The axis of the examples comes first, wherever it is inside.
    lambda x: jax.vmap(tanh, in_axes=1, out_axes=1)(x.T).T,
  )
  @pytest.mark.slow
  def test_it_is_lifted_and_changes_nothing(self, fun):
    loss = lambda x: (2 * fun(x)).sum()
    lifted = lambda x: run(lambda x: 2 * fun(x), x)[0].sum()
    (out, found), want = run(lambda x: 2 * fun(x), X), jnp.tanh(X)
    self.assertEqual(list(found), ['tanh'])
    np.testing.assert_allclose(found['tanh'], want, rtol=1e-6)
    np.testing.assert_allclose(out, 2 * want, rtol=1e-6)
    np.testing.assert_allclose(
      jax.grad(lifted)(X), jax.grad(loss)(X), rtol=1e-6
    )

  def test_steps_of_a_scan_are_stacked(self):
    out, found = run(scanned, X)
    first = jnp.tanh(X)
    want = [first, jnp.tanh(first)]
    np.testing.assert_allclose(found['tanh'], want, rtol=1e-6)
    np.testing.assert_allclose(out, want[1], rtol=1e-6)

  def test_calls_and_parts_have_numbers(self):
    def fun(x):
      a, (b, _) = captures.tagged('pair', (x, (2 * x, x[0])))
      return tanh(tanh(a)) + captures.tagged('pair', {'b': b})['b']

    self.assertCountEqual(
      run(fun, X)[1], ['pair', 'pair/1/0', 'pair/b', 'tanh', 'tanh#2']
    )
    self.assertIn('pair/1/1', run(fun, X, axes=1)[1])

  def test_a_model_that_hides_its_inside_runs_without(self):
    captures._warn.cache_clear()
    with self.assertLogs(level='WARNING') as logs:
      out, found = run(with_derivative, X)
    self.assertRegex(
      logs.output[0], 'Net cannot be captured: .* custom_vjp_call. It runs with'
    )
    np.testing.assert_allclose(out, jnp.tanh(X), rtol=1e-6)
    self.assertEqual(found, {})

  def test_a_model_that_fails_with_tags_runs_without(self):
    def tagged(x):
      raise TypeError('no tags here')

    captures._warn.cache_clear()
    with self.assertLogs(level='WARNING') as logs:
      out, found = captures.captured(tagged, jnp.tanh, 'Net', X)
    self.assertRegex(logs.output[0], 'they raise a TypeError. It runs without')
    self.assertEqual((out.shape, found), (X.shape, {}))
    with self.assertRaisesRegex(TypeError, 'no tags'):  # Its own error.
      captures.captured(tagged, tagged, 'Net', X)


class NumberedTest(parameterized.TestCase):
  def test_the_first_sibling_has_a_number(self):
    names = ['block', 'block/dense', 'block_1/dense#2', 'dense', 'a/b', 'a/b_2']
    self.assertEqual(
      list(captures.numbered(dict.fromkeys(names))),
      ['block_0', 'block_0/dense', 'block_1/dense#2', 'dense', 'a/b', 'a/b_2'],
    )
