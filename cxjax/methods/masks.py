"""Masks: which of a student's parameters a stage trains."""

from collections.abc import Callable
from collections.abc import Iterable
import fnmatch
import re
from typing import Any
from typing import TypeAlias

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import types
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.methods import training_mode
from cxjax.parallel import partition

# A tree like the parameters, of booleans; `NO_PARAMETER` in place of False at
# the leaves that a student changes itself, as running means.
Mask: TypeAlias = Any
NO_PARAMETER = 0
# A pattern of `path_mask`, or a function `(path, leaf) -> bool`.
Trainable: TypeAlias = str | Callable[[str, Any], bool]
# Characters that make a pattern of paths a regular expression, not a glob.
REGEX = re.compile(r'[\\^$|()+]|\.\*')


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


def _matches(pattern: str, path: str) -> bool:
  """True if a pattern of `path_mask` matches one path."""
  if REGEX.search(pattern):
    return re.search(pattern, path) is not None
  parts = path.split('/')
  size = pattern.count('/') + 1
  runs = ('/'.join(parts[i : i + size]) for i in range(len(parts) - size + 1))
  return fnmatch.fnmatchcase(path, pattern) or any(
    fnmatch.fnmatchcase(run, pattern) for run in runs
  )


def _marks(pattern: Trainable, path: str, leaf: Any) -> bool:
  """Returns whether a pattern or a function marks one parameter."""
  if isinstance(pattern, str):
    return _matches(pattern, path)
  try:
    marked = pattern(path, leaf)
  except Exception as error:  # Whatever a function of the user raises.
    reason = str(error).partition('\n')[0].rstrip('.')
    raise errors.UserError(
      f'trainable is a function that raises a {type(error).__name__} for '
      f'({path!r}, leaf): {reason}. It must be (path, leaf) -> bool.'
    ) from error
  errors.require(
    isinstance(marked, bool | np.bool_),
    f'trainable is a function that returns {marked!r} for ({path!r}, leaf): it '
    'must return True for parameters that are trained, else False.',
  )
  return bool(marked)


def path_mask(params: types.Params, pattern: Trainable) -> Mask:
  """Marks the parameters whose paths match a pattern.

  Args:
    params: a tree of arrays or shapes.
    pattern: a glob of whole path components, as 'block0', 'block*/query' or
      '*/bias'; one that contains any of `^ $ | ( ) + .*` or a backslash is a
      regular expression, which is searched for. A function of `(path, leaf)`
      marks those of which it is True.

  Returns:
    A tree like `params` of booleans.

  Raises:
    UserError: the pattern matches no path, or is no regular expression; the
      function raises, or returns anything else than a bool.
  """
  errors.require(
    isinstance(pattern, str) or callable(pattern),
    f"trainable={pattern!r} must be a pattern of paths, as 'block*' or "
    "'*/bias'.",
  )
  try:
    mask = jax.tree.map_with_path(
      lambda path, leaf: _marks(pattern, partition.leaf_name(path), leaf),
      params,
    )
  except re.error as error:
    raise errors.UserError(
      f'trainable={pattern!r} is no regular expression: {error}.'
    ) from error
  if not any(jax.tree.leaves(mask)):
    paths = [
      partition.leaf_name(path) for path, _ in jax.tree.leaves_with_path(params)
    ]
    shown = ', '.join(paths[:8]) + (', ...' if len(paths) > 8 else '')
    raise errors.UserError(
      f'trainable={pattern!r} matches no parameter of the student. Their paths '
      f'are: {shown}.'
    )
  return mask


@checks.checked(
  apply=targets_lib.APPLY,
  params=arguments.shapes,
  x=arguments.shapes,
  stage=targets_lib.STAGE,
  training=checks.optional(targets_lib.APPLY),
)
def trainable_mask(
  apply: types.Apply,
  params: types.Params,
  x: types.Input,
  stage: stage_lib.Stage,
  pattern: Trainable = '',
  training: types.Training | None = None,
) -> Mask:
  """Marks the parameters that a stage trains.

  Integers, booleans and PRNG keys are never trained, nor what the student
  changes itself in training mode.

  Args:
    apply: the student.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.
    stage: its terms, and the activations whose parameters are frozen.
    pattern: pattern of the paths of the parameters that may be trained, as for
      `path_mask`; '' is all.
    training: the student in training mode, if it has one.

  Returns:
    A tree like `params` of booleans.

  Raises:
    UserError: no parameter is left to train, in the stage or for one of its
      terms.
  """
  both = lambda a, b: a and b
  learnable = _learnable(params, x, training)
  if not isinstance(pattern, str) or pattern:
    learnable = jax.tree.map(both, learnable, path_mask(params, pattern))
  if training is not None:
    apply = training_mode.without_key(training)
  if stage.frozen:
    below = dependency_mask(apply, params, x, stage.frozen)
    learnable = jax.tree.map(lambda a, b: a and not b, learnable, below)
  mask = jax.tree.map(lambda _: False, learnable)
  for term in stage.terms:
    needed = dependency_mask(apply, params, x, term.student)
    needed = jax.tree.map(both, needed, learnable)
    errors.require(
      any(jax.tree.leaves(needed)),
      f'Stage {stage.name!r} trains no parameter with {term.student!r}: it '
      'depends on none that is not frozen.',
    )
    if callable(term.weight) or term.weight > 0:  # Else only its loss is told.
      mask = jax.tree.map(lambda a, b: a or b, mask, needed)
  if training is None:
    return mask
  changed = training_mode.changed_shapes(training, params, x)
  return jax.tree.map_with_path(
    lambda path, train: (
      NO_PARAMETER if partition.leaf_name(path) in changed else train
    ),
    mask,
  )


def check(mask: Mask, params: types.Params) -> None:
  """Raises UserError unless a mask is of the parameters."""
  none = lambda leaf: leaf is None
  arguments.shapes('mask', mask)
  ours: Any = jax.tree.structure(mask, is_leaf=none)
  theirs: Any = jax.tree.structure(params, is_leaf=none)
  errors.require(
    ours == theirs
    and all(type(leaf) in (bool, int) for leaf in jax.tree.leaves(mask)),
    'mask must be a tree of booleans like the parameters, as of '
    'cxjax.trainable_mask.',
  )


def pruned(tree: Any, mask: Mask) -> Any:
  """A tree like the parameters without entries that are no parameters.

  Args:
    tree: tree of the structure of the parameters; None fills gaps.
    mask: mask from `trainable_mask`.

  Returns:
    The tree without those entries of its dicts all of whose leaves the mask
    marks as `NO_PARAMETER`.
  """
  if type(mask) is not dict:
    return tree
  return {
    name: pruned(tree[name], inner)
    for name, inner in mask.items()
    if not _is_state(inner)
  }


def restored(tree: Any, mask: Mask) -> Any:
  """Undoes `pruned`; None is in the place of what it left out."""
  if type(mask) is not dict:
    return tree
  return {
    name: jax.tree.map(lambda _: None, inner)
    if _is_state(inner)
    else restored(tree[name], inner)
    for name, inner in mask.items()
  }


def has_state(mask: Mask) -> bool:
  """True if a student has leaves that it changes itself."""
  return any(map(_is_state, jax.tree.leaves(mask)))


def _is_state(mask: Mask) -> bool:
  """Returns whether a part of a mask has leaves, all of them `NO_PARAMETER`."""
  leaves = jax.tree.leaves(mask)
  return bool(leaves) and all(type(leaf) is int for leaf in leaves)


def _learnable(
  params: types.Params, x: types.Input, training: types.Training | None
) -> Mask:
  """Marks the leaves that a gradient can change."""
  changed = {}
  if training is not None:
    changed = training_mode.changed_shapes(training, params, x)

  def one(path: tuple[Any, ...], leaf: Any) -> bool:
    name, dtype = partition.leaf_name(path), jnp.result_type(leaf)
    real = jnp.issubdtype(dtype, jnp.floating)
    errors.require(
      name in changed or not jnp.issubdtype(dtype, jnp.complexfloating),
      f'The parameter {name!r} is {dtype}: complex parameters cannot be '
      'trained. Give its real and its imaginary part.',
    )
    return real and name not in changed

  mask = jax.tree.map_with_path(one, params)
  errors.require(
    any(jax.tree.leaves(mask)),
    'The student has no parameter that can be trained: none of its leaves is a '
    'floating-point array'
    + (' that it does not change itself.' if changed else '.'),
  )
  return mask


def split(params: types.Params, mask: Mask) -> tuple[types.Params, ...]:
  """Leaves where `mask` holds, and the other leaves; None fills the gaps."""
  trainable = jax.tree.map(lambda p, m: p if m else None, params, mask)
  frozen = jax.tree.map(lambda p, m: None if m else p, params, mask)
  return trainable, frozen


def merge(trainable: types.Params, frozen: types.Params) -> types.Params:
  """Undoes `split`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a,
    trainable,
    frozen,
    is_leaf=lambda leaf: leaf is None,
  )
