"""The curriculum of a config, and the teacher's checkpoints that it reads."""

from collections.abc import Iterator
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


def check_checkpoints(experiment: Any, stages: stage_lib.Curriculum) -> None:
  """Checks the checkpoints that a config names before the teacher is trained.

  Args:
    experiment: a `builders.Experiment`.
    stages: its curriculum.

  Raises:
    UserError: the teacher cannot have such a checkpoint, whatever its scores.
  """
  config, given = experiment.config, experiment.pretrained
  block = config.teacher
  if config.method == 'progressive':
    _check_intermediate(config.progressive, block)
    return
  scored = f', at scores of teacher.save_at={tuple(block.save_at)}'
  ended = f', where teacher.stop_at={block.stop_at} ends it'
  for field, wanted, final in _named(config, stages):
    if given is not None:
      given.teacher().load(wanted)  # Raises: it has none.
    errors.require(
      may_be_saved(block, wanted),
      f'{field}={wanted} is a step at which the teacher is never saved. '
      f'It is saved every teacher.save_every={block.save_every} steps'
      f'{scored if block.save_at else ""}'
      f'{ended if block.stop_at is not None else ""} and at '
      f'teacher.num_steps={block.num_steps}. Choose such a step, or {final} '
      'for the final teacher.',
    )


def _named(
  config: Config, stages: stage_lib.Curriculum
) -> Iterator[tuple[str, int, str]]:
  """Yields fields with a checkpoint, its step, and how the final one is named.

  A method of one's own may choose a checkpoint that no field names.
  """
  if config.method == 'custom':
    for i, stage in enumerate(stages):
      if stage.checkpoint is not None:
        yield f'custom.stages[{i}].checkpoint', stage.checkpoint, 'None'
    return
  wanted = defaults.method_block(config).get('checkpoint')
  if wanted in {stage.checkpoint for stage in stages} - {None}:
    yield _field(config), wanted, '-1'


def _check_intermediate(block: Config, teacher: Config) -> None:
  """Raises UserError for checkpoints that `progressive` cannot have.

  Args:
    block: the block `progressive` of a config.
    teacher: its block `teacher`.
  """
  last, every = teacher.num_steps, teacher.save_every
  scored = f' and at scores of teacher.save_at={tuple(teacher.save_at)}'
  saved = (
    f'every teacher.save_every={every} steps{scored if teacher.save_at else ""}'
  )
  for step in block.checkpoints if block.rule == 'list' else ():
    errors.require(
      step != last,
      f'progressive.checkpoints: {step} is that of the final teacher, which '
      'comes after them in any case. Leave it out.',
    )
    errors.require(
      may_be_intermediate(teacher, step),
      f'progressive.checkpoints: {step} is a step at which the teacher is '
      f'never saved. It is saved {saved}, before teacher.num_steps={last}. '
      'Choose such steps.',
    )
  scores = tuple(block.scores)
  count, chosen = {
    'even': (block.count, f'count={block.count}'),
    'transition': (len(scores), f'scores={scores}'),
  }.get(block.rule, (0, ''))
  most = math.ceil(last / every) + len(teacher.save_at)
  errors.require(
    count <= most or not block.steps,
    f'progressive.steps={tuple(block.steps)} are for the {count} checkpoints '
    f'of progressive.{chosen}, and the teacher has at most {most} before its '
    f'last one: it is saved {saved}. Lower teacher.save_every, or choose '
    'fewer.',
  )


def may_be_intermediate(block: Config, step: int) -> bool:
  """True if a teacher may have a checkpoint at a step, and go on from there.

  Args:
    block: the block `teacher` of a config.
    step: step of the checkpoint.

  Returns:
    False if it has none, or none but its last, whatever its scores are.
  """
  # It may reach a score there.
  scored = bool(block.save_at) and step % block.eval_every == 0
  return step < block.num_steps and (step % block.save_every == 0 or scored)


def may_be_saved(block: Config, step: int) -> bool:
  """True if a teacher may have a checkpoint of its schedule at a step.

  Args:
    block: the block `teacher` of a config.
    step: step of the checkpoint.

  Returns:
    False if it has none, whatever its scores are.
  """
  last, every = block.num_steps, block.eval_every
  if step == last or may_be_intermediate(block, step):
    return True
  if step > last or block.stop_at is None:
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
