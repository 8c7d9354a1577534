"""The curriculum of a config, and the teacher's checkpoints that it reads."""

import math
from typing import Any
from typing import TypeAlias

import ml_collections

from cxjax import errors
from cxjax.configs import defaults
from cxjax.configs import student_starts
from cxjax.methods import losses
from cxjax.methods import registry
from cxjax.methods import stage as stage_lib
from cxjax.training import teacher as teacher_lib

Config: TypeAlias = ml_collections.ConfigDict


def make(
  experiment: Any, teacher: teacher_lib.Teacher | None
) -> stage_lib.Curriculum:
  """The curriculum of `config.method`.

  Args:
    experiment: a `builders.Experiment`.
    teacher: the teacher, for methods that need one.

  Returns:
    The curriculum.

  Raises:
    UserError: settings that do not fit each other or the teacher.
  """
  config, given = experiment.config, experiment.pretrained
  errors.require(
    given is None or config.method != 'progressive',
    'Progressive distillation needs earlier checkpoints of the teacher, and '
    f'teacher.folder={config.teacher.folder} is a model of Hugging Face, which '
    'has none. Choose another method, or the folder of a teacher that a run '
    'trained, as WORKDIR/teacher.',
  )
  loss = losses.logit_loss(
    config.loss, config.temperature, config.hard_labels, config.top_k
  )
  context = registry.Context(
    num_steps=config.num_steps,
    checkpoints=() if teacher is None else teacher.checkpoints,
    output={'loss': loss, 'alpha': config.alpha, 'top_k': config.top_k},
    pairs=lambda: student_starts.matched(experiment, teacher),
  )
  return registry.build(config.method, defaults.method_block(config), context)


def check_checkpoint(experiment: Any, stages: stage_lib.Curriculum) -> None:
  """Checks the `checkpoint` of a method before the teacher is trained.

  Args:
    experiment: a `builders.Experiment`.
    stages: its curriculum.

  Raises:
    UserError: the teacher cannot have that checkpoint, whatever its scores.
  """
  config, given = experiment.config, experiment.pretrained
  wanted = defaults.method_block(config).get('checkpoint')
  if wanted not in {stage.checkpoint for stage in stages} - {None}:
    return
  if given is not None:
    given.teacher().load(wanted)  # Raises: it has none.
  block = config.teacher
  scored = f', at scores of teacher.save_at={tuple(block.save_at)}'
  ended = f', where teacher.stop_at={block.stop_at} ends it'
  errors.require(
    may_be_saved(block, wanted),
    f'{_field(config)}={wanted} is a step at which the teacher is never saved. '
    f'It is saved every teacher.save_every={block.save_every} steps'
    f'{scored if block.save_at else ""}'
    f'{ended if block.stop_at is not None else ""} and at '
    f'teacher.num_steps={block.num_steps}. Choose such a step, or -1 for the '
    'final teacher.',
  )


def may_be_saved(block: Config, step: int) -> bool:
  """True if a teacher may have a checkpoint of its schedule at a step.

  Args:
    block: the block `teacher` of a config.
    step: step of the checkpoint.

  Returns:
    False if it has none, whatever its scores are.
  """
  last, every = block.num_steps, block.eval_every
  if step > last:
    return False
  if step == last or step % block.save_every == 0:
    return True
  if block.save_at and step % every == 0:  # It may reach a score there.
    return True
  if block.stop_at is None:
    return False
  grown = 1 + block.overrun  # Of the step at which it reaches the score.
  near = int(step / grown) // every * every
  ends = (math.ceil(at * grown) for at in (near - every, near, near + every))
  return step in ends


def _field(config: Config) -> str:
  """Name of the field with the checkpoint of `config.method`."""
  own = 'checkpoint' in config[config.method]
  like = registry.METHODS[config.method].like
  return f'{config.method if own else like}.checkpoint'
