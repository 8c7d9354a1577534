"""The train step, the evaluation and their pieces: pure functions.

In shapes, `S` is the number of seeds (students trained at once), `B` the batch
of one seed, `K` the number of batches looked ahead, `C` the number of classes.
A model enters as `apply(params, x) -> (logits, activations)`, for a linen
module its bound `apply` with `params` the whole dict of variables.
"""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import optax

from cxjax import curriculum
from cxjax import errors
from cxjax import losses
from cxjax import mesh as mesh_lib
from cxjax import projection

Params = Any
Batch = dict[str, jax.Array]
Apply = Callable[[Params, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


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


def activation(
  apply: Apply, params: Params, x: jax.Array, name: str
) -> jax.Array:
  """The activation `name` of a model; 'logits' is its output.

  Under `jit`, the layers above it cost nothing: XLA drops them.

  Raises:
    UserError: there is no such activation; lists those that there are.
  """
  logits, activations = apply(params, x)
  activations = {**activations, curriculum.LOGITS: logits}
  return errors.lookup('activation', name, activations)


def reach(apply: Apply, params: Params, x: jax.Array, name: str) -> Params:
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
  structure = jax.tree.structure(params)
  return jax.tree.unflatten(structure, used[: structure.num_leaves])


def trained(
  apply: Apply, params: Params, x: jax.Array, stage: curriculum.Stage
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
  stage: curriculum.Stage, d_teacher: int, d_student: int
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
  stage: curriculum.Stage,
) -> jax.Array:
  """What the student's activation should be; constant to the gradient.

  Args:
    apply: the teacher; not read by a stage that needs none.
    params: the teacher's parameters.
    matrix: `[d_T, r]` projection, or None.
    batch: `{'x': [B, ...], 'y': [B]}`.
    stage: what to imitate.

  Returns:
    `[B]` labels, `[B, C]` logits or `[B, r]` projected activations.
  """
  if not stage.needs_teacher:
    return batch['y']
  want = activation(apply, params, batch['x'], stage.target)
  if matrix is not None:
    return projection.project(want, matrix)
  return jax.lax.stop_gradient(want)


def train_step(
  state: State,
  batch: Batch,
  want: jax.Array,
  *,
  apply: Apply,
  stage: curriculum.Stage,
  tx: optax.GradientTransformation,
  mask: Params,
) -> tuple[State, jax.Array]:
  """One update of the student towards `want`; the step of every method.

  It reports its own loss and nothing else: a metric that reads the logits would
  bring back the layers above the tap, and their cost.

  Args:
    state: of one student.
    batch: `{'x': [B, ...], ...}`.
    want: from `target`.
    apply: the student.
    stage: which activation, which loss, whether there is a readout.
    tx: the optimizer.
    mask: from `trained`.

  Returns:
    The new state, and the loss before the update, a scalar.
  """
  free, fixed = split(state.params, mask)

  def objective(learned):
    params, readout = learned
    params = merge(params, fixed)
    got = activation(apply, params, batch['x'], stage.student)
    if stage.readout:
      got = got @ readout['kernel']
    return jnp.mean(stage.loss(got, want))

  learned = free, state.readout
  loss, grads = jax.value_and_grad(objective)(learned)
  updates, opt_state = tx.update(grads, state.opt_state, learned)
  free, readout = optax.apply_updates(learned, updates)
  return State(merge(free, fixed), readout, opt_state), loss


def enter(
  key: jax.Array,
  params: Params,
  *,
  stage: curriculum.Stage,
  shape: tuple[int, int],
  tx: optax.GradientTransformation,
  mask: Params,
) -> State:
  """The state with which a stage begins: fresh readout, fresh optimizer.

  Args:
    key: of the readout; consumed.
    params: the student's.
    stage: the stage that begins.
    shape: `(d_S, r)` of the readout.
    tx: the optimizer.
    mask: from `trained`.

  Returns:
    The state.
  """
  readout = {}
  if stage.readout:
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


def advance(
  states: State,
  start: jax.Array,
  stop: jax.Array,
  teacher_params: Params,
  matrices: jax.Array | None,
  keys: jax.Array,
  *,
  draw: Callable[[jax.Array, jax.Array], Batch],
  student: Apply,
  teacher: Apply | None,
  stage: curriculum.Stage,
  tx: optax.GradientTransformation,
  mask: Params,
  lookahead: int,
) -> tuple[State, dict[str, jax.Array]]:
  """Updates `start` to `stop` of every seed, in one dispatch.

  The frozen teacher sees `lookahead` batches of all streams in one product.
  Blocks of that many steps begin at its multiples whatever `start` is, so that
  where a run was interrupted does not change its floats.

  Args:
    states: `[S, ...]` in every leaf.
    start: first step, an integer scalar; also names the batch.
    stop: one past the last step.
    teacher_params: one teacher for all seeds.
    matrices: `[S, d_T, r]` projections, or None.
    keys: `[S]` streams of batches, or `[1]`: one that the seeds share.
    draw: `(key, step) -> batch`.
    student: the students.
    teacher: the teacher, or None.
    stage: what to imitate.
    tx: the optimizer.
    mask: from `trained`.
    lookahead: `K`.

  Returns:
    The states, and `{'loss': [S] sums over the steps, 'bad': [S] first step
    whose loss is not finite, or stop}`; the last step also if it leaves
    parameters that are not finite.
  """
  num_seeds = jax.tree.leaves(states.params)[0].shape[0]
  shared = keys.shape[0] == 1

  def look(block):
    """Batches and targets of `K` steps, `[streams, K, B, ...]`."""
    steps = block * lookahead + jnp.arange(lookahead)
    batches = jax.vmap(lambda k: jax.vmap(lambda t: draw(k, t))(steps))(keys)
    batches = mesh_lib.split(batches, axis=2)
    if not stage.needs_teacher:
      return batches, batches['y']
    x = batches['x']
    rows = x.reshape(-1, *x.shape[3:])
    want = activation(teacher, teacher_params, rows, stage.target)
    want = want.reshape(*x.shape[:3], *want.shape[1:])
    if matrices is None:
      return batches, jax.lax.stop_gradient(want)
    # A projection belongs to a seed: it parts the targets of a shared batch.
    axes = (None if shared else 0, 0)
    want = want[0] if shared else want
    return batches, jax.vmap(projection.project, in_axes=axes)(want, matrices)

  def spread(leaf):
    """A shared batch for every seed; vmap over one copy is slower."""
    return jnp.broadcast_to(leaf, (num_seeds, *leaf.shape[1:]))

  def one_block(block, carried):
    batches, wants = look(block)
    first = block * lookahead

    def one_step(i, carried):
      states, total, bad = carried
      batch, want = jax.tree.map(
        lambda leaf: spread(leaf[:, i]), (batches, wants)
      )
      step = lambda state, batch, want: train_step(
        state, batch, want, apply=student, stage=stage, tx=tx, mask=mask
      )
      states, loss = jax.vmap(step)(states, batch, want)
      failed = (bad == stop) & ~jnp.isfinite(loss)
      return states, total + loss, jnp.where(failed, first + i, bad)

    low = jnp.maximum(start - first, 0)
    high = jnp.minimum(stop - first, lookahead)
    return jax.lax.fori_loop(low, high, one_step, carried)

  carried = (
    states,
    jnp.zeros(num_seeds),
    jnp.full(num_seeds, stop, jnp.int32),
  )
  blocks = (start // lookahead, (stop - 1) // lookahead + 1)
  states, total, bad = jax.lax.fori_loop(*blocks, one_block, carried)
  # A finite loss can have a gradient that is not.
  bad = jnp.where(
    jax.vmap(_finite)(states.params), bad, jnp.minimum(bad, stop - 1)
  )
  return states, {'loss': total, 'bad': bad}


def _finite(tree) -> jax.Array:
  return jnp.all(
    jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])
  )


def evaluate(params: Params, batch: Batch, *, apply: Apply) -> Batch:
  """Held-out accuracy and cross entropy of one student.

  Args:
    params: the student's.
    batch: `{'x': [N, ...], 'y': [N]}`.
    apply: the student.

  Returns:
    `{'accuracy': scalar in [0, 1], 'loss': scalar in nats}`.
  """
  logits, _ = apply(params, batch['x'])
  hits = jnp.argmax(logits, axis=-1) == batch['y']
  loss = losses.cross_entropy(logits, batch['y'])
  return {'accuracy': jnp.mean(hits), 'loss': jnp.mean(loss)}


def flops(fun: Callable, *args) -> float:
  """FLOPs of `fun(*args)` as XLA compiles it; shapes are enough."""
  analysis = jax.jit(fun).lower(*args).compile().cost_analysis()
  return float(analysis.get('flops', 0.0))
