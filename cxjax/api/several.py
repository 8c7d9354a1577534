"""Several outputs with a loss each, and auxiliary losses, for `plan`."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import TypeAlias

from absl import logging
import jax

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.api import auxiliary as auxiliary_lib
from cxjax.api import loss_trees
from cxjax.methods import stage as stage_lib
from cxjax.models import adapters
from cxjax.models import outputs as outputs_lib
from cxjax.models import whole

# The argument `loss` of `plan`: one loss; or one for each output, in a tree
# like that of the outputs; '*' is the whole tree.
Loss: TypeAlias = str | types.Loss | Mapping[Any, Any] | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Two models whose outputs a plan compares.

  Attributes:
    teacher: the teacher.
    student: the student.
    loss: loss of the output that is evaluated.
    weight: weight of that loss.
    others: losses and weights of the other outputs, by path.
    auxiliary: weights of the auxiliary losses, by pattern.
    name: path of the output that is evaluated.
  """

  teacher: adapters.ModelAdapter
  student: adapters.ModelAdapter
  loss: Any
  weight: float = 1.0
  others: Mapping[str, tuple[Any, float]] = dataclasses.field(
    default_factory=dict
  )
  auxiliary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  name: str = ''

  def with_terms(
    self,
    stages: stage_lib.Curriculum,
    find: Callable[[Any], types.Loss],
  ) -> stage_lib.Curriculum:
    """The stages, with the terms of the other outputs in the last.

    Args:
      stages: extracted, of the output that is evaluated.
      find: the loss of a name or a function.

    Returns:
      The stages.
    """
    if not self.others and not self.auxiliary and self.weight == 1:
      return stages
    *before, last = stages
    terms = [_weighted(term, self.weight, self.name) for term in last.terms]
    for path, (loss, weight) in self.others.items():
      name = outputs_lib.OUTPUT + path
      terms.append(
        stage_lib.Term(name, name, find(loss), weight=weight, name=path)
      )
    terms.extend(auxiliary_lib.terms(self.auxiliary))
    return (*before, dataclasses.replace(last, terms=tuple(terms)))


def _weighted(term: stage_lib.Term, weight: float, name: str) -> stage_lib.Term:
  """A term of the evaluated output with its weight; named if it has a path."""
  if term.target != stage_lib.LOGITS:
    return term
  return dataclasses.replace(term, weight=term.weight_at(0) * weight, name=name)


@dataclasses.dataclass(frozen=True)
class OverTree:
  """A loss of two trees of outputs, as one of two vectors.

  Attributes:
    loss: `(student, teacher) -> [B]`, of trees.
    structure: tree structure of the outputs.
    shapes: shapes of their leaves, without the axis of the examples.
  """

  loss: types.Loss
  structure: Any
  shapes: tuple[tuple[int, ...], ...]

  def __call__(self, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the loss of each example."""
    return self.loss(self._tree(student), self._tree(teacher))

  def _tree(self, vector: jax.Array) -> Any:
    parts, start = [], 0
    for shape in self.shapes:
      size = math.prod(shape)
      part = vector[..., start : start + size]
      parts.append(part.reshape(*vector.shape[:-1], *shape))
      start += size
    return jax.tree.unflatten(self.structure, parts)


def chosen(
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  loss: Loss,
  auxiliary: Mapping[str, Any] | None,
  x: types.Input,
  stages: Any = None,
) -> Outputs:
  """The outputs of two models that a plan compares, and their losses.

  Args:
    models: teacher and student.
    loss: the argument of `plan`.
    auxiliary: weights of auxiliary losses, by pattern.
    x: shapes of a batch.
    stages: a curriculum that is given, whose terms may name outputs.

  Returns:
    The models with these outputs.

  Raises:
    UserError: an output without a loss, a loss or a pattern of no output, or
      outputs of other names or shapes than the teacher's.
  """
  teacher, student = models
  if not all(isinstance(model, adapters.ModelAdapter) for model in models):
    return Outputs(teacher, student, loss)  # `plan` says what they must be.
  if stages is not None:
    return _of_stages(models, stages, x)
  tree = isinstance(loss, Mapping | tuple | list)
  patterns = auxiliary_lib.weights(auxiliary)
  collections = auxiliary_lib.collections(patterns)
  try:
    ours = outputs_lib.survey(student, x, collections, 'student')
  except errors.UserError:
    if tree or patterns:
      raise
    return Outputs(teacher, student, loss)  # `plan` says more of it.
  if not patterns:
    auxiliary_lib.warn(ours.scalars)
  whole_tree = callable(loss) and 'logits' not in ours.leaves
  if not tree and {'logits'} < set(ours.leaves):
    _warn_of_left_out(student, x, ('logits',))
  if not (tree or whole_tree or patterns):
    return Outputs(teacher, student, loss)
  size = jax.tree.leaves(x)[0].shape[0]
  auxiliary_lib.check(patterns, ours.scalars, size)
  theirs = outputs_lib.survey(teacher, x, (), 'teacher')
  flat = (
    loss_trees.flat(loss) if tree else {'*' if whole_tree else 'logits': loss}
  )
  if list(flat) == ['*']:
    fun, weight = loss_trees.pair(flat['*'])
    return _over_tree(models, ours, theirs, (fun, weight), patterns)
  if not tree:
    flat = {**dict.fromkeys(ours.leaves), **flat}
  used = _used(flat, ours, theirs, patterns)
  main = 'logits' if 'logits' in used else next(iter(used))
  others = {
    path: loss_trees.pair(one) for path, one in used.items() if path != main
  }
  fun, weight = loss_trees.pair(used[main])
  return Outputs(
    _exposed(teacher, (), main, others, {}),
    _exposed(student, collections, main, others, patterns),
    fun,
    weight,
    others,
    patterns,
    main if len(used) > 1 else '',
  )


def shared(outputs: Outputs, vocab: Any, x: types.Input) -> Outputs:
  """The outputs with the first classes of both models alone.

  Args:
    outputs: both models, with the losses of their outputs.
    vocab: number of these classes; None for all.
    x: shapes of a batch.

  Returns:
    The outputs.

  Raises:
    UserError: one of the models has fewer, or a loss reads several outputs.
  """
  if vocab is None:
    return outputs
  vocab = arguments.integer('vocab', vocab, 1)
  errors.require(
    not outputs.others and not isinstance(outputs.loss, OverTree),
    f'vocab={vocab} is of models with one output, their logits: leave the '
    'others out by output=..., or leave vocab out.',
  )
  models = {'teacher': outputs.teacher, 'student': outputs.student}
  for role, model in models.items():
    shape = adapters.outputs(model, x, role)[0].shape
    errors.require(
      len(shape) > 1 and vocab <= shape[-1],
      f"vocab={vocab}: the {role}'s output is {list(shape)}, of which the last "
      'axis has to be that many classes at least. Give the number of '
      'those that both have, as cxjax.huggingface.shared_vocabulary finds it.',
    )
  first: dict[str, Any] = {
    role: outputs_lib.first_columns(model, vocab)
    for role, model in models.items()
  }
  return dataclasses.replace(outputs, **first)


def _of_stages(
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  stages: Any,
  x: types.Input,
) -> Outputs:
  """The models with the outputs that terms name, as 'output:boxes'."""
  given = stages if isinstance(stages, tuple | list) else (stages,)
  terms = [term for stage in given for term in getattr(stage, 'terms', ())]
  names = {name for term in terms for name in (term.student, term.target)}
  starting = lambda mark: sorted(
    name.removeprefix(mark) for name in names if name.startswith(mark)
  )
  paths = starting(outputs_lib.OUTPUT)
  patterns = dict.fromkeys(starting(outputs_lib.AUXILIARY))
  if 'logits' in names:
    _warn_of_left_out(models[1], x, ('logits', *paths))
  if not paths and not patterns:
    return Outputs(models[0], models[1], 'kl')
  kept, exposed = auxiliary_lib.collections(patterns), []
  for role, model in zip(('teacher', 'student'), models, strict=True):
    found = outputs_lib.survey(model, x, kept, role)
    for path in paths:
      leaf = found.leaves.get(path)
      errors.require(
        whole.is_real(leaf) and getattr(leaf, 'ndim', 0) > 0,
        f'{path!r} is no output of the {role} that can be compared.'
        f'{auxiliary_lib.nearest(path, found.leaves)}',
      )
    own = patterns if role == 'student' else {}
    auxiliary_lib.check(own, found.scalars, jax.tree.leaves(x)[0].shape[0])
    main = 'logits' if 'logits' in found.leaves else (paths or [''])[0]
    exposed.append(_exposed(model, kept, main, dict.fromkeys(paths), own))
  return Outputs(exposed[0], exposed[1], 'kl')


def _warn_of_left_out(
  student: adapters.ModelAdapter, x: types.Input, used: Sequence[str]
) -> None:
  """Warns of outputs whose own parameters no loss would train."""
  if lost := outputs_lib.apart(student, x, used):
    losses = {'logits': 'kl', **dict.fromkeys(lost[:1], 'mse')}
    logging.warning(
      'Outputs of the student are left out, and their own parameters are not '
      'trained: %s. Give each a loss, as loss=%r, or None; or in stages a '
      'term, as %r.',
      ', '.join(lost[:8]),
      losses,
      f'output:{lost[0]}',
    )


def _exposed(
  model: adapters.ModelAdapter,
  collections: tuple[str, ...],
  main: str,
  others: Mapping[str, Any],
  auxiliary: Mapping[str, Any],
) -> adapters.ModelAdapter:
  """A model whose output is `main`, with the others as activations."""

  def choose(tree: Any, found: Any, size: int) -> Any:
    flat = outputs_lib.leaves(tree)
    more = {
      outputs_lib.OUTPUT + path: outputs_lib.columns(flat[path])
      for path in others
    }
    return outputs_lib.columns(flat[main]), {
      **more,
      **auxiliary_lib.sums({**found, **flat}, auxiliary, size),
    }

  return outputs_lib.exposed(model, collections, choose)


def _over_tree(
  models: tuple[adapters.ModelAdapter, adapters.ModelAdapter],
  ours: outputs_lib.Survey,
  theirs: outputs_lib.Survey,
  loss: tuple[Any, float],
  auxiliary: Mapping[str, Any],
) -> Outputs:
  """The models with all outputs as one vector, and one loss over their tree."""
  errors.require(
    callable(loss[0]),
    f"loss={{'*': {loss[0]!r}}} must be a function of the two trees of "
    'outputs, of which it returns one value for each example.',
  )
  shapes = [
    {path: leaf.shape for path, leaf in found.leaves.items()}
    for found in (theirs, ours)
  ]
  errors.require(
    str(jax.tree.structure(theirs.tree)) == str(jax.tree.structure(ours.tree))
    and shapes[0] == shapes[1],
    f'One loss over the outputs needs trees of equal shapes: the teacher '
    f'returns {shapes[0]}, the student {shapes[1]}. Give a loss for each.',
  )
  for path, leaf in ours.leaves.items():
    errors.require(
      whole.is_real(leaf) and leaf.ndim > 0,
      f'The output {path!r} is {leaf.dtype}{list(leaf.shape)}: one loss over '
      'the outputs needs floating-point arrays whose first axis is the batch. '
      'Leave it out by output=..., or give a loss for each.',
    )
  fun = OverTree(
    loss[0],
    jax.tree.structure(ours.tree),
    tuple(leaf.shape[1:] for leaf in jax.tree.leaves(ours.tree)),
  )

  def exposed(
    model: adapters.ModelAdapter, auxiliary: Mapping[str, Any]
  ) -> adapters.ModelAdapter:
    choose = lambda tree, found, size: (
      outputs_lib.joined(tree),
      auxiliary_lib.sums(found, auxiliary, size),
    )
    kept = auxiliary_lib.collections(auxiliary)
    return outputs_lib.exposed(model, kept, choose)

  teacher, student = models
  return Outputs(
    exposed(teacher, {}),
    exposed(student, auxiliary),
    fun,
    loss[1],
    auxiliary=auxiliary,
  )


def _used(
  flat: Mapping[str, Any],
  ours: outputs_lib.Survey,
  theirs: outputs_lib.Survey,
  auxiliary: Mapping[str, Any],
) -> dict[str, Any]:
  """The losses of the outputs that are compared, in the order of outputs."""
  flat = loss_trees.expanded(flat, ours.tree)
  for path in flat:
    errors.require(
      path in ours.leaves,
      f'loss names {path!r}, which is no output of the student.'
      f'{auxiliary_lib.nearest(path, ours.leaves)}',
    )
  reported = {
    n for p in auxiliary for n in outputs_lib.matching(ours.leaves, p)
  }
  missing = [p for p in ours.leaves if p not in flat and p not in reported]
  errors.require(
    not missing,
    f'loss has none for the output {", ".join(map(repr, missing))} of the '
    'student: give one, or None to leave it out.',
  )
  used = {p: flat[p] for p in ours.leaves if flat.get(p) is not None}
  errors.require(bool(used), 'loss leaves all outputs out: give one a loss.')
  for path in used:
    leaf = ours.leaves[path]
    errors.require(
      path in theirs.leaves,
      f'The output {path!r} of the student is none of the teacher.'
      f'{auxiliary_lib.nearest(path, theirs.leaves)}',
    )
    errors.require(
      whole.is_real(leaf) and leaf.ndim > 0,
      f'The output {path!r} is {leaf.dtype}{list(leaf.shape)}: a loss needs a '
      'floating-point array whose first axis is the batch. Give None to leave '
      f'it out; if it is a loss itself, auxiliary={{{path!r}: 0.01}}.',
    )
  return used
