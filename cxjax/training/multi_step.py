"""Many steps of many seeds in one dispatch, with the teacher's look-ahead.

In shapes, `S` is the number of seeds (students trained at once), `K` the number
of batches looked ahead; the rest is as in `step.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cxjax.methods import stage as stage_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import projections
from cxjax.methods import train_step


def draw_batches(
  draw: Callable[[jax.Array, jax.Array, Any], train_step.Batch],
  keys: jax.Array,
  steps: jax.Array,
  rows: Any,
) -> train_step.Batch:
  """The batches of some steps, of every stream.

  Args:
    draw: `(key, step, rows) -> batch`.
    keys: `[streams]`.
    steps: `[K]` integers.
    rows: `[K, streams, ...]`, or None.

  Returns:
    `[streams, K, B, ...]` in every leaf, over the devices.
  """
  rows = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), rows)
  stream = lambda key, rows: jax.vmap(draw, (None, 0, 0))(key, steps, rows)
  batches = jax.vmap(stream)(keys, rows)
  return mesh_lib.split(batches, axis=2, seeds=0)


def targets(
  teacher: train_step.Apply,
  params: train_step.Params,
  matrices: jax.Array | None,
  batches: train_step.Batch,
  stage: stage_lib.Stage,
  microbatches: int = 1,
) -> train_step.Target:
  """`target` for many batches in one product, and for every seed.

  Args:
    teacher: the teacher.
    params: its parameters.
    matrices: `[S, d_T, r]` projections, or None.
    batches: `[streams, K, B, ...]`; one stream is shared by the seeds.
    stage: what to imitate; it needs a teacher.
    microbatches: parts that the teacher sees one after the other.

  Returns:
    `[streams, K, B, ...]` in every leaf; projected, `[S, K, B, ...]`.
  """
  x = train_step.without_dropout(batches['x'])
  # Examples first where devices part them, or each would compute all.
  first = 2 if mesh_lib.parts() > 1 else 0
  axes = list(jax.tree.leaves(x)[0].shape[:3])
  shared = axes[0] == 1
  axes.insert(0, axes.pop(first))
  every = jax.tree.map(
    lambda x: jnp.moveaxis(x, first, 0).reshape(-1, *x.shape[3:]), x
  )
  see = lambda x: train_step.compared(teacher, params, x, stage.target, stage)
  want = train_step.by_parts(lambda x: train_step.top(see(x), stage), every, microbatches)
  part = lambda want: want.reshape(*axes, *want.shape[1:])
  want = jax.tree.map(lambda want: jnp.moveaxis(part(want), 0, first), want)
  if stage.top_k:
    return jax.lax.stop_gradient(want)
  form = lambda want, batch: train_step.shape(want, train_step.weights(batch, stage), stage)
  want = jax.vmap(jax.vmap(form))(want, batches)
  if matrices is None:
    return jax.lax.stop_gradient(want)
  # A projection belongs to a seed: it parts the targets of a shared batch.
  seeds = (None if shared else 0, 0)
  want = want[0] if shared else want
  return jax.vmap(projections.project, in_axes=seeds)(want, matrices)


def each_seed(fun: Callable) -> Callable:
  """`fun` of every seed; one alone goes without vmap, which is faster."""

  def every(*args):
    if len(jax.tree.leaves(args)[0]) > 1:
      return jax.vmap(fun)(*args)
    one = jax.tree.map(lambda leaf: leaf[0], args)
    return jax.tree.map(lambda leaf: leaf[None], fun(*one))

  return every


def advance(
  states: train_step.State,
  start: jax.Array,
  stop: jax.Array,
  teacher_params: train_step.Params,
  matrices: jax.Array | None,
  keys: jax.Array,
  rows: Any = None,
  wants: train_step.Target = None,
  *,
  draw: Callable[[jax.Array, jax.Array, Any], train_step.Batch],
  student: train_step.Apply,
  teacher: train_step.Apply | None,
  stage: stage_lib.Stage,
  tx: optax.GradientTransformation,
  mask: train_step.Params,
  lookahead: int,
  microbatches: int = 1,
) -> tuple[train_step.State, dict[str, jax.Array]]:
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
    rows: `[T, S, ...]`, or `[T, 1, ...]`, what `draw` makes the batches of: of
      `T` steps, a multiple of `lookahead`, `start` and `stop - 1` among them,
      the first a multiple of `T`. None where it needs no more than the key.
    wants: `[T, S, ...]` or `[T, 1, ...]`, of the same steps: targets that were
      stored, in place of the teacher; or None.
    draw: `(key, step, rows) -> batch`.
    student: the students.
    teacher: the teacher, or None.
    stage: what to imitate.
    tx: the optimizer.
    mask: from `trained`.
    lookahead: `K`.
    microbatches: as for `train_step`; the teacher goes by them as well.

  Returns:
    The states, and `{'loss': [S] sums over the steps, 'bad': [S] first step
    whose loss is not finite, or stop}`; the last step also if it leaves
    parameters that are not finite.
  """
  num_seeds = jax.tree.leaves(states.params)[0].shape[0]

  def look(block):
    """Batches and targets of `K` steps, `[streams, K, B, ...]`."""
    steps = block * lookahead + jnp.arange(lookahead)
    here = lambda tree: jax.tree.map(lambda leaf: leaf[steps % len(leaf)], tree)
    batches = draw_batches(draw, keys, steps, here(rows))
    if wants is not None:
      stored = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), here(wants))
      return batches, mesh_lib.split(stored, axis=2, seeds=0)
    if not stage.needs_teacher:
      return batches, batches['y']
    assert teacher is not None
    want = targets(
      teacher, teacher_params, matrices, batches, stage, microbatches
    )
    return batches, want

  def spread(leaf):
    """A shared batch for every seed; vmap over one copy is slower."""
    return jnp.broadcast_to(leaf, (num_seeds, *leaf.shape[1:]))

  def one_block(block, carried):
    seen = look(block)
    first = block * lookahead

    def one_step(i, carried):
      states, total, bad = carried
      batch, want = jax.tree.map(lambda leaf: spread(leaf[:, i]), seen)
      update = lambda state, batch, want: train_step.train_step(
        state,
        batch,
        want,
        apply=student,
        stage=stage,
        tx=tx,
        mask=mask,
        microbatches=microbatches,
      )
      states, loss = each_seed(update)(states, batch, want)
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
