"""Smaller models cut out of larger ones: blocks, channels, heads and neurons.

In shapes, `B` is the batch, `L` the length, `D` the width.

References:
  Muralidharan et al. "Minitron", 2024. https://arxiv.org/abs/2407.14679,
  section 2.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import TypeAlias

from flax import traverse_util
import jax
import numpy as np

from cxjax import types
from cxjax.models import decoder as decoder_lib
from cxjax.models import parameter_axes
from cxjax.models import transformer as transformer_lib

Model: TypeAlias = transformer_lib.Transformer | decoder_lib.Decoder
# Mean sizes of activations, by the path of the module that has them.
Scores: TypeAlias = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a model.

  Attributes:
    depth: number of blocks.
    width: `D`.
    heads: number of query heads.
    kv_heads: number of key and value heads.
    mlp: hidden width of the MLPs.
    head_size: width of a head.
  """

  depth: int
  width: int
  heads: int
  kv_heads: int
  mlp: int
  head_size: int


def sizes(model: Model) -> Sizes:
  """The sizes of a model, all resolved."""
  if isinstance(model, decoder_lib.Decoder):
    groups, head, mlp = model.kv_heads, model.head_size, model.mlp_width
  else:
    groups, head = model.heads, model.width // model.heads
    mlp = model.mlp_width or 4 * model.width
  kv_heads = groups or model.heads
  return Sizes(model.depth, model.width, model.heads, kv_heads, mlp, head)


@dataclasses.dataclass(frozen=True)
class Kept:
  """Parts of a model that a smaller one keeps; all numbers ascend.

  Attributes:
    blocks: numbers of the blocks.
    width: numbers of the channels, the same everywhere.
    heads: numbers of the query heads of each of these blocks; those of a group
      follow each other.
    groups: numbers of their key and value heads.
    mlp: numbers of the neurons of each of these blocks.
  """

  blocks: tuple[int, ...]
  width: np.ndarray
  heads: tuple[np.ndarray, ...]
  groups: tuple[np.ndarray, ...]
  mlp: tuple[np.ndarray, ...]


def first(blocks: Sequence[int], want: Sizes) -> Kept:
  """The first parts of some blocks, as many as a smaller model has."""
  count = len(blocks)
  return Kept(
    tuple(blocks),
    np.arange(want.width),
    (np.arange(want.heads),) * count,
    (np.arange(want.kv_heads),) * count,
    (np.arange(want.mlp),) * count,
  )


def everything(model: Model, blocks: Sequence[int]) -> Kept:
  """All of some blocks."""
  return first(blocks, sizes(model))


def largest(scores: np.ndarray, count: int) -> np.ndarray:
  """The numbers of the `count` largest scores, ascending."""
  return np.sort(np.argsort(-scores, kind='stable')[:count])


def choose(
  model: Model, blocks: Sequence[int], want: Sizes, scores: Scores
) -> Kept:
  """Chooses channels, heads and neurons with the largest activations.

  Args:
    model: the larger model.
    blocks: numbers of the blocks that are kept.
    want: sizes of the smaller model.
    scores: scores from `activation_sizes`; those that nothing is removed of may
      lack.

  Returns:
    The blocks, channels, heads and neurons that are kept.
  """
  have, kept = sizes(model), everything(model, blocks)
  if want.width < have.width:
    # Each norm counts alike, whatever the size of its scale.
    norms = [
      found / max(float(found.mean()), np.finfo(float).tiny)
      for name, found in scores.items()
      if name.endswith('norm') and _block(name) in (*blocks, None)
    ]
    width = largest(np.sum(norms, axis=0), want.width)
    kept = dataclasses.replace(kept, width=width)
  if want.heads < have.heads:
    found = [scores[f'block{i}/attention_out'] for i in blocks]
    found = [each.reshape(have.heads, -1).mean(axis=1) for each in found]
    if getattr(model, 'relative_buckets', 0):
      # The biases of positions belong to a head of every block.
      found = [np.sum(found, axis=0)] * len(blocks)
    pairs = [_heads(each, have, want) for each in found]
    groups, heads = zip(*pairs, strict=True)
    kept = dataclasses.replace(kept, heads=heads, groups=groups)
  if want.mlp < have.mlp:
    found = [scores[f'block{i}/mlp_out'] for i in blocks]
    mlp = tuple(largest(each, want.mlp) for each in found)
    kept = dataclasses.replace(kept, mlp=mlp)
  return kept


def _block(name: str) -> int | None:
  """Number of the block of a path, or None."""
  first = name.split('/')[0].removeprefix('block')
  return int(first) if first.isdecimal() else None


def _heads(
  scores: np.ndarray, have: Sizes, want: Sizes
) -> tuple[np.ndarray, np.ndarray]:
  """The groups with the largest sums, and the largest heads in each."""
  table = scores.reshape(have.kv_heads, -1)
  groups = largest(table.sum(axis=1), want.kv_heads)
  count, old = want.heads // want.kv_heads, table.shape[1]
  heads = [group * old + largest(table[group], count) for group in groups]
  return groups, np.concatenate(heads)


def smaller(model: Model, kept: Kept) -> Model:
  """The module of what is kept; the model itself if that is all."""
  have, blocks = sizes(model), kept.blocks
  fields: dict[str, Any] = {
    'depth': len(blocks),
    'width': len(kept.width),
    'heads': len(kept.heads[0]),
  }
  mlp = len(kept.mlp[0])
  if (mlp, fields['width']) != (have.mlp, have.width):
    fields['mlp_width'] = mlp
  if isinstance(model, decoder_lib.Decoder):
    if model.windows:
      fields['windows'] = tuple(model.windows[i] for i in blocks)
    if (fields['width'], fields['heads']) != (have.width, have.heads):
      filled = fields['width'] == fields['heads'] * have.head_size
      implied = filled and not model.head_width
      fields['head_width'] = 0 if implied else have.head_size
      groups = len(kept.groups[0])
      fields['kv_heads'] = groups if groups != have.kv_heads else model.kv_heads
  fields = {k: v for k, v in fields.items() if v != getattr(model, k)}
  return model.clone(**fields) if fields else model


def sliced(model: Model, params: types.Params, kept: Kept) -> types.Params:
  """The variables of what is kept, in their dtypes.

  Args:
    model: the larger model.
    params: its variables.
    kept: blocks, channels, heads and neurons that are kept.

  Returns:
    The variables of `smaller(model, kept)`; leaves of which nothing is removed
    are the same arrays.
  """
  have, width = sizes(model), parameter_axes.WIDTH
  features = np.arange(have.head_size)
  flat = lambda heads: (
    heads[:, None] * have.head_size + features[None]
  ).reshape(-1)
  numbers = {block: at for at, block in enumerate(kept.blocks)}
  leaves = traverse_util.flatten_dict(params['params'], sep='/')
  found = {}
  for path, leaf in leaves.items():
    block = _block(path)
    if block is not None and block not in numbers:
      continue
    at = 0 if block is None else numbers[block]
    index = {
      width: kept.width,
      parameter_axes.HEADS: kept.heads[at],
      parameter_axes.QUERY: flat(kept.heads[at]),
      parameter_axes.KEY_VALUE: flat(kept.groups[at]),
      parameter_axes.MLP: kept.mlp[at],
    }
    for axis, name in enumerate(parameter_axes.of(path)):
      if name in index and len(index[name]) < leaf.shape[axis]:
        leaf = leaf.take(index[name], axis=axis)
    _, *rest = path.split('/')
    name = path if block is None else '/'.join([f'block{at}', *rest])
    found[name] = leaf
  return {**params, 'params': traverse_util.unflatten_dict(found, sep='/')}


def start(model: Model, params: types.Params, kept: Kept) -> types.Params:
  """The variables of `sliced`, in float32 where they are float16.

  `distill` refuses students in float16, whose gradients would vanish.

  Args:
    model: the larger model.
    params: its variables.
    kept: blocks, channels, heads and neurons that are kept.

  Returns:
    The variables.
  """
  return jax.tree.map(
    lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float16 else leaf,
    sliced(model, params, kept),
  )


def rescaled(
  model: Model, params: types.Params, factors: Mapping[str, Any], width: int
) -> types.Params:
  """The variables with norms that fit a smaller width.

  A norm of fewer channels, those with the largest activations, divides by more.
  With the factors the channels that stay are what they were. Embeddings that
  the model multiplies by `sqrt(D)` are divided by the smaller root.

  Args:
    model: the larger model.
    params: its variables.
    factors: factors of the results of norms, by the paths of the norms.
    width: width of the smaller model.

  Returns:
    Variables of the larger model, in their dtypes.
  """
  flat = traverse_util.flatten_dict(params['params'], sep='/')
  factors = dict(factors)
  root = (model.width / width) ** 0.5
  if getattr(model, 'scaled_embeddings', False):
    flat['tokens/embedding'] = _times(flat['tokens/embedding'], root)
    if model.tied:
      factors['final_norm'] = factors['final_norm'] / root
  for name, factor in factors.items():
    scale = f'{name}/scale'
    offset = getattr(model, 'norm', '') == 'rms_offset'
    flat[scale] = _times(flat[scale], factor, float(offset))
  return {**params, 'params': traverse_util.unflatten_dict(flat, sep='/')}


def _times(leaf: Any, factor: Any, offset: float = 0.0) -> Any:
  """`(offset + leaf) factor - offset`, in the dtype of the leaf."""
  found = (leaf.astype(np.float32) + offset) * np.float32(factor) - offset
  return found.astype(leaf.dtype)
