"""The train step of one student and its pieces: pure functions.

In shapes, `B` is the batch and `C` the number of classes. A model enters as
`apply(params, x) -> (logits, activations)`, for a linen module its bound
`apply` with `params` the whole dict of variables.

A batch is `{'x': input, 'y': labels}`. For vectors the input is `[B, d]` and
the labels are `[B]`. For sequences the input is a dict: `'tokens'`, `[B, L]`;
`'mask'`, `[B, L]` bool, which of them are real, if not all; `'positions'`, `[B,
P]`, where the logits are read; `'dropout'`, `[B]` keys, which are for the
student in training alone; and what else the model knows. Their labels are `[B,
P]`, and a third entry of the batch, `'weights'`, `[B, P]`, says which of those
count, if not all.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import optax

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import projections

Params = Any  # A tree of arrays.
Input = Any  # An array, or a dict of arrays.
Batch = dict[str, Any]
Target = Any  # An array, or with `top_k` of a stage a dict of arrays.
# `(output, activations)`: an array, and a dict of arrays.
Apply = Callable[[Params, Input], Any]


class State(struct.PyTreeNode):
  """What an update changes.

  Attributes:
    params: all of the student's.
    readout: `{'kernel': [d_S, r]}` in a stage with a readout, else `{}`.
    opt_state: of the parameters that the stage trains, and of no others.
  """

  params: Params
  readout: dict[str, jax.Array]
  opt_state: optax.OptState


def activation(apply: Apply, params: Params, x: Input, name: str) -> jax.Array:
  """The activation `name` of a model; 'logits' is its output.

  Under `jit`, the layers above it cost nothing: XLA drops them.

  Raises:
    UserError: there is no such activation; lists those that there are.
  """
  logits, activations = apply(params, x)
  activations = {**activations, stage_lib.LOGITS: logits}
  return errors.lookup('activation', name, activations)


def undropped(x: Input) -> Input:
  """The input without what makes a model drop activations."""
  if not isinstance(x, Mapping):
    return x
  return {name: leaf for name, leaf in x.items() if name != 'dropout'}


def compared(
  apply: Apply, params: Params, x: Input, name: str, stage: stage_lib.Stage
) -> jax.Array:
  """The activation `name` at the positions that a stage compares, pooled."""
  value = activation(apply, params, x, name)
  # All examples of a vector are read.
  positions = x.get('target_positions') if isinstance(x, Mapping) else None
  if stage.everywhere or name in stage_lib.READ or positions is None:
    return _pooled(value, x, stage.pool)
  return jnp.take_along_axis(value, positions[..., None], axis=1)


def _pooled(value, x, pool):
  """`[B, ..., D]` as `[B, D]`, or as it is."""
  if pool == 'none' or value.ndim == 2:
    return value
  flat = value.reshape(len(value), -1, value.shape[-1])
  if pool == 'flatten':
    return flat.reshape(len(value), -1)
  mask = x.get('mask') if isinstance(x, Mapping) else None
  if mask is None or mask.shape != flat.shape[:2]:
    return jnp.mean(flat, axis=1)
  return mean(flat, jnp.broadcast_to(mask[..., None], flat.shape), axis=1)


def weights(batch: Batch, stage: stage_lib.Stage) -> jax.Array | None:
  """How much each value of a stage's loss counts; None where all are equal."""
  if not stage.everywhere:
    return batch.get('weights')
  if stage.pool != 'none':
    return None
  return batch['x'].get('mask') if isinstance(batch['x'], Mapping) else None


def mean(values, weights, axis=None):
  """Weighted mean over `axis`, of all by default; NaN where nothing counts."""
  if weights is None:
    return jnp.mean(values, axis=axis)
  weights = weights.astype(values.dtype)
  total = jnp.sum(weights, axis=axis)
  return jnp.sum(values * weights, axis=axis) / total


def reach(apply: Apply, params: Params, x: Input, name: str) -> Params:
  """Which parameters the activation `name` depends on.

  Args:
    apply: the model.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.
    name: the activation.

  Returns:
    A tree like `params`, of True where the activation needs the leaf.
  """
  jaxpr = jax.make_jaxpr(lambda p, x: activation(apply, p, x, name))(params, x)
  _, used = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True])
  leaves, structure = jax.tree.flatten(params)
  return jax.tree.unflatten(structure, used[: len(leaves)])


def trained(
  apply: Apply, params: Params, x: Input, stage: stage_lib.Stage
) -> Params:
  """Which parameters a stage trains, as a tree like `params` of booleans."""
  mask = reach(apply, params, x, stage.student)
  for name in stage.frozen:
    below = reach(apply, params, x, name)
    mask = jax.tree.map(lambda a, b: a and not b, mask, below)
  errors.require(
    any(jax.tree.leaves(mask)),
    f'Stage {stage.name!r} trains no parameter: {stage.student!r} depends on '
    'none that is not frozen.',
  )
  return mask


def split(params: Params, mask: Params) -> tuple[Params, Params]:
  """The leaves where `mask` holds, and the others; None fills the gaps."""
  free = jax.tree.map(lambda p, m: p if m else None, params, mask)
  fixed = jax.tree.map(lambda p, m: None if m else p, params, mask)
  return free, fixed


def merge(free: Params, fixed: Params) -> Params:
  """Undoes `split`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a,
    free,
    fixed,
    is_leaf=lambda leaf: leaf is None,
  )


def projection_shape(
  stage: stage_lib.Stage, d_teacher: int, d_student: int
) -> tuple[int, int]:
  """Shape of a stage's projection, from the widths of the two activations."""
  wide = d_teacher if stage.law == 'identity' else d_student
  width = (stage.width or wide) if stage.readout else d_student
  return d_teacher, width


def target(
  apply: Apply | None,
  params: Params,
  matrix: jax.Array | None,
  batch: Batch,
  stage: stage_lib.Stage,
) -> Target:
  """What the student's activation should be; constant to the gradient.

  Args:
    apply: the teacher; not read by a stage that needs none.
    params: the teacher's parameters.
    matrix: `[d_T, r]` projection, or None.
    batch: as above.
    stage: what to imitate.

  Returns:
    `[B]` labels, `[B, C]` logits or `[B, r]` projected activations; of
    sequences `[B, P]`, `[B, P, C]` and `[B, L, r]`, or `[B, P, r]`. With
    `stage.top_k` what `losses.top_k` makes of the logits.
  """
  if not stage.needs_teacher:
    return batch['y']
  assert apply is not None
  x = undropped(batch['x'])
  want = compared(apply, params, x, stage.target, stage)
  want = shape(want, weights(batch, stage), stage)
  if matrix is not None:
    return projections.project(want, matrix)
  return jax.lax.stop_gradient(top(want, stage))


def top(want, stage):
  """All logits, or the largest."""
  return losses.top_k(want, stage.top_k) if stage.top_k else want


def shape(
  want: jax.Array, weights: jax.Array | None, stage: stage_lib.Stage
) -> jax.Array:
  """The teacher's activation as a stage asks for it, before the projection.

  Args:
    want: `[..., d_T]` of one batch.
    weights: `[...]`, of the mean that `stage.centered` subtracts.
    stage: its `norm`, `centered` and `scale`.

  Returns:
    `[..., d_T]`.
  """
  if stage.norm == 'layer':
    want = want.astype(jnp.float32)
    want = jax.nn.standardize(want, axis=-1, epsilon=1e-5)
  if stage.centered:
    axes = tuple(range(want.ndim - 1))
    each = None if weights is None else weights[..., None]
    middle = mean(want, each, axes)
    want = want - jnp.expand_dims(middle, axes)
  return want if stage.scale == 1 else want * stage.scale


def train_step(
  state: State,
  batch: Batch,
  want: Target,
  *,
  apply: Apply,
  stage: stage_lib.Stage,
  tx: optax.GradientTransformation,
  mask: Params,
  microbatches: int = 1,
) -> tuple[State, jax.Array]:
  """One update of the student towards `want`; the step of every method.

  It reports its own loss and nothing else: a metric that reads the logits would
  bring back the layers above the tap, and their cost.

  Args:
    state: of one student.
    batch: as above.
    want: from `target`.
    apply: the student.
    stage: which activation, which loss, whether there is a readout.
    tx: the optimizer.
    mask: from `trained`.
    microbatches: parts of the batch whose gradients are computed one after the
      other and summed, to save memory.

  Returns:
    The new state, and the loss before the update, a scalar.
  """
  free, fixed = split(state.params, mask)
  every = weights(batch, stage)

  def objective(learned, batch, want):
    params, readout = learned
    params = merge(params, fixed)
    got = compared(apply, params, batch['x'], stage.student, stage)
    if stage.readout:
      got = got @ readout['kernel']
    loss = stage.loss(got, want)
    if stage.alpha:
      truth = losses.cross_entropy(got, batch['y'])
      loss = (1 - stage.alpha) * loss + stage.alpha * truth
    mine = weights(batch, stage)
    if mine is None or every is None:
      return jnp.mean(loss) / microbatches
    # The share of the whole batch, however the parts are filled.
    total = jnp.sum(every.astype(loss.dtype))
    return jnp.sum(loss * mine.astype(loss.dtype)) / total

  learned = free, state.readout
  grad = jax.value_and_grad(objective)
  if microbatches == 1:
    loss, grads = grad(learned, batch, want)
  else:
    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), learned))

    def add(total, part):
      return jax.tree.map(jnp.add, total, grad(learned, *part)), None

    parts = in_parts((batch, want), microbatches)
    (loss, grads), _ = jax.lax.scan(add, zeros, parts)
  updates, opt_state = tx.update(grads, state.opt_state, learned)
  free, readout = optax.apply_updates(learned, updates)
  return State(merge(free, fixed), readout, opt_state), loss


def in_parts(tree: Any, parts: int) -> Any:
  """`[B, ...]` leaves as `[parts, B / parts, ...]`; row `i` in `i % parts`.

  A batch that is split over devices is so in each of its parts then, and none
  of it moves.
  """
  return jax.tree.map(
    lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), tree
  )


def by_parts(fun, tree, parts):
  """`fun(tree)`, one part of the leading axis after the other."""
  if parts == 1:
    return fun(tree)
  out = jax.lax.map(fun, in_parts(tree, parts))
  whole = lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
  return jax.tree.map(whole, out)


def enter(
  key: jax.Array,
  params: Params,
  *,
  stage: stage_lib.Stage,
  shape: tuple[int, int] | None,
  tx: optax.GradientTransformation,
  mask: Params,
) -> State:
  """The state with which a stage begins: fresh readout, fresh optimizer.

  Args:
    key: of the readout; consumed.
    params: the student's.
    stage: the stage that begins.
    shape: `(d_S, r)` of the readout; not read by a stage without one.
    tx: the optimizer.
    mask: from `trained`.

  Returns:
    The state.
  """
  readout = {}
  if stage.readout:
    assert shape is not None
    readout['kernel'] = jax.nn.initializers.lecun_normal()(key, shape)
  free, _ = split(params, mask)
  return State(params, readout, tx.init((free, readout)))


def carry(old: optax.OptState, new: optax.OptState) -> optax.OptState:
  """`new`, with the leaves that `old` has too, by path and shape."""
  have = {path: leaf for path, leaf in jax.tree.leaves_with_path(old)}

  def pick(path, leaf):
    other = have.get(path)
    return leaf if other is None or other.shape != leaf.shape else other

  return jax.tree.map_with_path(pick, new)


def flops(fun: Callable, *args) -> float:
  """FLOPs of `fun(*args)` as XLA compiles it; shapes are enough."""
  analysis = jax.jit(fun).lower(*args).compile().cost_analysis()
  return float((analysis or {}).get('flops', 0.0))


def flops_as_written(fun: Callable, *args) -> float:
  """FLOPs of `fun(*args)` before XLA works on it; compiles nothing."""
  analysis = jax.jit(fun).lower(*args).cost_analysis()
  return float((analysis or {}).get('flops', 0.0))
