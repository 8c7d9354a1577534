"""Tests of values that are probabilities."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cxjax.models import dataflow
from cxjax.models import normalized

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
HALF = jnp.bfloat16
softmax = jax.nn.softmax


def flow_of(fun, x=X):
  return dataflow.Dataflow(jax.make_jaxpr(fun)(x), inner=True)


def is_found(fun, x=X):
  flow = flow_of(fun, x)
  return normalized.has_softmax(flow, flow.outputs[0])


def by_hand(x):
  e = jnp.exp(x)
  return e / e.sum(-1, keepdims=True)


def reciprocal(x):
  e = jnp.exp(x - x.max(-1, keepdims=True))
  return e * (1 / (e.sum(-1, keepdims=True) + 1e-9))


def masked(x):
  return softmax(x, where=x > 0)


def ensemble(x):
  return softmax(jnp.stack([x, 2 * x, -x])).mean(0)


def mixture(x):
  gates, experts = softmax(x[:, :3]), softmax(jnp.stack([x, 2 * x, -x], 1))
  return jnp.einsum('be,bec->bc', gates, experts)


def scanned(x):
  return jax.lax.map(softmax, x)


def of_experts(x):
  gates, experts = softmax(x[:, :3]), jnp.stack([x, 2 * x, -x], 1)
  return jnp.einsum('be,bec->bc', gates, experts)


def repeated(x):
  return jax.lax.fori_loop(0, 3, lambda i, x: softmax(x), x)


def counted(x):
  step = lambda carry: (carry[0] + 1, softmax(carry[1]))
  return jax.lax.while_loop(lambda c: c[0] < c[1].sum(), step, (0.0, x))[1]


def passed(x):
  return jax.lax.fori_loop(0, x.argmax(), lambda i, p: p, softmax(x))


def divided(x):
  e = jnp.exp(x)
  divide = lambda e: e / e.sum(-1, keepdims=True)
  return jax.lax.cond(x.sum() > 0, divide, divide, e)


def divided_in_steps(x):
  divide = lambda carry, e: (carry, e / e.sum(-1, keepdims=True))
  return jax.lax.scan(divide, 0, jnp.exp(x))[1]


def in_shards(fun, spec):
  mesh = jax.make_mesh(
    (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  return jax.shard_map(fun, mesh=mesh, in_specs=spec, out_specs=spec)


def of_all_shards(x):
  top = jax.lax.pmax(x.max(-1, keepdims=True), 'data')
  e = jnp.exp(x - top)
  return e / jax.lax.psum(e.sum(-1, keepdims=True), 'data')


def with_derivative(kind, fun):
  new = kind(lambda x: fun(x))  # Its derivative is not used.
  if kind is jax.custom_vjp:
    new.defvjp(lambda x: (fun(x), x), lambda x, g: (g,))
  else:
    new.defjvp(lambda x, t: (fun(*x), t[0]))
  return new


def with_vmap(fun):
  new = jax.custom_batching.custom_vmap(lambda x: fun(x))
  new.def_vmap(lambda size, batched, x: (fun(x), True))
  return new


def chosen(by, *branches):
  return lambda x: jax.lax.cond(by(x), *branches, x)


def wrapped(fun):
  """The function inside of each of the primitives that hold another."""
  positive = lambda x: x.sum() > 0
  return (
    chosen(positive, fun, fun),
    chosen(positive, fun, lambda x: x),
    chosen(lambda x: False, lambda x: x, fun),
    lambda x: jax.lax.switch(x.argmax(), [fun, jnp.sin, jnp.cos], x),
    lambda x: jax.lax.platform_dependent(x, cpu=fun, default=fun),
    chosen(positive, chosen(positive, jnp.sin, fun), jnp.cos),
    in_shards(fun, jax.P('data')),
    in_shards(chosen(positive, fun, jnp.sin), jax.P('data')),
    with_derivative(jax.custom_vjp, fun),
    with_derivative(jax.custom_jvp, fun),
    jax.lax.composite(fun, 'softmax'),
    with_vmap(fun),
    jax.checkpoint(chosen(positive, fun, fun)),
    lambda x: jax.lax.map(jax.jit(fun), x),
    lambda x: jax.lax.map(chosen(positive, fun, jnp.sin), x),
  )


def attention(x):
  return softmax(x @ x.T) @ x


def deep(x):
  for _ in range(2000):
    x = x + jnp.tanh(x)
  return x


class SoftmaxTest(parameterized.TestCase):
  @parameterized.parameters(
    softmax,
    jax.jit(softmax),
    jax.vmap(softmax),
    jax.checkpoint(softmax),
    by_hand,
    reciprocal,
    masked,
    ensemble,
    mixture,
    scanned,
    lambda x: softmax(x.astype(HALF)).astype(jnp.float32),
    lambda x: softmax(x.reshape(2, 2, 8)).reshape(4, 8),
    lambda x: softmax(x.T, axis=0).T,
    lambda x: jnp.exp(jax.nn.log_softmax(x)),
    lambda x: jnp.exp(x - jax.nn.logsumexp(x, axis=-1, keepdims=True)),
    lambda x: softmax(x)[:2],
    lambda x: softmax(x)[:, :5],
    lambda x: jnp.clip(softmax(x), 1e-7, 1 - 1e-7),
    lambda x: 0.9 * softmax(x) + 0.1 / 8,
    lambda x: (softmax(x) + softmax(-x)) / 2,
    lambda x: jnp.concatenate([softmax(x), softmax(-x)]),
    repeated,
    counted,
    passed,
    divided,
    divided_in_steps,
    in_shards(of_all_shards, jax.P(None, 'data')),
    *wrapped(softmax),
  )
  def test_is_found(self, fun):
    self.assertTrue(is_found(fun))

  @parameterized.parameters(
    lambda x: x,
    lambda x: 2 * x,
    jax.nn.log_softmax,
    lambda x: jnp.log(softmax(x) + 1e-20),
    of_experts,
    attention,
    deep,
    lambda x: softmax(x) @ jnp.ones((8, 3)),
    lambda x: softmax(x) * x,
    lambda x: 10 * softmax(x),
    lambda x: softmax(x) + x,
    lambda x: softmax(x, axis=0),
    lambda x: softmax(x.reshape(4, 2, 4)).reshape(4, 8),
    lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    lambda x: x - x.sum(-1, keepdims=True),
    jax.nn.sigmoid,
    jax.nn.standardize,
    chosen(lambda x: False, softmax, lambda x: x),
    lambda x: softmax(jnp.moveaxis(x, 0, 1), axis=0),
    *wrapped(jax.nn.log_softmax),
    *wrapped(lambda x: 2 * softmax(x)),
  )
  def test_is_not_found(self, fun):
    self.assertFalse(is_found(fun))


class SigmoidTest(parameterized.TestCase):
  @parameterized.parameters(
    (jax.nn.sigmoid, True),
    (lambda x: jax.nn.sigmoid(x.astype(HALF)).reshape(8, 4), True),
    (jax.nn.silu, False),
    (lambda x: 10 * jax.nn.sigmoid(x), False),
    (functools.partial(jax.nn.glu, axis=-1), False),
    (softmax, False),
    *((fun, True) for fun in wrapped(jax.nn.sigmoid)),
    *((fun, False) for fun in wrapped(jax.nn.silu)),
  )
  def test_the_last_operation(self, fun, found):
    flow = flow_of(fun)
    self.assertIs(normalized.has_sigmoid(flow, flow.outputs[0]), found)
