"""Blocks of a model whose removal changes its output the least.

In shapes, `B` is the batch, `L` the length, `D` the width, `C` the number of
classes.

References:
  Men et al. "ShortGPT", 2024. https://arxiv.org/abs/2403.03853, section 3.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax import types
from cxjax.models import decoder
from cxjax.models import slicing

# Logits that are computed at once.
PIECE = 2**24


def least_harmful(
  model: slicing.Model,
  params: types.Params,
  batches: Sequence[Mapping[str, Any]],
  depth: int,
) -> tuple[int, ...]:
  """Removes one block after the other, always the one that harms least.

  The harm is the mean over tokens of the KL divergence of the output without
  the block from that of the whole model; without a head, of the cosine distance
  between their last hidden states. Runs `(model.depth + depth + 1) / 2` times
  the number of removed blocks forward passes on each batch.

  Args:
    model: the model.
    params: its variables.
    batches: its inputs; of those with a 'mask' its tokens count.
    depth: number of blocks that stay.

  Returns:
    Their numbers, ascending.

  Raises:
    UserError: an output is not finite.
  """
  model = model.clone(remat=False)
  last = jax.jit(lambda params, x: _last(model, params, x))
  whole = [last(params, x) for x in batches]
  kept = list(range(model.depth))
  while len(kept) > depth:
    harms = {}
    for block in kept[_fixed(model) :]:
      rest = [i for i in kept if i != block]
      what = slicing.everything(model, rest)
      module = slicing.smaller(model, what)
      less = slicing.sliced(model, params, what)
      found = [
        _harm(module, less, x, h) for x, h in zip(batches, whole, strict=True)
      ]
      harms[block] = float(sum(found))
      errors.require(
        math.isfinite(harms[block]),
        f'The output of the teacher without block{block} is not finite on the '
        'batches. Check its parameters, or compute in float32.',
      )
    least = min(harms, key=lambda block: harms[block])
    logging.info('Without block%d the harm is %.4g.', least, harms[least])
    kept.remove(least)
  return tuple(kept)


def _fixed(model: slicing.Model) -> int:
  """Number of first blocks that other blocks cannot take the place of.

  The first block lacks a norm where the embeddings are normalized.
  """
  return int(isinstance(model, decoder.Decoder) and model.embeddings_norm)


def _last(
  model: slicing.Model, params: types.Params, x: Mapping[str, Any]
) -> jax.Array:
  """The input of the head, `[B, L, D]`."""
  return model.trunk(params, x)[0]


@functools.partial(jax.jit, static_argnums=0)
def _harm(
  model: slicing.Model,
  params: types.Params,
  x: Mapping[str, jax.Array],
  whole: jax.Array,
) -> jax.Array:
  """Sum over the tokens of what a smaller model does otherwise.

  Args:
    model: the smaller model, of the same head.
    params: its variables.
    x: a batch.
    whole: `[B, L, D]`, the input of the head in the larger model.

  Returns:
    The sum.
  """

  def distance(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    if not model.num_classes:
      unit = lambda h: h / jnp.maximum(jnp.linalg.norm(h), 1e-12)
      ours, theirs = (unit(h.astype(jnp.float32)) for h in pair)
      return 1 - ours @ theirs
    ours, theirs = (jax.nn.log_softmax(model.head(params, h)) for h in pair)
    return jnp.sum(jnp.exp(theirs) * (theirs - ours))

  pairs = (_last(model, params, x), whole)
  pairs = jax.tree.map(lambda h: h.reshape(-1, h.shape[-1]), pairs)
  rows = max(1, PIECE // max(model.num_classes, 1))
  each = jax.lax.map(distance, pairs, batch_size=min(rows, len(pairs[0])))
  real = x.get('mask', jnp.ones(x['tokens'].shape, bool))
  return jnp.sum(jnp.where(real.reshape(-1) != 0, each, 0))
