"""The train step of one student, a pure function, and its state."""

from collections.abc import Callable
from collections.abc import Iterable
import fnmatch
import re
from typing import Any
from typing import TypeAlias

from flax import struct
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import optax

from cxjax import deprecation
from cxjax import errors
from cxjax import types
from cxjax.methods import legacy
from cxjax.methods import microbatches as microbatches_lib
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib

# A tree like the parameters, of booleans.
Mask: TypeAlias = Any
# Characters that make a pattern of paths a regular expression, not a glob.
REGEX = re.compile(r'[\\^$|()+]|\.\*')


@legacy.state_of_one_term
class State(struct.PyTreeNode):
  """The state of one student, which an update changes.

  Attributes:
    params: all of the student's parameters.
    regressors: the `{'kernel': [d_S, r]}` of each term with a regressor, by the
      term's name.
    opt_state: of the parameters that the stage trains, and of no others.
  """

  params: types.Params
  regressors: dict[str, dict[str, jax.Array]]
  opt_state: optax.OptState


def dependency_mask(
  apply: types.Apply,
  params: types.Params,
  x: types.Input,
  names: str | Iterable[str],
) -> Mask:
  """Marks the parameters that some activations depend on.

  Args:
    apply: the model.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.
    names: an activation, or several.

  Returns:
    A tree like `params`, True where any of the activations needs the leaf.
  """
  names = (names,) if isinstance(names, str) else tuple(names)

  def outputs(params: types.Params, x: types.Input) -> list[jax.Array]:
    found = targets_lib.forward(apply, params, x)
    return [errors.lookup('activation', name, found) for name in names]

  jaxpr = jax.make_jaxpr(outputs)(params, x)
  _, used = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(names))
  leaves, structure = jax.tree.flatten(params)
  return jax.tree.unflatten(structure, used[: len(leaves)])


def path_name(path: tuple[Any, ...]) -> str:
  """Name of a leaf's path in a tree, as in 'params/block0/query/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _matches(pattern: str, path: str) -> bool:
  """Whether a pattern of `path_mask` matches one path."""
  if REGEX.search(pattern):
    return re.search(pattern, path) is not None
  parts = path.split('/')
  size = pattern.count('/') + 1
  runs = ('/'.join(parts[i : i + size]) for i in range(len(parts) - size + 1))
  return fnmatch.fnmatchcase(path, pattern) or any(
    fnmatch.fnmatchcase(run, pattern) for run in runs
  )


def path_mask(params: types.Params, pattern: str) -> Mask:
  """Marks the parameters whose paths match a pattern.

  Args:
    params: a tree of arrays or shapes.
    pattern: a glob of whole path components, as 'block0', 'block*/query' or
      '*/bias'; one that contains any of `^ $ | ( ) + .*` or a backslash is a
      regular expression, which is searched for.

  Returns:
    A tree like `params` of booleans.

  Raises:
    UserError: the pattern matches no path, or is no regular expression.
  """
  errors.require(
    isinstance(pattern, str),
    f"trainable={pattern!r} must be a pattern of paths, as 'block*' or "
    "'*/bias'.",
  )
  try:
    mask = jax.tree.map_with_path(
      lambda path, _: _matches(pattern, path_name(path)), params
    )
  except re.error as error:
    raise errors.UserError(
      f'trainable={pattern!r} is no regular expression: {error}.'
    ) from error
  if not any(jax.tree.leaves(mask)):
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    shown = ', '.join(paths[:8]) + (', ...' if len(paths) > 8 else '')
    raise errors.UserError(
      f'trainable={pattern!r} matches no parameter of the student. Their paths '
      f'are: {shown}.'
    )
  return mask


def trainable_mask(
  apply: types.Apply,
  params: types.Params,
  x: types.Input,
  stage: stage_lib.Stage,
  pattern: str = '',
) -> Mask:
  """Marks the parameters that a stage trains.

  Args:
    apply: the student.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.
    stage: its terms, and the activations whose parameters are frozen.
    pattern: of the paths of the parameters that may be trained; '' is all.

  Returns:
    A tree like `params` of booleans.

  Raises:
    UserError: no parameter is left to train, in the stage or for one of its
      terms.
  """
  free = jax.tree.map(lambda _: True, params)
  if pattern:
    free = path_mask(params, pattern)
  if stage.frozen:
    below = dependency_mask(apply, params, x, stage.frozen)
    free = jax.tree.map(lambda a, b: a and not b, free, below)
  both = lambda a, b: a and b
  mask = None
  for term in stage.terms:
    needed = dependency_mask(apply, params, x, term.student)
    needed = jax.tree.map(both, needed, free)
    errors.require(
      any(jax.tree.leaves(needed)),
      f'Stage {stage.name!r} trains no parameter with {term.student!r}: it '
      'depends on none that is not frozen.',
    )
    if mask is None:
      mask = needed
    else:
      mask = jax.tree.map(lambda a, b: a or b, mask, needed)
  return mask


def split(params: types.Params, mask: Mask) -> tuple[types.Params, ...]:
  """Leaves where `mask` holds, and the other leaves; None fills the gaps."""
  free = jax.tree.map(lambda p, m: p if m else None, params, mask)
  fixed = jax.tree.map(lambda p, m: None if m else p, params, mask)
  return free, fixed


def merge(free: types.Params, fixed: types.Params) -> types.Params:
  """Undoes `split`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a,
    free,
    fixed,
    is_leaf=lambda leaf: leaf is None,
  )


def init_stage(
  key: jax.Array,
  params: types.Params,
  *,
  stage: stage_lib.Stage,
  shapes: dict[str, tuple[int, int]],
  tx: optax.GradientTransformation,
  mask: Mask,
) -> State:
  """State at the start of a stage: fresh regressors, fresh optimizer state.

  Args:
    key: of the regressors; consumed.
    params: the student's.
    stage: the stage that begins.
    shapes: `(d_S, r)` of the regressor of each term that has one.
    tx: the optimizer.
    mask: from `trainable_mask`.

  Returns:
    The state.
  """
  regressors = {}
  for i, (name, term) in enumerate(stage.named_terms.items()):
    if term.regressor:
      own = jax.random.fold_in(key, i) if i else key
      kernel = jax.nn.initializers.lecun_normal()(own, shapes[name])
      regressors[name] = {'kernel': kernel}
  free, _ = split(params, mask)
  return State(params, regressors, tx.init((free, regressors)))


def carry_optimizer_state(
  old: optax.OptState, new: optax.OptState
) -> optax.OptState:
  """`new`, with the leaves that `old` has too, by path and shape."""
  have = {path: leaf for path, leaf in jax.tree.leaves_with_path(old)}

  def pick(path: Any, leaf: jax.Array) -> jax.Array:
    other = have.get(path)
    return leaf if other is None or other.shape != leaf.shape else other

  return jax.tree.map_with_path(pick, new)


def _term_loss(
  activations: targets_lib.Activations,
  regressor: dict[str, jax.Array] | None,
  batch: types.Batch,
  target: types.Target,
  term: stage_lib.Term,
  total: jax.Array | None,
  microbatches: int,
) -> jax.Array:
  """Mean loss of one term, or a microbatch's share of it.

  `total` is the weight of the whole batch: the share of a microbatch is the
  same however the microbatches are filled.
  """
  got = targets_lib.compared(activations, batch['x'], term.student, term)
  if regressor is not None:
    got = got @ regressor['kernel']
  loss = term.loss(got, target)  # type: ignore[operator, misc]
  weights = targets_lib.loss_weights(batch, term)
  if weights is None or total is None:
    return jnp.mean(loss) / microbatches
  total = total.astype(loss.dtype)
  return jnp.sum(loss * weights.astype(loss.dtype)) / total


def _objective(
  apply: types.Apply,
  stage: stage_lib.Stage,
  fixed: types.Params,
  batch: types.Batch,
  progress: jax.Array | float,
  microbatches: int,
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
  """`((params, regressors), batch, targets) -> (loss, loss of each term)`."""
  terms = stage.named_terms
  totals = {}
  for name, term in terms.items():
    weights = targets_lib.loss_weights(batch, term)
    # As a float32, in which the losses are computed.
    total = None if weights is None else jnp.sum(weights.astype(jnp.float32))
    totals[name] = total

  def objective(
    learned: Any, batch: types.Batch, targets: dict[str, types.Target]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    params, regressors = learned
    found = targets_lib.forward(apply, merge(params, fixed), batch['x'])
    losses = {
      name: _term_loss(
        found,
        regressors.get(name),
        batch,
        targets[name],
        term,
        totals[name],
        microbatches,
      )
      for name, term in terms.items()
    }
    weighted = [
      losses[name] if term.weight == 1 else term.weight_at(progress) * loss
      for (name, term), loss in zip(terms.items(), losses.values(), strict=True)
    ]
    return sum(weighted[1:], start=weighted[0]), losses

  return objective


def update(
  state: State,
  batch: types.Batch,
  targets: Any,
  progress: jax.Array | float = 0.0,
  *,
  apply: types.Apply,
  stage: stage_lib.Stage,
  tx: optax.GradientTransformation,
  mask: Mask,
  microbatches: int = 1,
) -> tuple[State, jax.Array, dict[str, jax.Array]]:
  """`train_step` that also returns the loss of each term before its weight."""
  free, fixed = split(state.params, mask)
  targets = stage_lib.as_dict(stage, targets)
  learned = free, state.regressors
  objective = _objective(apply, stage, fixed, batch, progress, microbatches)
  grad = jax.value_and_grad(objective, has_aux=True)
  if microbatches == 1:
    (loss, terms), grads = grad(learned, batch, targets)
  else:
    parts = microbatches_lib.split((batch, targets), microbatches)
    shapes = jax.eval_shape(grad, learned, batch, targets)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, grad(learned, *part)), None

    ((loss, terms), grads), _ = jax.lax.scan(add, zeros, parts)
  updates, opt_state = tx.update(grads, state.opt_state, learned)
  free, regressors = optax.apply_updates(learned, updates)
  state = State(merge(free, fixed), regressors, opt_state)
  return state, loss, terms


@deprecation.renamed_arguments(want='targets')
def train_step(
  state: State,
  batch: types.Batch,
  targets: Any,
  progress: jax.Array | float = 0.0,
  *,
  apply: types.Apply,
  stage: stage_lib.Stage,
  tx: optax.GradientTransformation,
  mask: Mask,
  microbatches: int = 1,
) -> tuple[State, jax.Array]:
  """One update of the student towards its targets; the step of every method.

  One forward pass of the student serves all terms. It reports its own loss and
  nothing else: a metric that reads the logits would bring back the layers above
  the highest tap, and their cost.

  Args:
    state: of one student.
    batch: as in `cxjax.types`.
    targets: from `make_targets`, by the names of the terms; that of a single
      term may come by itself.
    progress: fraction of the stage that is done, in [0, 1], a scalar; read by
      terms whose weight is a schedule.
    apply: the student.
    stage: the terms: which activations, which losses, which weights.
    tx: the optimizer.
    mask: from `trainable_mask`.
    microbatches: parts of the batch whose gradients are computed one after the
      other and summed, to save memory.

  Returns:
    The new state, and the weighted loss before the update, a scalar.
  """
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
  )
  return state, loss
