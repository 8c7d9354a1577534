"""The train step of one student, a pure function, and its state."""

from collections.abc import Callable
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from cxjax import arguments
from cxjax import checks
from cxjax import deprecation
from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.methods import legacy
from cxjax.methods import masks
from cxjax.methods import microbatches as microbatches_lib
from cxjax.methods import optimizer
from cxjax.methods import output_pieces
from cxjax.methods import output_split
from cxjax.methods import own_examples
from cxjax.methods import relational
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.methods import training_mode
from cxjax.methods import weights as weights_lib


@legacy.state_of_one_term
class State(struct.PyTreeNode):
  """The state of one student, which an update changes.

  Attributes:
    params: all of the student's parameters.
    regressors: the `{'kernel': [d_S, r]}` of each term with a regressor, by the
      term's name.
    opt_state: optimizer state of the parameters that the stage trains, and of
      no others; from `optimizer.init`.
  """

  params: types.Params
  regressors: dict[str, dict[str, jax.Array]]
  opt_state: optax.OptState


@checks.checked(
  key=checks.key,
  params=arguments.shapes,
  stage=targets_lib.STAGE,
  shapes=checks.mapping_like("{'h': (64, 128)}"),
  tx=optimizer.check,
)
@settings.fixed()
def init_stage(
  key: jax.Array,
  params: types.Params,
  *,
  stage: stage_lib.Stage,
  shapes: dict[str, tuple[int, int]],
  tx: optax.GradientTransformation,
  mask: masks.Mask,
) -> State:
  """State at the start of a stage: fresh regressors, fresh optimizer state.

  Args:
    key: PRNG key of the regressors; consumed.
    params: parameters of the student.
    stage: the stage that begins.
    shapes: `(d_S, r)` of the regressor of each term that has one.
    tx: the optimizer.
    mask: mask from `masks.trainable_mask`.

  Returns:
    The state.

  Raises:
    UserError: the optimizer cannot train these parameters.
  """
  masks.check(mask, params)
  regressors = {}
  for i, (name, term) in enumerate(stage.named_terms.items()):
    if term.regressor:
      own = jax.random.fold_in(key, i) if i else key
      draw = jax.nn.initializers.lecun_normal(dtype=jnp.float32)
      kernel = draw(own, errors.lookup('regressor', name, shapes))
      regressors[name] = {'kernel': kernel}
  trainable, frozen = masks.split(params, mask)
  opt_state = optimizer.init(tx, (trainable, regressors), frozen, mask)
  return State(params, regressors, opt_state)


def carry(
  old: State, new: State, tx: optax.GradientTransformation, mask: masks.Mask
) -> State:
  """The state `new` of a stage, whose optimizer goes on from the one before.

  Args:
    old: state at the end of the stage before.
    new: state from `init_stage`.
    tx: the optimizer.
    mask: mask of the stage that begins.

  Returns:
    `new`, with what the optimizer knows of parameters that both stages train.
    Regressors are new, and so is what it knows of them.
  """
  carried = carry_optimizer_state(old.opt_state, new.opt_state)
  if isinstance(tx, optimizer.Elementwise) and new.regressors:
    trainable, _ = masks.split(new.params, mask)
    wider = lambda leaf: types.shape_struct((*leaf.shape, 1), leaf.dtype)
    # Only what is of the regressors changes its shape with theirs.
    usual, other = (
      jax.eval_shape(tx.init, (trainable, regressors))
      for regressors in (new.regressors, jax.tree.map(wider, new.regressors))
    )
    carried = jax.tree.map(
      lambda went_on, fresh, a, b: went_on if a.shape == b.shape else fresh,
      carried,
      new.opt_state,
      usual,
      other,
    )
  return new.replace(opt_state=carried)


def carry_optimizer_state(
  old: optax.OptState, new: optax.OptState
) -> optax.OptState:
  """`new`, with the leaves that `old` has too, by path and shape.

  Regressors are new, and so is what an `optimizer.OptimizerState` has of them.
  """
  have = {path: leaf for path, leaf in jax.tree.leaves_with_path(old)}

  def pick(path: Any, leaf: jax.Array) -> jax.Array:
    other = have.get(path)
    return leaf if other is None or other.shape != leaf.shape else other

  found = jax.tree.map_with_path(pick, new)
  if not isinstance(new, optimizer.OptimizerState):
    return found
  iterates = {**found.iterates}
  if 'regressors' in iterates:
    iterates['regressors'] = new.iterates['regressors']
  return found._replace(regressors=new.regressors, iterates=iterates)


def _term_loss(
  activations: targets_lib.Activations,
  regressor: dict[str, jax.Array] | None,
  batch: types.Batch,
  target: types.Target,
  term: stage_lib.Term,
  whole: types.Batch,
  microbatches: int,
) -> jax.Array:
  """Mean loss of one term, or a microbatch's share of it.

  The share of a microbatch is relative to the weight of the `whole` batch: it
  is the same however the microbatches are filled.
  """
  got = targets_lib.compared(activations, batch['x'], term.student, term)
  if microbatches > 1 and relational.compares_examples(term.loss, got):
    relational.warn_of_microbatches(term.student, microbatches)
  shape = activations[term.student].shape
  weights = weights_lib.loss_weights(batch, term, term.student, shape)
  if isinstance(got, output_split.Apart):
    total = output_pieces.summed_loss(got, target, term.loss, weights)
    if weights is None:
      return total / (math.prod(shape[:-1]) * microbatches)
    return total / _total_weight(whole, term, shape, total.dtype)
  if regressor is not None:
    if weights is not None:
      got = weights_lib.cleared_factor(got, weights)
    got = got @ regressor['kernel']
  if weights is not None and output_pieces.is_rowwise(term.loss):
    got = weights_lib.cleared_gradient(got, weights)
  else:
    got, target = weights_lib.cleared((got, target), weights)
  loss = term.loss(got, target)  # type: ignore[operator, misc]
  loss = loss.astype(jnp.promote_types(loss.dtype, jnp.float32))
  if weights is None:
    return jnp.mean(loss) / microbatches
  total = _total_weight(whole, term, shape, loss.dtype)
  loss = weights_lib.cleared(loss, weights)
  return jnp.sum(loss * weights.astype(loss.dtype)) / total


def _total_weight(
  whole: types.Batch, term: stage_lib.Term, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Sum of the weights of a term in the whole batch."""
  shape = (len(jax.tree.leaves(whole['x'])[0]), *shape[1:])
  every = weights_lib.loss_weights(whole, term, term.student, shape)
  assert every is not None
  # In float32, in which the losses are computed.
  return jnp.sum(every.astype(jnp.float32)).astype(dtype)


def loss_function(
  forward: training_mode.Forward,
  stage: stage_lib.Stage,
  frozen: types.Params,
  batch: types.Batch,
  progress: jax.Array | float = 0.0,
  microbatches: int = 1,
  teacher_output: Callable[[jax.Array], output_split.Apart] | None = None,
  by_example: types.Apply | None = None,
) -> Callable[..., tuple[jax.Array, Any]]:
  """The loss of a step, as a function of what is learned.

  It is `((params, regressors), changed, key, batch, targets) -> (loss, (loss of
  each term, changed))`; see `training_mode` for `changed` and `key`. A model
  `by_example` is run in place of `forward`.
  """
  terms, whole = stage.named_terms, batch

  def run(
    learned: Any,
    changed: training_mode.Changed,
    key: jax.Array | None,
    batch: types.Batch,
    targets: dict[str, types.Target],
  ) -> tuple[jax.Array, Any]:
    params, regressors = learned
    if by_example is None:
      params = training_mode.overlay(masks.merge(params, frozen), changed)
      found, changed = forward(params, batch['x'], key)
    else:
      found = own_examples.activations(
        by_example, stage, params, frozen, batch['x']
      )
    if teacher_output is not None:
      targets = {
        name: teacher_output(want)
        if output_pieces.keeps_features(terms[name])
        else want
        for name, want in targets.items()
      }
    losses = {
      name: _term_loss(
        found,
        regressors.get(name),
        batch,
        targets[name],
        term,
        whole,
        microbatches,
      )
      for name, term in terms.items()
    }
    weighted = [
      losses[name] if term.weight == 1 else term.weight_at(progress) * loss
      for (name, term), loss in zip(terms.items(), losses.values(), strict=True)
      if term.weight != 0  # Not even a NaN counts.
    ]
    return sum(weighted[1:], start=weighted[0]), (losses, changed)

  return run


def update(
  state: State,
  batch: types.Batch,
  targets: Any,
  progress: jax.Array | float = 0.0,
  *,
  apply: types.Apply,
  stage: stage_lib.Stage,
  tx: optax.GradientTransformation,
  mask: masks.Mask,
  microbatches: int = 1,
  training: types.Training | None = None,
  key: jax.Array | None = None,
  teacher_output: Callable[[jax.Array], output_split.Apart] | None = None,
  by_example: bool = False,
) -> tuple[State, jax.Array, dict[str, jax.Array]]:
  """`train_step` that also returns the loss of each term before its weight.

  With a student that is an `output_split.Split` the outputs are compared piece
  by piece. The targets are then the features of the teacher's output, which
  `teacher_output` completes; without it they are whole. A student that computes
  each example `by_example` is run as in `own_examples`.
  """
  batch = weights_lib.cleared_input(batch)
  trainable, frozen = masks.split(state.params, mask)
  targets = stage_lib.as_dict(stage, targets)
  names = _updated_names(training, state.params, batch, stage)
  before = training_mode.select(state.params, names)
  forward = training_mode.forward(apply, training, names)
  own = apply if by_example and training is None else None
  loss_of = loss_function(
    forward, stage, frozen, batch, progress, microbatches, teacher_output, own
  )
  learned = trainable, state.regressors
  args = before, key, batch, targets
  grad = microbatches_lib.value_and_grad(loss_of, microbatches)
  at = optimizer.iterate(state.opt_state, learned)
  (loss, (terms, changed)), grads = grad(at, *args)
  value = microbatches_lib.value(loss_of, microbatches)
  (trainable, regressors), opt_state = optimizer.update(
    tx,
    grads,
    state.opt_state,
    learned,
    frozen,
    loss,
    lambda learned: value(learned, *args),
    mask,
  )
  params = training_mode.overlay(masks.merge(trainable, frozen), changed)
  state = State(params, regressors, opt_state)
  return state, loss, terms


def _updated_names(
  training: types.Training | None,
  params: types.Params,
  batch: types.Batch,
  stage: stage_lib.Stage,
) -> tuple[str, ...]:
  """Names of the leaves that the student itself changes in a stage."""
  if training is None:
    return ()
  if isinstance(training, output_split.Split):
    training = training.fun
  compared = {term.student for term in stage.terms}
  return training_mode.updated_names(training, params, batch['x'], compared)


@deprecation.renamed_arguments(want='targets')
@checks.checked(
  state=checks.instance(State, 'init_stage'),
  batch=checks.batch,
  progress=checks.scalar,
  apply=targets_lib.APPLY,
  stage=targets_lib.STAGE,
  tx=optimizer.check,
  microbatches=checks.positive,
  training=checks.optional(targets_lib.APPLY),
  key=checks.optional(checks.key),
)
def train_step(
  state: State,
  batch: types.Batch,
  targets: Any,
  progress: jax.Array | float = 0.0,
  *,
  apply: types.Apply,
  stage: stage_lib.Stage,
  tx: optax.GradientTransformation,
  mask: masks.Mask,
  microbatches: int = 1,
  training: types.Training | None = None,
  key: jax.Array | None = None,
) -> tuple[State, jax.Array]:
  """One update of the student towards its targets; the step of every method.

  One forward pass of the student serves all terms. It reports its own loss and
  nothing else: a metric that reads the logits would bring back the layers above
  the highest tap, and their cost.

  Args:
    state: state of one student.
    batch: batch of examples, as in `cxjax.types`.
    targets: targets from `make_targets`, by the names of the terms; that of a
      single term may come by itself.
    progress: fraction of the stage that is done, in [0, 1], a scalar; read by
      terms whose weight is a schedule.
    apply: the student.
    stage: the terms: which activations, which losses, which weights.
    tx: the optimizer.
    mask: mask from `masks.trainable_mask`.
    microbatches: parts of the batch whose gradients are computed one after the
      other and summed, to save memory.
    training: the student in training mode, in place of `apply`.
    key: PRNG key of the dropout in this step; needed with `training` alone.

  Returns:
    The new state, and the weighted loss before the update, a scalar.
  """
  masks.check(mask, state.params)
  state, loss, _ = update(
    state,
    batch,
    targets,
    progress,
    apply=apply,
    stage=stage,
    tx=tx,
    mask=mask,
    microbatches=microbatches,
    training=training,
    key=key,
  )
  return state, loss
