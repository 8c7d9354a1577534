"""Losses between outputs that are never held whole.

The output of a large vocabulary is computed a few rows at a time, and so is
that of the teacher. The gradient of each piece is formed while the piece is at
hand, so that no piece is computed twice, as rematerialization would.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import types
from cxjax.methods import losses
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import weights as weights_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import shard_sums

# Bytes of outputs, in float32 and on one device, above which they are not held
# whole: for the memory that they take, and on a CPU for the time, as smaller
# ones stay in its cache.
WHOLE, WHOLE_ON_CPU = 2**26, 2**22
# Bytes of a piece, and its fewest rows. Each piece reads the kernel again, and
# that takes longer than its product where the rows are few.
PIECE, PIECE_ON_CPU = 2**25, 2**20
FEWEST, FEWEST_ON_CPU = 512, 128
FLOAT = 4
# Losses that compare each row with its target, and nothing else.
_ROWWISE = (
  losses.cross_entropy,
  losses.hard_kl,
  losses.jensen_shannon,
  losses.kl,
  losses.mse,
  losses.reverse_kl,
  losses.top_k_kl,
)


def is_large(
  shape: tuple[int, ...],
  copies: int = 1,
  parts: int = 1,
  whole: int | None = None,
) -> bool:
  """True for an output that takes too much to be held whole.

  Args:
    shape: shape `[..., C]` of the output.
    copies: number of students, each of which has one.
    parts: number of parts of a batch, on devices or one after the other.
    whole: bytes that one device may hold, `WHOLE` by default.
  """
  size = FLOAT * copies * math.prod(shape)
  return len(shape) > 1 and size > (WHOLE if whole is None else whole) * parts


def rows_at_once(
  shape: tuple[int, ...],
  copies: int = 1,
  parts: int = 1,
  platform: str = 'cpu',
) -> int | None:
  """Number of rows of an output that are computed at once; None is all.

  Args:
    shape: shape `[..., C]` of the output.
    copies: number of students, each of which has one.
    parts: number of parts of a batch, on devices or one after the other.
    platform: platform of the devices, as 'cpu'.

  Returns:
    Rows of one student on one device.
  """
  whole, piece, fewest = WHOLE, PIECE, FEWEST
  if platform == 'cpu':
    whole, piece, fewest = WHOLE_ON_CPU, PIECE_ON_CPU, FEWEST_ON_CPU
  if not is_large(shape, copies, parts, whole):
    return None
  return max(piece // (FLOAT * shape[-1] * copies), fewest)


def fits(stage: stage_lib.Stage) -> bool:
  """True if a stage compares outputs, and only row by row."""
  output = stage_lib.LOGITS
  reads = [t for t in stage.terms if output in (t.student, t.target)]
  return bool(reads) and all(map(_is_rowwise, reads))


def _is_rowwise(term: stage_lib.Term) -> bool:
  """True if a term compares outputs as they are, by a loss of ours."""
  return (
    term.student == stage_lib.LOGITS
    and term.target in (stage_lib.LOGITS, stage_lib.LABELS)
    and is_rowwise(term.loss)
    and not (term.regressor or term.projection or term.centered)
    and (term.norm, term.pool, term.scale) == ('none', 'none', 1)
  )


def is_rowwise(loss: Any) -> bool:
  """True for a loss of ours that compares each row with its target alone."""
  fun = getattr(loss, 'func', loss)
  return any(fun is known for known in _ROWWISE)


def keeps_features(term: stage_lib.Term) -> bool:
  """True if the target in pieces is the features of the teacher's output."""
  return term.target == stage_lib.LOGITS and not term.top_k


def each(
  fun: Callable[..., Any], output: output_split.Apart, *others: Any
) -> Any:
  """Computes `fun(rows [..., C], *others) -> tree of [..., k]` piece by piece.

  Args:
    fun: function of some rows of each argument.
    output: `[..., C]`.
    *others: outputs like it, and trees of arrays whose first axes are those of
      the output.

  Returns:
    The result of `fun` for the whole output.
  """
  grid = _grid(output)
  given = (output, *others)
  is_apart = lambda each: isinstance(each, output_split.Apart)
  parts = [each.features if is_apart(each) else each for each in given]

  def piece(parts: Any) -> Any:
    return fun(
      *(
        each.head(each.weights, part) if is_apart(each) else part
        for each, part in zip(given, parts, strict=True)
      )
    )

  found = jax.lax.map(piece, jax.tree.map(grid.split, parts))
  return jax.tree.map(grid.joined, found)


def shape(output: Any) -> jax.ShapeDtypeStruct:
  """Shape and dtype of an output, whole or in two parts."""
  if isinstance(output, output_split.Apart):
    made = jax.eval_shape(output.head, output.weights, output.features)
    return types.shape_struct(output.shape, made.dtype)
  return types.shape_struct(output.shape, output.dtype)


def summed_loss(
  output: output_split.Apart,
  target: types.Target,
  loss: Any,
  weights: jax.Array | None,
) -> jax.Array:
  """Weighted sum of a loss over all rows.

  Args:
    output: the student's, `[..., C]`.
    target: the teacher's output in the same form, or arrays whose first axes
      are those of the output.
    loss: `(student, target) -> [...]`, row by row.
    weights: `[...]`, or None for 1; rows of weight 0 may be NaN.

  Returns:
    A scalar. Its gradient with respect to `target` is 0.
  """
  grid = _grid(output)
  if weights is None and grid.is_padded:
    weights = jnp.ones(output.shape[:-1], jnp.float32)
  learned = [w if _is_real(w) else None for w in output.weights]
  fixed = [None if _is_real(w) else w for w in output.weights]
  head, teacher = output.head, None
  shared: Any = (fixed, ())
  if isinstance(target, output_split.Apart):
    teacher, shared = target.head, (fixed, target.weights)
    target = target.features

  def piece(learned: Any, features: jax.Array, part: Any, shared: Any) -> Any:
    target, weights = part
    fixed, theirs = shared
    merged = [
      b if a is None else a for a, b in zip(learned, fixed, strict=True)
    ]
    got = head(merged, features)
    want = target if teacher is None else teacher(theirs, target)
    if weights is not None:
      got = weights_lib.cleared_gradient(got, weights)
    found = loss(got, want)
    found = found.astype(jnp.promote_types(found.dtype, jnp.float32))
    if weights is not None:
      found = weights_lib.cleared(found, weights) * weights.astype(found.dtype)
    return jnp.sum(found)

  parts = jax.tree.map(grid.split, (target, weights))
  features = grid.split(output.features)
  return _total(piece)(
    learned, features, *jax.lax.stop_gradient((parts, shared))
  )


def _is_real(leaf: jax.Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def _total(piece: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """The sum of `piece(learned, features, part, shared)` over the pieces.

  `features` and `parts` have the pieces as their first axis and examples as
  their second; the gradient is that of `learned` and `features`. Each device
  sums over the pieces by itself, so that devices wait for each other once.
  """
  over_shards = functools.partial(shard_sums.over_shards, axis=1)

  @jax.custom_vjp
  def total(learned: Any, features: Any, parts: Any, shared: Any) -> jax.Array:
    def values(whole: Any, split: Any) -> tuple[jax.Array, tuple[()]]:
      learned, shared = whole
      one = lambda each: piece(learned, *each, shared)
      return jnp.sum(jax.lax.map(one, split)), ()

    return over_shards(values, (learned, shared), (features, parts))[0]

  def forward(learned: Any, features: Any, parts: Any, shared: Any) -> Any:
    grad = jax.value_and_grad(piece, argnums=(0, 1))

    def gradients(whole: Any, split: Any) -> Any:
      learned, shared = whole
      zeros = jax.tree.map(
        lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)),
        learned,
      )

      def add(carried: Any, each: Any) -> Any:
        value, (ours, back) = grad(learned, *each, shared)
        add_leaf = lambda a, b: a + b.astype(a.dtype)
        return jax.tree.map(add_leaf, carried, ours), (value, back)

      ours, (values, back) = jax.lax.scan(add, zeros, split)
      return (jnp.sum(values), ours), back

    (value, ours), back = over_shards(
      gradients, (learned, shared), (features, parts)
    )
    return value, (ours, back, learned)

  def backward(kept: Any, scale: jax.Array) -> Any:
    ours, back, learned = kept
    scaled = lambda grad, like: (grad * scale).astype(like.dtype)
    ours = jax.tree.map(scaled, ours, learned)
    return ours, scaled(back, back), None, None

  total.defvjp(forward, backward)
  return total


@dataclasses.dataclass(frozen=True)
class _Grid:
  """Pieces of an array `[B, ..., k]` of rows.

  Attributes:
    axes: the axes of the rows.
    examples: number of parts of the examples, and examples in a part.
    tokens: the same of the other axes, as one.
  """

  axes: tuple[int, ...]
  examples: tuple[int, int]
  tokens: tuple[int, int]

  @property
  def is_padded(self) -> bool:
    """True if the pieces have more rows than the array."""
    rows = math.prod(self.examples) * math.prod(self.tokens)
    return rows != math.prod(self.axes)

  def split(self, leaf: jax.Array) -> jax.Array:
    """`[pieces, b, t, ...]`; example `i` is in part `i` modulo their number.

    So the examples of a piece are sharded like those of the batch.
    """
    rest = leaf.shape[len(self.axes) :]
    leaf = leaf.reshape(self.axes[0], -1, *rest)
    (parts, b), (others, t) = self.examples, self.tokens
    padding = [parts * b - leaf.shape[0], others * t - leaf.shape[1]]
    if any(padding):
      widths = [(0, n) for n in padding] + [(0, 0)] * len(rest)
      leaf = jnp.pad(leaf, widths)
    leaf = leaf.reshape(b, parts, others, t, *rest)
    leaf = jnp.moveaxis(leaf, (1, 2), (0, 1))
    return leaf.reshape(parts * others, b, t, *rest)

  def joined(self, leaf: jax.Array) -> jax.Array:
    """Undoes `split`."""
    rest = leaf.shape[3:]
    (parts, b), (others, t) = self.examples, self.tokens
    leaf = leaf.reshape(parts, others, b, t, *rest)
    leaf = jnp.moveaxis(leaf, (0, 1), (1, 2)).reshape(parts * b, -1, *rest)
    size = math.prod(self.axes[1:])
    return leaf[: self.axes[0], :size].reshape(*self.axes, *rest)


def _grid(output: output_split.Apart) -> _Grid:
  """The pieces of an output: parts of the tokens, then of the examples."""
  axes = output.shape[:-1]
  size, length = axes[0], math.prod(axes[1:])
  rows = output.rows * mesh_lib.num_batch_shards()
  most = max(rows // size, 1)
  others = -(-length // most)
  parts = -(-size // rows) if others == length else 1
  return _Grid(axes, (parts, -(-size // parts)), (others, -(-length // others)))
