"""Shapes, batches and types that the whole package shares.

In shapes, `B` is the batch, `L` the length of a sequence, `P` the number of
target positions, `C` the number of classes and `D` a width.

A batch is `{'x': input, 'y': labels, 'weights': weights}`. For vectors the
input is `[B, d]` and the labels are `[B]`. For sequences the input is a dict:

- `'tokens'`: `[B, L]` ids.
- `'mask'`: `[B, L]` bool, the real tokens; all if it is absent.
- `'target_positions'`: `[B, P]`, where the logits are computed; everywhere if
  it is absent.
- `'segments'`: `[B, L]`, the packed chunk of each token.
- `'position_ids'`: `[B, L]`, positions for the embedding.
- `'dropout'`: `[B]` keys, which the student alone receives, in training.

Labels of sequences are `[B, P]`, and so are the optional `'weights'`, which say
how much each of them counts; `[B]` weights are those of the examples.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import TypeAlias

import jax

# A tree of arrays.
Params: TypeAlias = Any
# An array, or a dict of arrays.
Input: TypeAlias = Any
Batch: TypeAlias = dict[str, Any]
# An array, or the dict that `losses.top_k` makes of one.
Target: TypeAlias = Any
# `(params, x) -> (output, activations)`: an array and a dict of arrays.
Apply: TypeAlias = Callable[[Params, Input], Any]
# The same in training mode, `(params, x, key) -> (output, activations,
# changed)`; see `cxjax.methods.training_mode`.
Training: TypeAlias = Callable[[Params, Input, jax.Array], Any]
# `(student, target) -> [...]`: reduces the last axis, one value per example.
Loss: TypeAlias = Callable[[jax.Array, Target], jax.Array]
# A line of metrics.jsonl.
Record: TypeAlias = dict[str, Any]


def shape_struct(
  shape: Sequence[Any], dtype: Any, sharding: Any = None
) -> jax.ShapeDtypeStruct:
  """Shape of an array as JAX holds it.

  It warns of the dtypes of 64 bits that arrays of numpy have, as it makes 32 of
  them, when they come as a shape and not as an array.
  """
  if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended):  # No PRNG key.
    dtype = jax.dtypes.canonicalize_dtype(dtype)
  return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)
