"""Many steps of many students in one dispatch, with the teacher's look-ahead.

In shapes, `S` is the number of seeds (students trained at once), `K` the number
of batches whose targets are computed together; the rest is as in `cxjax.types`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import types
from cxjax.methods import masks
from cxjax.methods import optimizer
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.methods import train_step
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import batch_targets

# `(key, step, rows) -> batch`; see `train_many_steps`.
Draw = Callable[[jax.Array, jax.Array, Any], types.Batch]


def draw_batches(
  draw: Draw, keys: jax.Array, steps: jax.Array, rows: Any
) -> types.Batch:
  """Draws the batches of some steps, of every stream.

  Args:
    draw: `(key, step, rows) -> batch`.
    keys: `[streams]`.
    steps: `[K]` integers.
    rows: `[K, streams, ...]`, or None.

  Returns:
    `[streams, K, B, ...]` in every leaf, sharded over the devices.
  """
  rows = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), rows)
  stream = lambda key, rows: jax.vmap(draw, (None, 0, 0))(key, steps, rows)
  with errors.calling('draw'):
    batches = jax.vmap(stream)(keys, rows)
  checks.batch('What draw returns', batches)
  return mesh_lib.constrain_batch(batches, axis=2, seeds=0)


def int32_arguments(
  schedule: tuple[int, int], span: tuple[int, int], start: int, stop: int
) -> tuple[Any, ...]:
  """The numbers that `train_many_steps` takes, as int32."""
  pair = lambda values: tuple(map(np.int32, values))
  return pair(schedule), pair(span), np.int32(start), np.int32(stop)


def each_seed(fun: Callable[..., Any]) -> Callable[..., Any]:
  """Maps `fun` over the seeds; a single one goes without vmap: it is faster."""

  def every(*args: Any) -> Any:
    if len(jax.tree.leaves(args)[0]) > 1:
      return jax.vmap(fun)(*args)
    one = jax.tree.map(lambda leaf: leaf[0], args)
    return jax.tree.map(lambda leaf: leaf[None], fun(*one))

  return every


def _num_seeds(
  states: train_step.State, mask: masks.Mask, keys: jax.Array, targets: Any
) -> int:
  """Number of seeds; raises UserError for arguments that do not fit it."""
  masks.check(mask, states.params)
  if targets is not None:
    arguments.mapping('targets', targets, "{'h': targets}")
  num_seeds = jax.tree.leaves(states.params)[0].shape[0]
  errors.require(
    keys.shape[0] in (1, num_seeds),
    f'There are {keys.shape[0]} keys and {num_seeds} states: give one key, or '
    'one for each.',
  )
  return num_seeds


@checks.checked(
  states=checks.instance(train_step.State, 'init_stage'),
  start=checks.counter,
  stop=checks.counter,
  teacher_params=arguments.shapes,
  matrices=checks.optional(checks.mapping_like("{'h': matrices}")),
  keys=checks.keys,
  rows=checks.stacked,
  targets=checks.stacked,
  span=checks.optional(checks.pair),
  training_keys=checks.optional(checks.keys),
  draw=checks.function_like('lambda key, step, rows: batch'),
  student=targets_lib.APPLY,
  teacher=checks.optional(targets_lib.APPLY),
  stage=targets_lib.STAGE,
  tx=optimizer.check,
  lookahead=checks.positive,
  microbatches=checks.positive,
  training=checks.optional(targets_lib.APPLY),
  by_example=arguments.flag,
)
def train_many_steps(
  states: train_step.State,
  start: jax.Array,
  stop: jax.Array,
  teacher_params: types.Params,
  matrices: Mapping[str, jax.Array] | None,
  keys: jax.Array,
  rows: Any = None,
  targets: Any = None,
  span: tuple[Any, Any] | None = None,
  training_keys: jax.Array | None = None,
  *,
  draw: Draw,
  student: types.Apply,
  teacher: types.Apply | None,
  stage: stage_lib.Stage,
  tx: optax.GradientTransformation,
  mask: masks.Mask,
  lookahead: int,
  microbatches: int = 1,
  training: types.Training | None = None,
  by_example: bool = False,
) -> tuple[train_step.State, dict[str, Any]]:
  """Trains every seed from step `start` to `stop`, in one dispatch.

  The frozen teacher sees `lookahead` batches of all streams in one product.
  Blocks of that many steps begin at its multiples whatever `start` is, so that
  the step at which a run was interrupted does not change its floats.

  Args:
    states: `[S, ...]` in every leaf.
    start: first step, an integer scalar; also names the batch.
    stop: one past the last step.
    teacher_params: one teacher for all seeds.
    matrices: `[S, d_T, r]` projections of the terms that have one, or None.
    keys: `[S]` streams of batches, or `[1]`: one that the seeds share.
    rows: host data from which `draw` makes the batches of `T` steps in a row,
      `[T, S, ...]` or `[T, 1, ...]`. `T` is a multiple of `lookahead`, and the
      first step a multiple of `T`; `start` and `stop - 1` are among them. None
      if `draw` needs only the key.
    targets: `[T, S, ...]` or `[T, 1, ...]`, of the same steps: stored targets
      by term, in place of the teacher; or None. With an `output_split.Ending`
      for the teacher they are those of `stored_output.stored_stage`, and
      `teacher_params` are the weights of its head.
    span: first step and length of the stage, for weights that are schedules;
      None takes each schedule at the beginning of the stage.
    training_keys: `[S]` keys of the dropout of the students; a step folds its
      number into them. Without them the dropout keys of the batches count.
    draw: `(key, step, rows) -> batch`.
    student: the students. If they and the teacher are `output_split.Split`,
      outputs are compared piece by piece.
    teacher: the teacher, or None.
    stage: stage that is trained.
    tx: the optimizer.
    mask: mask from `masks.trainable_mask`.
    lookahead: `K`.
    microbatches: parts of a batch, as for `train_step`; the teacher goes by
      them as well.
    training: the students in training mode, if they have one.
    by_example: whether the students, which compute each example by itself,
      exchange the gradients of all parameters at once, which is faster on
      several devices of a CPU.

  Returns:
    The states, and `{'loss': [S] sums over the steps, 'bad': [S] first step
    whose loss is not finite, or stop}`, with 'terms', the sums of each term, if
    there are several, and 'learning_rate' `[S]` if the optimizer keeps it.
    `bad` is the last step, too, if it leaves parameters that are not finite.
  """
  num_seeds = _num_seeds(states, mask, keys, targets)
  names = list(stage.named_terms)
  teacher_output = _teacher_output(teacher, teacher_params, targets)

  def block_inputs(block: jax.Array) -> tuple[types.Batch, Any]:
    """Batches and targets of `K` steps, `[streams, K, B, ...]`."""
    steps = block * lookahead + jnp.arange(lookahead)
    at = lambda leaf: jnp.asarray(leaf)[steps % len(leaf)]
    here = lambda tree: jax.tree.map(at, tree)
    batches = draw_batches(draw, keys, steps, here(rows))
    if targets is None:
      return batches, batch_targets.many_targets(
        teacher, teacher_params, matrices, batches, stage, microbatches
      )
    return batches, batch_targets.with_stored(
      here(targets), teacher, teacher_params, batches, stage, microbatches
    )

  def one_block(block: jax.Array, carried: Any) -> Any:
    seen = block_inputs(block)
    first = block * lookahead

    def one_step(i: jax.Array, carried: Any) -> Any:
      states, total, terms, bad = carried
      batch, wanted = _for_all_seeds(seen, i, num_seeds)
      update = lambda state, key, batch, wanted: train_step.update(
        state,
        targets_lib.with_dropout(batch, _step_key(key, first + i)),
        wanted,
        _progress(first + i, span),
        apply=student,
        stage=stage,
        tx=tx,
        mask=mask,
        microbatches=microbatches,
        training=training,
        key=_step_key(key, first + i) if training else None,
        teacher_output=teacher_output,
        by_example=by_example,
      )
      states, loss, each = each_seed(update)(
        states, training_keys, batch, wanted
      )
      failed = (bad == stop) & ~jnp.isfinite(loss)
      terms = {name: terms[name] + each[name] for name in terms}
      return states, total + loss, terms, jnp.where(failed, first + i, bad)

    low = jnp.maximum(start - first, 0)
    high = jnp.minimum(stop - first, lookahead)
    return jax.lax.fori_loop(low, high, one_step, carried)

  zeros = jnp.zeros(num_seeds)
  each = {name: zeros for name in names} if len(names) > 1 else {}
  bad = jnp.full(num_seeds, stop, jnp.int32)
  blocks = (start // lookahead, (stop - 1) // lookahead + 1)
  states, total, terms, bad = jax.lax.fori_loop(
    *blocks, one_block, (states, zeros, each, bad)
  )
  out = {'loss': total, 'bad': _first_bad(bad, states.params, stop)}
  return states, {**out, **({'terms': terms} if terms else {}), **_rate(states)}


def _rate(states: train_step.State) -> dict[str, jax.Array]:
  """The rates of the last update, where the optimizer's state keeps them."""
  rates = optimizer.learning_rate(states.opt_state)
  return {} if rates is None else {'learning_rate': rates}


def _teacher_output(
  teacher: types.Apply | None, params: types.Params, targets: Any
) -> Callable[[jax.Array], output_split.Apart] | None:
  """Completes the teacher's features, if those are the targets."""
  if targets is None and isinstance(teacher, output_split.Split):
    return teacher.restorer(params)
  if isinstance(teacher, output_split.Ending) and teacher.rows is not None:
    return functools.partial(teacher, params)
  return None


def _first_bad(
  bad: jax.Array, params: types.Params, stop: jax.Array
) -> jax.Array:
  """First step that is not finite, of the loss or else of the parameters.

  A finite loss can have a gradient that is not.
  """
  finite = jax.vmap(_finite)(params)
  return jnp.where(finite, bad, jnp.minimum(bad, stop - 1))


def _for_all_seeds(seen: Any, i: jax.Array, num_seeds: int) -> Any:
  """Batch `i` of `[streams, K, ...]` for every seed, `[S, ...]`.

  A shared batch is repeated: vmap over one copy is slower.
  """

  def one(leaf: jax.Array) -> jax.Array:
    leaf = leaf[:, i]
    return jnp.broadcast_to(leaf, (num_seeds, *leaf.shape[1:]))

  return jax.tree.map(one, seen)


def _step_key(key: jax.Array | None, step: jax.Array) -> jax.Array | None:
  """Key of the dropout of one step."""
  return None if key is None else jax.random.fold_in(key, step)


def _progress(step: jax.Array, span: tuple[Any, Any] | None) -> Any:
  """Fraction of the stage that is done before `step`."""
  if span is None:
    return 0.0
  begin, length = span
  return (step - begin) / jnp.asarray(length, jnp.float32)


def _finite(tree: Any) -> jax.Array:
  inexact = (
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  )
  return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in inexact]))
