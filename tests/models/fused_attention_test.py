"""Fused attention against plain attention, with XLA in place of cuDNN."""

import functools
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.models import attention
from cxjax.models import fused_attention

BATCH, QUERIES, KEYS, HEADS, WIDTH = 3, 4, 6, 4, 8
MASKS = {
  'none': None,
  'of_all': (1, QUERIES, KEYS),
  'of_each': (BATCH, 1, KEYS),
  'of_queries': (BATCH, QUERIES, KEYS),
}


def attend(query, key, value, *visible, scale):
  mask = visible[0][:, None] if visible else None
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask, scale=scale, implementation='xla'
  )


def arrays(*first, groups=HEADS):
  keys = jax.random.split(jax.random.key(0), 3)
  return [
    jax.random.normal(key, (*first, BATCH, length, heads, WIDTH))
    for key, length, heads in zip(
      keys, (QUERIES, KEYS, KEYS), (HEADS, groups, groups), strict=True
    )
  ]


def visible(name, *first):
  if MASKS[name] is None:
    return []
  drawn = jax.random.bernoulli(jax.random.key(1), 0.7, (*first, *MASKS[name]))
  return [drawn.at[..., 0].set(True)]


def both_ways(fun, inputs, mask):
  """The output, and the gradients of a function of it."""
  total = lambda inputs: (jnp.sin(out := fun(*inputs, *mask)).sum(), out)
  grads, out = jax.grad(total, has_aux=True)(inputs)
  return out, grads


def plain(query, key, value, *mask):
  scale = WIDTH**-0.5
  return attention.grouped_attention(
    query, key, value, mask[0] if mask else None, scale
  )


fused = lambda *operands: fused_attention._make(WIDTH**-0.5, attend)(*operands)


@pytest.mark.slow
class FusedTest(parameterized.TestCase):
  def assert_same(self, got, want):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      got,
      want,
    )

  @parameterized.product(mask=sorted(MASKS), groups=(HEADS, 2))
  def test_output_and_gradients_are_those_of_plain_attention(
    self, mask, groups
  ):
    operands = arrays(groups=groups), visible(mask)
    if MASKS[mask]:
      rows = operands[1][0].shape[0]
      shape = (rows, QUERIES, KEYS)
      operands = operands[0], [jnp.broadcast_to(operands[1][0], shape)]
    self.assert_same(both_ways(fused, *operands), both_ways(plain, *operands))

  @parameterized.product(
    mask=('none', 'of_all', 'of_queries'), shared=(False, True)
  )
  def test_students_are_part_of_the_batch(self, mask, shared):
    seeds = 2
    axis = None if shared else 0
    inputs = arrays(seeds)
    masks = visible(mask) if shared else visible(mask, seeds)
    run = lambda fun: jax.vmap(
      functools.partial(both_ways, fun), in_axes=(0, axis)
    )(inputs, masks)
    self.assert_same(run(fused), run(plain))

  def test_axes_of_axes(self):
    run = lambda fun: jax.vmap(
      jax.vmap(functools.partial(both_ways, fun), (0, None)), (0, None)
    )(arrays(2, 3), visible('of_queries'))
    self.assert_same(run(fused), run(plain))

  def test_one_input_of_all_students(self):
    query, key, value = arrays(2)
    run = lambda fun: jax.vmap(fun, (0, None, 0))(query, key[0], value)
    self.assert_same(run(fused), run(plain))


class ChoiceTest(parameterized.TestCase):
  def lowered(self, *operands, gpu=True, cudnn=attend):
    """What is lowered for CUDA, and the same result on the CPU."""
    run = lambda q, k, v: fused_attention.or_plain(
      lambda q, k, v, mask: jnp.zeros_like(q) + 5, q, k, v, None, 1.0
    )
    with (
      mock.patch.object(fused_attention, '_one_gpu', lambda: gpu),
      mock.patch.object(fused_attention, '_cudnn', cudnn),
    ):
      out = jax.jit(run)(*operands)
      text = jax.jit(run).trace(*operands).lower(lowering_platforms=('cuda',))
    np.testing.assert_array_equal(np.float32(out), 5)
    return 'exponential' in text.as_text()

  @parameterized.named_parameters(
    ('bfloat16', jnp.bfloat16, True, True),
    ('float16', jnp.float16, True, True),
    ('float32', jnp.float32, True, False),
    ('no_gpu', jnp.bfloat16, False, False),
  )
  def test_is_fused_for_cuda_alone(self, dtype, gpu, found):
    operands = [array.astype(dtype) for array in arrays()]
    self.assertEqual(self.lowered(*operands, gpu=gpu), found)

  def test_is_plain_where_cudnn_refuses(self):
    def refuses(*operands, scale):
      raise NotImplementedError('The head dim must be <= 128.')

    operands = [array.astype(jnp.bfloat16) for array in arrays()]
    self.assertFalse(self.lowered(*operands, cudnn=refuses))

  def test_is_plain_without_cudnn(self):
    operands = [array.astype(jnp.bfloat16) for array in arrays()]
    cudnn = fused_attention._cudnn
    self.assertFalse(self.lowered(*operands, cudnn=cudnn))

  def test_one_gpu_is_no_cpu_and_no_mesh_of_several(self):
    self.assertFalse(fused_attention._one_gpu())
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.assertTrue(fused_attention._one_gpu())
      if jax.device_count() > 1:
        mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
        with jax.set_mesh(mesh):
          self.assertFalse(fused_attention._one_gpu())
