"""Sizes of activations on batches, which say what a smaller model keeps.

In shapes, `B` is the batch, `L` the length, `D` the width.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import functools
from typing import Any
from typing import TypeAlias

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import types
from cxjax.models import decoder_block
from cxjax.models import parameter_axes
from cxjax.models import slicing
from cxjax.parallel import mesh as mesh_lib

# From a module, its input and its output, and arrays that it needs, to an array
# `[B, L, ...]`, or None.
Observe: TypeAlias = Callable[..., jax.Array | None]
Batches: TypeAlias = Iterable[Mapping[str, Any]]
NORMS = (nn.LayerNorm, decoder_block.RMSNorm)
INPUTS = (nn.Dense, ('mlp_out', 'attention_out'))


def measure(
  model: slicing.Model, params: types.Params, batches: Batches
) -> dict[str, np.ndarray]:
  """Mean sizes of activations over the tokens of some batches.

  Args:
    model: the model.
    params: its variables.
    batches: inputs of the model; of those with a 'mask' its tokens count.

  Returns:
    By the path of a module, `[features]`: of the outputs of the norms of the
    residual stream, and of the inputs of 'attention_out' and 'mlp_out'.
  """
  return _means(model, params, batches, _size)


def _size(module: nn.Module, x: Any, out: Any) -> jax.Array | None:
  """Sizes of the features of a layer that decide."""
  if _is_channel_norm(module):
    return jnp.abs(out)
  kind, names = INPUTS
  if isinstance(module, kind) and module.name in names:
    return jnp.abs(x)
  return None


def _is_channel_norm(module: nn.Module) -> bool:
  """True for a norm over the width of the model."""
  if not isinstance(module, NORMS):
    return False
  path = '/'.join([*module.path, 'scale'])
  return parameter_axes.of(path) == (parameter_axes.WIDTH,)


def norm_ratios(
  model: slicing.Model,
  params: types.Params,
  batches: Batches,
  channels: np.ndarray,
) -> dict[str, np.ndarray]:
  """Ratios by which norms divide more if they see some channels alone.

  Args:
    model: the model.
    params: its variables.
    batches: inputs of the model, as for `measure`.
    channels: numbers of the channels.

  Returns:
    By the path of a norm, a number: the mean over tokens of the denominator of
    these channels, divided by that of all channels.
  """
  return _means(model, params, batches, _ratio, channels)


def _ratio(
  module: nn.Module, x: Any, out: Any, channels: jax.Array
) -> jax.Array | None:
  """Ratio of the denominators of a norm of the residual stream."""
  del out
  if not _is_channel_norm(module):
    return None
  x = x.astype(jnp.float32)
  centered = isinstance(module, nn.LayerNorm)

  def denominator(x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True) if centered else 0.0
    square = jnp.mean((x - mean) ** 2, axis=-1)
    return jnp.sqrt(square + module.epsilon)

  return denominator(jnp.take(x, channels, axis=-1)) / denominator(x)


def _means(
  model: slicing.Model,
  params: types.Params,
  batches: Batches,
  observe: Observe,
  *args: Any,
) -> dict[str, np.ndarray]:
  """Means over the tokens of all batches of what is observed."""
  model = model.clone(remat=False)
  sums: dict[str, np.ndarray] = {}
  count = 0.0
  for x in batches:
    run = _observed(model, observe, params, x, *args)
    found, tokens = jax.device_get(run)
    count += float(tokens)
    for name, value in found.items():
      sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
  return {name: total / count for name, total in sums.items()}


# Compiled once for all students of a teacher.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _observed(
  model: slicing.Model,
  observe: Observe,
  params: types.Params,
  x: Mapping[str, jax.Array],
  *args: Any,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Sums over the tokens of a batch, and their number."""
  mask = x.get('mask', jnp.ones(x['tokens'].shape, bool))
  real = (mask != 0).astype(jnp.float32)
  found: dict[str, jax.Array] = {}

  def intercept(run: Any, inputs: Any, kwargs: Any, context: Any) -> Any:
    out = run(*inputs, **kwargs)
    if context.method_name == '__call__' and inputs:
      value = observe(context.module, inputs[0], out, *args)
      if value is not None:
        weights = jnp.expand_dims(real, range(2, value.ndim))
        total = jnp.sum(value.astype(jnp.float32) * weights, axis=(0, 1))
        found['/'.join(context.module.path)] = total
    return out

  with nn.intercept_methods(intercept):
    model.apply(params, x)
  # Every process reads them.
  return mesh_lib.constrain_replicated((found, jnp.sum(real)))
