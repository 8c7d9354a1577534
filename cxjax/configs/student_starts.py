"""Students that start as parts of their teacher: the field `student.start`."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import Any
from typing import TypeAlias

from absl import logging
import jax
import ml_collections
import numpy as np

from cxjax import errors
from cxjax import types
from cxjax.api import shrink
from cxjax.configs import ranges
from cxjax.methods import layer_matching
from cxjax.models import slicing
from cxjax.models import transformer
from cxjax.training import teacher as teacher_lib

Config: TypeAlias = ml_collections.ConfigDict

RANDOM, TEACHER = 'random', 'teacher'
# Fields of a student's block that it takes from its teacher, with the values
# that say nothing.
TAKEN = {'tied': False, 'theta': 10_000.0, 'max_length': 0}
STUDENT = 'The student, which is cut out of the teacher'


def is_cut(config: Config) -> bool:
  """True if the students of a config are cut out of their teacher."""
  return bool(config.student.get('start', RANDOM) == TEACHER)


def sizes(block: Config) -> dict[str, Any]:
  """The sizes that a student's block asks for, as arguments of `shrink`."""
  with ranges.named_fields():
    return {
      'depth': block.depth,
      'width': block.width,
      'heads': block.heads,
      'kv_heads': block.get('kv_heads', 0) or None,
      'mlp': block.mlp_width or 4 * block.width,
    }


def outline(experiment: Any) -> tuple[slicing.Model, shrink.Pairs]:
  """The model of students that are cut out of their teacher.

  Of the student's block the sizes count, and how the student is computed;
  everything else is the teacher's.

  Args:
    experiment: a `builders.Experiment`.

  Returns:
    The model, and pairs of the teacher's and its layers.

  Raises:
    UserError: the teacher is no transformer, is smaller, or has another value
      of a field that the student takes from it; or all seeds would be one.
  """
  block, teacher = experiment.config.student, experiment.model('teacher')
  errors.require(
    isinstance(teacher, slicing.Model),
    f'student.start={TEACHER!r} cuts the students out of a transformer, and '
    f'the teacher is a {type(teacher).__name__}. Leave student.start at '
    f'{RANDOM!r}.',
  )
  for name, silent in TAKEN.items():
    _check_taken(name, block.get(name, silent), silent, teacher)
  with errors.about(STUDENT):
    found = sizes(block)
    most = slicing.sizes(teacher).mlp
    errors.require(
      found['mlp'] <= most or block.mlp_width or block.width > teacher.width,
      f'mlp_width=0 is four times the width, {found["mlp"]}, and the teacher '
      f'has {most}. Give student.mlp_width, at most {most}.',
    )
    module, pairs = shrink.outline(teacher, **found)
  _check_different(experiment.config, module, teacher)
  return module.clone(
    dtype=transformer.named_dtype(block.get('dtype', 'float32')),
    remat=block.get('remat', False),
    dropout=block.get('dropout', 0.0),
  ), pairs


def _check_different(config: Config, module: Any, teacher: Any) -> None:
  """Raises UserError if all seeds begin alike and read the same batches."""
  width = lambda model: dataclasses.replace(slicing.sizes(model), depth=0)
  errors.require(
    width(module) != width(teacher)
    or config.num_seeds == 1
    or not config.share_batches,
    f'{STUDENT}, keeps whole blocks: its {config.num_seeds} seeds would begin '
    'as one network and read the same batches. Set num_seeds=1, '
    'share_batches=False, or a smaller student.width or student.mlp_width.',
  )


def _check_taken(name: str, value: Any, silent: Any, teacher: Any) -> None:
  """Raises UserError for a field that the teacher has otherwise."""
  owner = getattr(teacher, 'rotary', None) if name == 'theta' else teacher
  have = getattr(owner, name, silent)
  errors.require(
    value in (silent, have),
    f'{STUDENT}: {name}={value!r}, and the teacher has {have!r}. Set '
    f'student.{name}={have!r}.',
  )


def pairs(experiment: Any) -> shrink.Pairs:
  """Layers that are matched by default; empty for a random start."""
  return outline(experiment)[1] if is_cut(experiment.config) else ()


def matched(
  experiment: Any, teacher: teacher_lib.Teacher | None
) -> Sequence[layer_matching.Pair]:
  """Layers that are matched by default, by depth if the start is random.

  Args:
    experiment: a `builders.Experiment`.
    teacher: its teacher.

  Returns:
    Pairs of names, the teacher's first.

  Raises:
    UserError: one of the two has no layers.
  """
  layers = () if teacher is None else teacher.layers
  return pairs(experiment) or layer_matching.match_layers(
    layers, experiment.model('student').layers
  )


def function(
  experiment: Any, teacher: teacher_lib.Teacher | None, key: jax.Array
) -> Callable[[], tuple[types.Params, ...]] | None:
  """The function that makes the students of a run; None for a random start.

  Args:
    experiment: a `builders.Experiment`.
    teacher: its teacher.
    key: PRNG key, as for `cut`.

  Returns:
    `cut` with its arguments.
  """
  if teacher is None or not is_cut(experiment.config):
    return None
  seeds = range(experiment.config.num_seeds)
  return functools.partial(cut, experiment, teacher.params, key, seeds)


def cut(
  experiment: Any, params: types.Params, key: jax.Array, seeds: Sequence[int]
) -> tuple[types.Params, ...]:
  """Cuts students out of their teacher.

  Each is cut on `student.calibration` batches of its own: those of seed 0 are
  the first ones of an order of the training data that the seed of the config
  decides, those of seed 1 follow. The same config and teacher give the same
  students.

  Args:
    experiment: a `builders.Experiment`.
    params: the parameters of its teacher.
    key: typed PRNG key of what the task draws.
    seeds: numbers of the students, ascending.

  Returns:
    The parameters of each student, in the dtypes of `shrink`.

  Raises:
    UserError: activations of the teacher are not finite.
  """
  block = experiment.config.student
  count, asked = block.calibration, sizes(block)
  logging.info(
    'Cuts the students %s out of the teacher, each on %d batches: %s.',
    ', '.join(map(str, seeds)),
    count,
    ', '.join(f'{name} {size}' for name, size in asked.items() if size),
  )
  teacher = experiment.model('teacher'), params
  inputs, read = _inputs(experiment, key), 0
  found = []
  for seed in seeds:
    skipped = (seed - read) * count
    batches = list(itertools.islice(inputs, skipped, skipped + count))
    read = seed + 1
    with errors.about(STUDENT):
      _, start, _ = shrink.shrink(teacher, batches=batches, **asked)
    found.append(start)
  return tuple(found)


def _inputs(
  experiment: Any, key: jax.Array
) -> Iterator[Mapping[str, np.ndarray]]:
  """Yields inputs of training batches without end."""
  config, task = experiment.config, experiment.task
  size = config.batch_size
  rows: Iterable[Any] = itertools.repeat(size)
  static: tuple[int, ...] = (2,)
  if task.host_spec(size) is not None:
    rows, static = task.host_batches(size, seed=config.seed), ()
  draw = jax.jit(task.batch, static_argnums=static)
  for step, some in enumerate(rows):
    yield jax.device_get(draw(key, np.int32(step), some)['x'])
