"""Plans of several methods for one teacher and one student, by name."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any
from typing import TypeAlias

import jax
import ml_collections
import numpy as np

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.api import feature_axes
from cxjax.api import matching
from cxjax.api import placement
from cxjax.api import plan as plan_lib
from cxjax.api import prepared
from cxjax.api import run_identity
from cxjax.api import same_function
from cxjax.api import several as several_lib
from cxjax.api import stages as stages_lib
from cxjax.methods import layer_matching
from cxjax.methods import losses
from cxjax.methods import registry
from cxjax.methods import stage as stage_lib
from cxjax.models import adapters

# Names of registered methods; or, by names of the user's choice, plans and
# options of registered methods, as {'method': 'extracted', 'share': 0.1}.
Methods: TypeAlias = str | Sequence[str] | Mapping[str, Any]
EXTRACTED = 'extracted'  # The method of `plan`.
LOOKED_AT = 2  # Batches of a loader that are read again.
# Losses between outputs that are no logits of classes.
FEATURES = ('mse', *losses.HIDDEN_LOSSES)


@dataclasses.dataclass(frozen=True)
class Output:
  """The loss between the outputs, as of `plan`.

  Attributes:
    loss: by name, or a function.
    temperature: temperature of the divergences.
    alpha: weight of the labels beside the teacher.
    dtype: to compute in.
    vocab: number of the first classes that are compared, or None for all.
  """

  loss: str | types.Loss = 'kl'
  temperature: float = 1.0
  alpha: float = 0.0
  dtype: Any = None
  vocab: int | None = None


def entries(methods: Methods) -> dict[str, Any]:
  """The methods by their names; raises UserError for anything else."""
  if isinstance(methods, str):
    methods = (methods,)
  errors.require(
    isinstance(methods, Mapping | Sequence),
    f'methods={methods!r} must be names, as {tuple(registry.METHODS)[:2]}, or '
    'a dict of plans by name.',
  )
  errors.require(len(methods) > 0, 'methods is empty: give one at least.')
  names = list(methods)
  for name in names:
    errors.require(
      isinstance(name, str)
      and name not in ('', '.', '..')
      and not set(name) & set('/\\\0'),
      f'The name {name!r} of a method must be a string without slashes.',
    )
    errors.require(
      names.count(name) == 1,
      f'methods has {name!r} {names.count(name)} times: give each name once, '
      'or other names in a dict.',
    )
  if isinstance(methods, Mapping):
    return dict(methods)
  return {name: {'method': name} for name in names}


class Planner:
  """Makes the plan of each method for the same teacher, student and batches."""

  def __init__(
    self,
    teacher: adapters.ModelAdapter,
    student: adapters.ModelAdapter,
    example: Any,
    layers: matching.Layers,
    output: Output,
    feature_axis: feature_axes.FeatureAxis = None,
    given: plan_lib.Plan | None = None,
  ) -> None:
    """Checks the models and the example of a batch.

    Args:
      teacher: the teacher.
      student: one student.
      example: example of a batch, as for `plan`.
      layers: pairs of activations, as of `plan`.
      output: the loss between the outputs.
      feature_axis: axis of the features of hidden activations, as of `plan`.
      given: the plan of `plan_of_all`, which has the loss, or None.
    """
    self._models, self._example = (teacher, student), example
    self._given = given is not None
    self._layers, self._output = layers, output
    self._feature_axis = feature_axis
    # The plan of the output alone says what is wrong with the models, and has
    # the loss as a function.
    self.one_shot = given or plan_lib.plan(
      teacher,
      student,
      example,
      num_steps=1,
      layers=(),
      loss=output.loss,
      temperature=output.temperature,
      dtype=output.dtype,
      vocab=output.vocab,
      feature_axis=feature_axis,
    )

  @property
  def has_labels(self) -> bool:
    """True if the batches have labels."""
    return 'y' in self.one_shot.batch

  @property
  def has_classes(self) -> bool:
    """True if the batches have labels, which the outputs are logits of."""
    return self.has_labels and self._output.loss not in FEATURES

  @property
  def has_checkpoints(self) -> bool:
    """True if the teacher has earlier checkpoints."""
    return bool(self._models[0].checkpoints)

  @functools.cached_property
  def _compared(self) -> tuple[adapters.ModelAdapter, adapters.ModelAdapter]:
    """The two models with all layers that can be compared."""
    dtype = self._output.dtype
    if dtype is not None:
      dtype = arguments.dtype('dtype', dtype)
    x, (teacher, student) = self.one_shot.batch['x'], self._models
    teacher = placement.received(teacher, 'teacher')
    student = placement.received(student, 'student')
    sides = feature_axes.sides(self._feature_axis)
    return (
      prepared.with_layers(teacher, x, dtype, sides[0]),
      prepared.with_layers(student, x, dtype, sides[1]),
    )

  @functools.cached_property
  def pairs(self) -> tuple[layer_matching.Pair, ...]:
    """The pairs of activations that are matched."""
    x = self.one_shot.batch['x']
    found, _ = matching.pairs(self._layers, *self._compared, x, plan_lib.STAGES)
    return found

  def plan(self, name: str, entry: Any, num_steps: int) -> plan_lib.Plan:
    """The plan of one method.

    Args:
      name: name of the method, for messages.
      entry: a plan, or 'method' and options of it.
      num_steps: number of steps of a method that is given by name.

    Returns:
      The plan, of `num_steps` or of as many steps as it was given with.

    Raises:
      UserError: an unknown method or option, or one that does not fit.
    """
    if isinstance(entry, plan_lib.Plan):
      self._check_same(name, entry)
      self._check_labels(name, entry.stages)
      return entry
    errors.require(
      isinstance(entry, Mapping) and 'method' in entry,
      f'methods[{name!r}]={entry!r} must be a plan of cxjax.plan, or options '
      "with 'method', as {'method': 'extracted', 'share': 0.1}.",
    )
    with errors.about(f'Method {name!r}'):
      stages = self._stages(dict(entry), num_steps)
    self._check_labels(name, stages)
    x = self.one_shot.batch['x']
    stages = plan_lib.pooled(stages, *self._compared, x, None)
    with errors.about(f'Method {name!r}'):
      return plan_lib.plan(
        *self._models,
        self._example,
        stages=stages,
        dtype=self._output.dtype,
        vocab=self._output.vocab,
        feature_axis=self._feature_axis,
      )

  def _stages(
    self, entry: dict[str, Any], num_steps: int
  ) -> stage_lib.Curriculum:
    """The curriculum of a registered method."""
    name = entry.pop('method')
    options = registry.options(name)
    for option in entry:
      errors.lookup(f'option of {name}', option, options)
    method = registry.METHODS[name]
    if name == EXTRACTED or (
      method.like == EXTRACTED and 'share' not in method.options
    ):
      options['share'] = plan_lib.SHARE  # As of `plan`.
    steps = tuple(self._models[0].checkpoints)
    if 'rule' in options:
      _check_rule(entry)
      options.update(rule='list', checkpoints=steps)
    term, *others = self.one_shot.stages[0].terms
    errors.require(
      not others,
      'a method by name compares one output, and the loss is of several. Give '
      "plans as methods, as {'one_shot': cxjax.plan(..., loss=..., layers=()), "
      "'extracted': cxjax.plan(..., loss=...)}.",
    )
    output = {'loss': term.loss, 'alpha': self._output.alpha}
    context = registry.Context(
      num_steps,
      # The last is the final teacher, whose step nothing reads.
      checkpoints=tuple((step, math.nan) for step in (*steps, stage_lib.MOST)),
      pairs=lambda: self.pairs,
      output=output,
    )
    block = ml_collections.ConfigDict({**options, **entry})
    return registry.build(name, block, context)

  def _check_labels(self, name: str, stages: stage_lib.Curriculum) -> None:
    """Raises UserError for a method whose labels are not there, or no use."""
    if not any(stage.needs_labels for stage in stages):
      return
    errors.require(
      self.has_labels,
      f'Method {name!r} learns from labels, and the batches have none. Give '
      '(x, labels) as batches, or leave the method out.',
    )
    errors.require(
      self._output.loss not in FEATURES or not stages_lib.reads_classes(stages),
      f'Method {name!r} reads the outputs as logits of classes, and with '
      f'loss={self._output.loss!r} they are none. Leave it out, or give a loss '
      "of logits, as 'kl'.",
    )

  def _check_same(self, name: str, plan: plan_lib.Plan) -> None:
    """Raises UserError for a plan of other models or batches."""
    own = self.one_shot
    teacher, student = own.teacher, own.student
    if self._given:
      teacher, student = self._models
    message = (
      f'The plan {name!r} has another {{}} than the comparison: all methods '
      'share the teacher, the form of the student and the batches. Plan with '
      'the same ones.'
    )
    pairs = (
      ('teacher', teacher.params, plan.teacher.params, True),
      ('student', student.one, plan.student.one, False),
      ('batch', own.batch, plan.batch, False),
    )
    for what, ours, theirs, values in pairs:
      errors.require(same(ours, theirs, values), message.format(what))
    for what in ('teacher', 'student'):
      ours, theirs = getattr(own, what), getattr(plan, what)
      errors.require(
        not same_function.is_other(
          ours.apply, theirs.apply, ours.one, own.batch['x']
        ),
        message.format(what),
      )


def plan_of_all(methods: Any) -> plan_lib.Plan | None:
  """The first plan of methods that are plans of several outputs, all of them.

  The comparison then needs no loss of its own.

  Args:
    methods: the argument of `compare`.
  """
  plans = list(methods.values()) if isinstance(methods, Mapping) else []
  if not plans or not all(isinstance(one, plan_lib.Plan) for one in plans):
    return None
  terms = [term for stage in plans[0].stages for term in stage.terms]
  several = any(term.target.startswith(stage_lib.OUTPUT) for term in terms)
  tree = any(isinstance(term.loss, several_lib.OverTree) for term in terms)
  return plans[0] if several or tree else None


def _check_rule(entry: Mapping[str, Any]) -> None:
  """Raises UserError for a choice of checkpoints by what is not known here."""
  for option in ('rule', 'scores', 'count'):
    errors.require(
      option not in entry,
      f'{option} is not known here, where the teacher has the checkpoints of '
      'cxjax.with_checkpoints alone. Give checkpoints, a list of their steps, '
      'or none for all.',
    )


def same(ours: Any, theirs: Any, values: bool = True) -> bool:
  """Compares the form of two trees, and if asked their values."""
  form = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
  shapes = jax.eval_shape(lambda *trees: trees, ours, theirs)
  if form(shapes[0]) != form(shapes[1]):
    return False
  leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
  return not values or all(
    a is b or bool(np.array_equal(a, b)) for a, b in leaves
  )


def example_of(batches: Any) -> Any:
  """The first batch, as the example of plans.

  Raises:
    UserError: batches that can be read once only, that differ each time, or
      none.
  """
  errors.require(
    not hasattr(batches, '__next__'),
    'batches is an iterator, which can be read once, and every method reads '
    'the same batches. Give a list, or a loader that begins anew each time.',
  )
  errors.require(
    hasattr(batches, '__iter__') and getattr(batches, 'shape', None) != (),
    f'batches is a {type(batches).__name__}: give a list of batches, or a '
    'loader.',
  )
  _require_repeated(batches)
  with errors.calling('batches', 'Mend the loader.'):
    found = next(iter(batches), None)
  errors.require(found is not None, 'batches is empty.')
  return found


def _require_repeated(batches: Any) -> None:
  """Checks that a loader begins with the same batches whenever it is iterated.

  Args:
    batches: training batches.

  Raises:
    UserError: they begin with others, as those of a loader that shuffles anew.
  """
  if isinstance(batches, list | tuple):
    return
  with errors.calling('batches', 'Mend the loader.'):
    first, again = (
      list(map(run_identity.batch_digest, itertools.islice(batches, LOOKED_AT)))
      for _ in range(2)
    )
  errors.require(
    first == again,
    f'batches is a {type(batches).__name__} that begins with other batches '
    'each time it is iterated, and every method and learning rate is to read '
    'the same ones. Give a list, as list(loader), or a loader whose __iter__ '
    'seeds its shuffling (and its augmentation) anew.',
  )
