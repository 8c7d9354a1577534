"""Properties of all registered losses, against float64.

Logits with impossible classes, NaN at weight 0, extreme temperatures and half
precision. Shapes are fixed, so that each loss is compiled once for a dtype.
"""

import functools

from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.methods import high_temperature
from cxjax.methods import losses
from cxjax.methods import relational
from cxjax.methods import weights as weights_lib

pytestmark = pytest.mark.slow

B, C, K = 3, 4, 2
TOLERANCES = {'float32': 2e-4, 'float16': 2e-3, 'bfloat16': 1e-2}
DTYPES = [(1.0, dtype) for dtype in TOLERANCES]
TEMPERED = ('kl', 'reverse_kl', 'jensen_shannon', 'top_k_kl')
TEMPERATURES = [
  (1e-6, 'float32'),
  (0.5, 'float16'),
  (63.0, 'bfloat16'),
  (64.0, 'float16'),
  (1e3, 'bfloat16'),
  (1e6, 'float32'),
]
# Losses of features, which are finite.
FEATURES = ('l2', 'cosine')


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def times(p, x):
  """`p x`, with 0 times anything as 0."""
  return np.where(p == 0, 0.0, p * np.where(p == 0, 0.0, x))


def divergence(p, log_p, log_q):
  return times(p, log_p - np.where(p == 0, 0, log_q)).sum(-1)


def reference(name, s, t, temperature):
  """Value and gradient in the student, `[B]` and `[B, C]` float64."""
  if name == 'cross_entropy':
    log_q, one_hot = log_softmax(s), np.eye(C)[t]
    return -times(one_hot, log_q).sum(-1), np.exp(log_q) - one_hot
  if name == 'hard_kl':
    best = t == t.max(-1, keepdims=True)
    p = best / best.sum(-1, keepdims=True)
    log_q = log_softmax(s)
    with np.errstate(divide='ignore'):
      return divergence(p, np.log(p), log_q), np.exp(log_q) - p
  if name in ('mse', 'l2'):
    both = np.maximum(s, t) == -np.inf
    error = np.where(both, 0, s) - np.where(both, 0, t)
    size = C if name == 'mse' else 1
    return np.square(error).sum(-1) / size, 2 * error / size
  if name == 'cosine':
    return cosine(s, t)
  return tempered(name, s, t, temperature)


def cosine(s, t):
  length = lambda x: np.sqrt(np.square(x).sum(-1, keepdims=True))
  safe = lambda x: np.where(length(x) > 0, length(x), 1)
  u, v = s / safe(s), t / safe(t)
  cos = (u * v).sum(-1, keepdims=True)
  return 1 - cos[..., 0], (u * cos - v) / safe(s) * (length(s) > 0)


def tempered(name, s, t, temperature):
  wide = np.longdouble  # At 1e6 the divergence is 1e-12.
  s, t = s.astype(wide), t.astype(wide)
  if name == 'top_k_kl':
    few = np.argsort(-t, -1, kind='stable')[:, :K]
    rows = np.arange(len(t))[:, None]
    some = np.full_like(t, -np.inf)
    some[rows, few] = t[rows, few]
    name, t = 'kl', some
  log_q, log_p = log_softmax(s / temperature), log_softmax(t / temperature)
  q, p = np.exp(log_q), np.exp(log_p)
  if name == 'kl':
    value, grad = divergence(p, log_p, log_q), temperature * (q - p)
  elif name == 'reverse_kl':
    value = divergence(q, log_q, log_p)
    ratio = log_q - np.where(q > 0, log_p, 0)
    grad = temperature * times(q, ratio - value[:, None])
  else:
    with np.errstate(divide='ignore'):
      log_m = np.log((q + p) / 2)
    ours = divergence(q, log_q, log_m)
    value = (ours + divergence(p, log_p, log_m)) / 2
    ratio = log_q - np.where(q > 0, log_m, 0)
    grad = temperature * times(q, ratio - ours[:, None]) / 2
  return (temperature**2 * value).astype(float), grad.astype(float)


@functools.cache
def program(name, temperature):
  """`(student, target, weights) -> (values, gradient of their sum)`."""
  loss = losses.LOSSES[name]
  if name in TEMPERED:
    loss = functools.partial(loss, temperature=temperature)

  def values(student, target, weights):
    student = weights_lib.cleared(student, weights)
    target = weights_lib.cleared(target, weights)
    found = weights_lib.cleared(loss(student, target), weights)
    return (found * weights).sum(), found

  return jax.jit(jax.value_and_grad(values, has_aux=True))


def several(values, size):
  return strategies.lists(values, min_size=size, max_size=size)


def examples(name):
  """Draws the logits, the excluded classes, what counts and how."""
  numbers = several(strategies.floats(-8, 8, width=16), B * C)
  marks = several(strategies.booleans(), B * C)
  return hypothesis.given(
    *[numbers, numbers, marks, marks],
    several(strategies.booleans(), B),
    strategies.sampled_from(TEMPERATURES if name in TEMPERED else DTYPES),
  )


def drawn(name, s, t, no_s, no_t):
  """Logits with impossible classes; the first class is always possible."""
  s, t, no_s, no_t = (np.array(v).reshape(B, C) for v in (s, t, no_s, no_t))
  s, t = s + 0.0, t + 0.0  # 0.0 for -0.0, which are no tie for JAX.
  no_s[:, 0] = no_t[:, 0] = False
  if name in FEATURES:
    return s, t
  return np.where(no_s, -np.inf, s), np.where(no_t, -np.inf, t)


class PropertyTest(parameterized.TestCase):
  @parameterized.parameters(
    *(name for name in losses.LOSSES if name not in relational.LOSSES)
  )
  def test_value_and_gradient(self, name):
    @hypothesis.settings(
      max_examples=25, deadline=None, derandomize=True, database=None
    )
    @examples(name)
    def check(s, t, no_s, no_t, counted, how):
      temperature, dtype = how
      cast = lambda x: jnp.asarray(x, dtype)
      s, t = drawn(name, s, t, no_s, no_t)
      s, t = (np.asarray(cast(x), np.float64) for x in (s, t))
      labels, counted = t.argmax(-1), np.array(counted)
      with np.errstate(invalid='ignore', over='ignore'):
        value, grad = reference(
          name, s, labels if name == 'cross_entropy' else t, temperature
        )
      given = cast(np.where(counted[:, None], t, np.nan))
      if name == 'cross_entropy':
        given = jnp.asarray(np.where(counted, labels, -100))
      if name == 'top_k_kl':
        given = losses.top_k(given, K)
      (_, found), slope = program(name, temperature)(
        cast(np.where(counted[:, None], s, np.nan)),
        given,
        jnp.asarray(counted, jnp.float32),
      )
      np.testing.assert_array_equal(found[~counted], 0)
      np.testing.assert_array_equal(slope[~counted], 0)
      # Just below a high temperature the value is rounded most.
      high = temperature >= high_temperature.LOWEST
      atol = 2e-5 if high else 2e-5 + 2e-7 * temperature**2
      np.testing.assert_allclose(
        found[counted], value[counted], rtol=2e-4, atol=atol
      )
      # Where the loss is infinite the gradient means nothing.
      fine = counted & np.isfinite(value)
      rtol = TOLERANCES[dtype]
      atol = rtol / 10
      if name == 'jensen_shannon' and ((s > -np.inf) != (t > -np.inf)).any():
        atol += 2e-7 * temperature  # The value is of size T^2.
      np.testing.assert_allclose(slope[fine], grad[fine], rtol=rtol, atol=atol)

    check()
