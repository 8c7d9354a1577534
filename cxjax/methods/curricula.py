"""Methods by name: from a config and a teacher to a curriculum."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import TypeAlias

import ml_collections

from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.methods import losses
from cxjax.methods import train_step

Config: TypeAlias = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained model and, if they were kept, its earlier checkpoints.

  Attributes:
    apply: `(params, x) -> (logits, activations)`.
    params: of the final teacher.
    layers: names of its hidden activations, lowest first.
    checkpoints: `(step, held-out accuracy)` of each checkpoint, oldest first.
    load: the parameters at the step of a checkpoint.
  """

  apply: train_step.Apply
  params: train_step.Params
  layers: tuple[str, ...]
  checkpoints: tuple[tuple[int, float], ...] = ()
  load: Callable[[int], train_step.Params] | None = None

  def at(self, checkpoint: int | None) -> train_step.Params:
    """The parameters at the step of a checkpoint; None is the final teacher."""
    if checkpoint is None:
      return self.params
    assert self.load is not None
    return self.load(checkpoint)


def _supervised(config: Config, teacher, layers) -> stage_lib.Curriculum:
  del teacher, layers
  return stage_lib.supervised(config.num_steps)


def _one_shot(config: Config, teacher, layers) -> stage_lib.Curriculum:
  del teacher, layers
  return stage_lib.one_shot(config.num_steps, **_output(config))


def _progressive(config: Config, teacher, layers) -> stage_lib.Curriculum:
  del layers
  block = config.progressive
  checkpoints = choose_checkpoints(
    teacher.checkpoints,
    block.rule,
    accuracies=block.accuracies,
    count=block.count,
    listed=block.checkpoints,
  )
  parts = len(checkpoints)
  steps = stage_lib.split_steps(
    config.num_steps, parts, block.share, block.steps
  )
  return stage_lib.progressive((*checkpoints, None), steps, **_output(config))


def _extracted(config: Config, teacher, layers) -> stage_lib.Curriculum:
  block = config.extracted
  pairs = block.layers or stage_lib.match_layers(teacher.layers, layers)
  steps = stage_lib.split_steps(
    config.num_steps, len(pairs), block.share, block.steps
  )
  return stage_lib.extracted(
    pairs,
    steps,
    **_output(config),
    hidden_loss=errors.lookup(
      'extracted.loss', block.loss, losses.HIDDEN_LOSSES
    ),
    projection=block.law,
    regressor=block.readout,
    width=block.width or None,
    shared_projection=block.shared,
    norm=block.norm,
    centered=block.centered,
    scale=block.scale,
    positions=block.positions,
    freeze=block.freeze,
    checkpoint=None if block.checkpoint < 0 else block.checkpoint,
  )


METHODS = {
  'supervised': _supervised,
  'one_shot': _one_shot,
  'progressive': _progressive,
  'extracted': _extracted,
}


def from_config(
  config: Config, teacher: Teacher | None, layers: Sequence[str]
) -> stage_lib.Curriculum:
  """The stages of `config.method`.

  Args:
    config: of the experiment.
    teacher: the teacher; None for `supervised`.
    layers: names of the student's hidden activations, lowest first.

  Returns:
    The curriculum, `config.num_steps` long.

  Raises:
    UserError: an unknown method, or settings that do not fit the teacher.
  """
  build = errors.lookup('method', config.method, METHODS)
  return build(config, teacher, layers)


def _output(config: Config) -> dict[str, Any]:
  """Fields of the stages of logits."""
  loss = losses.logit_loss(
    config.loss, config.temperature, config.hard_labels, config.top_k
  )
  return {'loss': loss, 'alpha': config.alpha, 'top_k': config.top_k}


def choose_checkpoints(
  available: Sequence[tuple[int, float]],
  rule: str,
  *,
  accuracies: Sequence[float] = (),
  count: int = 0,
  listed: Sequence[int] = (),
) -> tuple[int, ...]:
  """The intermediate checkpoints that progressive distillation learns from.

  Args:
    available: `(step, accuracy)` of the teacher's checkpoints, oldest first;
      the last is the final teacher and is not chosen.
    rule: 'transition', the checkpoint nearest to each of `accuracies`; 'even',
      `count` evenly spaced in steps; 'list', those `listed`.
    accuracies: held-out accuracies inside the transition.
    count: how many.
    listed: steps.

  Returns:
    Steps, oldest first; the final teacher comes after them.

  Raises:
    UserError: an unknown rule, or a checkpoint that the teacher does not have.
  """
  accuracy = dict(available[:-1])
  if not accuracy:
    raise errors.UserError(
      'Progressive distillation needs earlier checkpoints of the teacher, and '
      'there are none. Set teacher.save_every, or choose another method.'
    )
  last = available[-1][0]

  def nearest(values, wanted):
    return min(values, key=lambda step: abs(values[step] - wanted))

  def by_transition():
    return {nearest(accuracy, wanted) for wanted in accuracies}

  def by_count():
    own = {step: step for step in accuracy}
    even = (last * i / (count + 1) for i in range(1, count + 1))
    return {nearest(own, wanted) for wanted in even}

  def by_list():
    have = ', '.join(map(str, accuracy))
    for wanted in listed:
      errors.require(
        wanted in accuracy,
        f'The teacher has no intermediate checkpoint {wanted}. It has: {have}.',
      )
    return set(listed)

  rules = {'transition': by_transition, 'even': by_count, 'list': by_list}
  chosen = errors.lookup('progressive.rule', rule, rules)()
  errors.require(
    bool(chosen),
    f'progressive.rule={rule!r} chooses no checkpoint: fill its field, '
    'progressive.accuracies, .count or .checkpoints.',
  )
  return tuple(sorted(chosen))
