"""Small runs that are specified by hand, without a config. Not a test.

Steps of two perceptrons on four parities of six bits take microseconds. What is
compiled is kept from run to run: `fit` is a run of another process for all that
it reads and writes.
"""

import contextlib
import dataclasses
import functools
import pathlib
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import optax

from cxjax.methods import stage as stage_lib
from cxjax.models import mlp
from cxjax.parallel import mesh as mesh_lib
from cxjax.tasks import parity
from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import metrics
from cxjax.training import optimizers
from cxjax.training import run_spec
from cxjax.training import teacher as teacher_lib
from cxjax.training import trainer

Stage, Term = stage_lib.Stage, stage_lib.Term
BITS, SIZE, SEEDS = 6, 4, 2
TEACHER, STUDENT = mlp.MLP((6,), 2), mlp.MLP((4,), 2)
TASK = parity.Parity(BITS, ((0, 1),))
MESH = mesh_lib.make({'data': 1}, SIZE)
LABELS = Term(target='labels')
HIDDEN = Term('hidden0', 'hidden0', projection='gaussian', regressor=True)
FADE = optax.linear_schedule(1.0, 0.0, 1.0)
# Three stages, two of which end between two records of every 4 steps.
STAGES = (
  Stage('early', 6, HIDDEN, checkpoint=10),
  Stage('late', 5, HIDDEN),
  Stage('joint', 9, (Term(weight=FADE), LABELS)),
)


def draw(key, t, rows=None):
  del rows
  return TASK.batch(key, t, SIZE)


@functools.cache
def teacher_params(seed=0):
  params = jax.jit(TEACHER.init)(jax.random.key(seed), jnp.zeros((1, BITS)))
  return mesh_lib.replicate(params, MESH)


def teacher(**fields):
  """A teacher with a checkpoint of step 10."""
  return teacher_lib.Teacher(
    TEACHER.apply,
    teacher_params(),
    TEACHER.layers,
    load={10: teacher_params(1)}.__getitem__,
    **fields,
  )


def keys(seeds=SEEDS, streams=None):
  made = [
    jax.random.split(jax.random.key(i), n)
    for i, n in enumerate((seeds, streams or seeds, seeds))
  ]
  return run_spec.Keys(*mesh_lib.replicate(made, MESH))


def adam(length=1, offset=0, **fields):
  config = optimizers.default()
  config.update({'learning_rate': 1e-2, 'schedule': 'cosine', **fields})
  return optimizers.make(config, length, offset)


def loop(**fields):
  every = {'log_every': 4, 'eval_every': 8, 'save_every': 8}
  return run_spec.Loop(**{**every, **fields})


def spec(stages=STAGES, **fields):
  """The specification of a run of 20 steps, by default."""
  usual = dict(
    student=STUDENT,
    stages=tuple(stages),
    draw=draw,
    held_out=mesh_lib.replicate(TASK.batch(jax.random.key(9), 0, 16), MESH),
    keys=keys(),
    batch_size=SIZE,
    optimizer=adam,
    layout=run_spec.Layout(MESH),
    loop=loop(),
    metrics=metrics.resolve(('accuracy', 'loss')),
    primary='accuracy',
    teacher_metrics=metrics.resolve(metrics.TEACHER_METRICS),
    teacher=teacher(),
  )
  return run_spec.RunSpec(**{**usual, **fields})


# By the id of a specification, which is kept so that no other has the id.
_compiled: dict = {}


def programs(of):
  """The programs of a specification and its plan with costs, compiled once."""
  if id(of) not in _compiled:
    steps = compiled_steps.CompiledSteps(of)
    _compiled[id(of)] = of, steps, run_spec.RunSpec.plan_with_costs(of)
  return _compiled[id(of)]


def changed(of, **fields):
  """A specification that compiles alike: the loop decides otherwise."""
  loop = dataclasses.replace(of.loop, **fields.pop('loop', {}))
  assert loop.log_every == of.loop.log_every  # It decides the look-ahead.
  new = dataclasses.replace(of, loop=loop, **fields)
  _compiled[id(new)] = new, *programs(of)[1:]
  return new


@contextlib.contextmanager
def shared_programs():
  with (
    mock.patch.object(
      trainer.compiled_steps, 'CompiledSteps', lambda of: programs(of)[1]
    ),
    mock.patch.object(
      run_spec.RunSpec, 'plan_with_costs', lambda of: programs(of)[2]
    ),
  ):
    yield


def fit(of, folder, on_record=None):
  """Trains in a folder, as a new process would."""
  programs(of)  # Before the class is replaced.
  with shared_programs():
    return trainer.fit(of, pathlib.Path(folder), 'run', on_record)


def last(of, folder):
  """All arrays of the newest checkpoint of a run, and its step."""
  step = checkpoints.latest(folder)
  index = sum(step > end for end in of.ends[:-1])
  shapes = of.state_shapes(programs(of)[2][index])
  items = {
    name: getattr(shapes, name)
    for name in ('params', 'regressors', 'opt_state')
  }
  return step, checkpoints.restore(folder, step, items)


@functools.cache
def main():
  """Three stages of one term or two, of 20 steps together."""
  return spec()


@functools.cache
def labels():
  """One stage without a teacher, of 40 steps."""
  return spec((Stage('labels', 40, LABELS),), teacher=None, teacher_metrics={})


class TestCase(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'run'

  def fit(self, spec, folder=None, on_record=None):
    return fit(spec, folder or self.folder(), on_record)

  def assert_same_run(self, spec, one, two):
    """Records and everything in the last checkpoint, bit for bit."""
    texts = [(f / 'metrics.jsonl').read_text() for f in (one, two)]
    self.assertEqual(*texts)
    chex.assert_trees_all_equal(last(spec, one), last(spec, two))
