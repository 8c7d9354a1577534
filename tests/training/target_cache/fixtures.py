"""Small runs with a teacher of random parameters, live and stored."""

import dataclasses
import functools
import pathlib
import tempfile

import jax

from cxjax.configs import builders
from cxjax.training import target_cache
from cxjax.training import teacher as teacher_lib
import documents
from experiments import parity_mlp
from experiments import text_bert

# Stages end inside a chunk of 10 steps.
STEPS = (25, 35)
PERIOD = 60
CONFIG = {'seed': 0, 'data': {'k': 2}}


def random_teacher(opened):
  spec = builders.teacher_spec(opened)
  x = jax.device_get(spec.held_out['x'])
  params = jax.device_get(jax.jit(spec.student.init)(jax.random.key(1), x))
  return teacher_lib.Teacher(
    spec.student.apply,
    params,
    spec.student.layers,
    checkpoints=((20, 0.5), (40, 0.75), (60, 1.0)),
    load=lambda at: jax.tree.map(lambda leaf: leaf * at / 60, params),
  )


def mlp_config(method='extracted'):
  config = parity_mlp.tiny(method)
  config.extracted.steps = config.progressive.steps = STEPS
  config.share_batches = method != 'progressive'
  return config


def text_config(folder):
  (folder / 'text.txt').write_text('\n\n'.join(documents.DOCUMENTS))
  config = text_bert.tiny('extracted')
  config.data.source = f'files:{folder}/text.txt'
  config.top_k = 4
  config.extracted.steps, config.num_steps = (5, 15), 20
  return config


def live_spec(config=None, period=PERIOD, folder=None, **fields):
  """A run whose teacher is there; `fields` replace its own."""
  folder = folder or pathlib.Path(tempfile.gettempdir())
  opened = builders.open_experiment(config or mlp_config(), folder)
  spec = builders.student_spec(opened, random_teacher(opened))
  host = dataclasses.replace(spec.host, period=period)
  return dataclasses.replace(spec, host=host, **fields)


def with_teacher(spec, **fields):
  teacher = dataclasses.replace(spec.teacher, **fields)
  return dataclasses.replace(spec, teacher=teacher)


def stored_spec(spec, cache):
  """The same run from a cache, without the teacher's parameters."""
  shapes = jax.eval_shape(lambda params: params, spec.teacher.params)
  spec = with_teacher(spec, params=shapes, available=False)
  loader = functools.partial(target_cache.CachedTargetLoader, cache, spec)
  host = dataclasses.replace(spec.host, loader=loader)
  return dataclasses.replace(spec, host=host)
