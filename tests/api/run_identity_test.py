"""What makes a run another run: a workdir of it is refused."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import projections
from small_networks import X
from small_networks import Y
from small_networks import parameters
from small_networks import two_layers

SCALE = 1.0


def closure(scale):
  return lambda got, want: scale * jnp.sum((got - want) ** 2, -1)


def default_argument(scale):
  def loss(got, want, scale=scale):
    return scale * jnp.sum((got - want) ** 2, -1)

  return loss


def partial(scale):
  return functools.partial(lambda scale, a, b: closure(scale)(a, b), scale)


def of_global(got, want):
  return SCALE * jnp.sum((got - want) ** 2, -1)


class Attribute:
  """A loss with an attribute."""

  def __init__(self, scale):
    self.scale = scale

  def __call__(self, got, want):
    return closure(self.scale)(got, want)


def new_body(scale):
  """A function of the same name with another body."""
  scope = {'jnp': jnp}
  exec(f'def loss(a, b):\n  return {scale} * jnp.sum((a - b) ** 2, -1)', scope)
  return scope['loss']


def model(scale, seed):
  """A network whose function closes over a number."""
  apply = lambda params, x: two_layers(params, scale * x)
  return cxjax.from_fn(apply, parameters(seed))


def rate(value):
  return optax.sgd(optax.cosine_decay_schedule(value, 20))


# Other fields of the hidden term.
HIDDEN = dict(target='high', projection='gaussian')


def run(
  workdir,
  *,
  loss=None,
  weight=1.0,
  hidden=None,
  steps=4,
  teacher=None,
  student=None,
  y=Y,
  **kwargs,
):
  """A run of a stage of two terms; each argument may be another one."""
  fields = {'loss': loss or closure(1.0), 'weight': weight, **HIDDEN}
  matched = cxjax.Term('low', **{**fields, **(hidden or {})})
  stage = cxjax.Stage('joint', steps, terms=(cxjax.Term(), matched))
  plan = cxjax.plan(
    teacher or model(1.0, 0), student or model(1.0, 1), (X, y), stages=stage
  )
  kwargs = {'optimizer': optax.sgd(1e-2), 'held_out': (X, Y), **kwargs}
  kwargs = {'metrics': metrics_of(1.0), 'log_every': 2, **kwargs}
  return cxjax.distill(plan, [(X, Y)], workdir=workdir, **kwargs)


def metrics_of(scale, finish=1.0, higher=True):
  metric = cxjax.Metric(
    lambda got, y: scale * jnp.take_along_axis(got, y[:, None], -1)[:, 0],
    lambda total, count: finish * total / count,
    higher_is_better=higher,
  )
  return {'right': metric}


# What changes, and the field that the message names.
CHANGES = {
  'rate': ({'optimizer': optax.sgd(1e-1)}, 'optimizer'),
  'momentum': ({'optimizer': optax.sgd(1e-2, momentum=0.9)}, 'optimizer'),
  'schedule': ({'optimizer': rate(1e-2)}, 'optimizer'),
  'kind of optimizer': ({'optimizer': optax.adam(1e-2)}, 'optimizer'),
  'default optimizer': ({'optimizer': None}, 'learning_rate'),
  'loss': ({'loss': closure(2.0)}, 'stages.0.terms.1.loss'),
  'another loss': ({'loss': 'mse'}, 'stages.0.terms.1.loss'),
  'weight': ({'weight': 0.5}, 'stages.0.terms.1.weight'),
  'fading': ({'weight': lambda t: 1.0 - t}, 'stages.0.terms.1.weight'),
  'projection': ({'hidden': {'projection': 'sparse'}}, 'terms.1.projection'),
  'norm': ({'hidden': {'norm': 'layer'}}, 'terms.1.norm'),
  'scale': ({'hidden': {'scale': 2.0}}, 'terms.1.scale'),
  'regressor': ({'hidden': {'regressor': True}}, 'terms.1.regressor'),
  'layer': ({'hidden': {'target': 'low'}}, 'terms.1.target'),
  'steps': ({'steps': 6}, r'stages.0.steps \(4 there, 6 here\)'),
  'function of the teacher': ({'teacher': model(2.0, 0)}, 'teacher.apply'),
  'teacher': ({'teacher': model(1.0, 5)}, 'teacher.params'),
  'function of the student': ({'student': model(2.0, 1)}, 'student.apply'),
  'student': ({'student': model(1.0, 5)}, 'student.params'),
  'no labels': ({'y': None, 'held_out': X, 'metrics': None}, 'batch'),
  'held out': ({'held_out': (X + 1, Y)}, 'held_out'),
  'held-out labels': ({'held_out': (X, 0 * Y)}, 'held_out'),
  'metric': ({'metrics': metrics_of(2.0)}, 'metrics.right.statistics'),
  'how it ends': ({'metrics': metrics_of(1.0, 2.0)}, 'metrics.right.finish'),
  'lower is better': (
    {'metrics': metrics_of(1.0, 1.0, False)},
    'metrics.right.higher_is_better',
  ),
  'name of a metric': ({'metrics': 'accuracy'}, 'metrics.accuracy'),
  'trainable': ({'trainable': 'low|out'}, 'trainable'),
  'keep_best': ({'keep_best': 'right'}, 'keep_best'),
  'eval_every': ({'keep_best': 'right', 'eval_every': 2}, 'eval_every'),
  'seed': ({'seed': 1}, 'seed'),
  'log_every': ({'log_every': 1}, 'log_every'),
  'microbatches': ({'microbatches': 2}, 'microbatches'),
  'devices': ({'mesh': {'data': 1}}, 'mesh.data'),
}


@pytest.mark.slow
class ChangeTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls('create_tempdir').create_tempdir().full_path
    cls.result = run(cls.workdir)

  def refused(self, field, workdir=None, **change):
    with self.assertRaisesRegex(
      errors.UserError, f'another configuration. What differs: .*{field}'
    ) as caught:
      run(workdir or self.workdir, **change)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(*CHANGES)
  def test_is_refused_by_its_field(self, name):
    change, field = CHANGES[name]
    self.refused(field, **change)

  @parameterized.parameters(default_argument, partial, Attribute, new_body)
  def test_a_loss_of_any_form(self, make):
    """It counts by what it computes: the same function passes, whatever form.

    A finished run comes back at once.
    """
    run(self.workdir, loss=make(1.0))
    self.refused('stages.0.terms.1.loss', loss=make(4.0))

  def test_a_global(self):
    run(self.workdir, loss=of_global)
    with mock.patch.dict(globals(), SCALE=3.0):
      self.refused('stages.0.terms.1.loss', loss=of_global)

  def test_patience_waits_for_the_first_of_the_metrics(self):
    one, two = (metrics_of(1.0, 1.0, higher) for higher in (True, False))
    metrics = {'one': one['right'], 'two': two['right']}
    swapped = {name: metrics[name] for name in ('two', 'one')}
    options = {'patience': 1, 'eval_every': 2, 'steps': 8}
    workdir = self.create_tempdir().full_path
    run(workdir, metrics=metrics, **options)
    run(workdir, metrics=metrics, **options)
    self.refused(
      r'decisive_metric \(one there, two here\)',
      workdir,
      metrics=swapped,
      **options,
    )

  def test_a_registered_projection(self):
    """Its name stays; the function that is registered by it is another."""
    other = lambda key, i, o: 3.0 * jax.random.normal(key, (i, o))
    with mock.patch.dict(projections.PROJECTIONS, gaussian=other):
      self.refused('stages.0.terms.1.draw')

  def test_the_same_call_comes_back(self):
    params, history = run(self.workdir)
    np.testing.assert_array_equal(params['low'], self.result[0]['low'])
    self.assertEqual(history, self.result[1])

  def test_its_data_may_come_anew(self):
    """What is equal counts as equal, whoever made it."""
    run(
      self.workdir,
      optimizer=optax.chain(optax.sgd(1e-2)),
      held_out={'x': jnp.asarray(X), 'y': jnp.asarray(Y)},
      weight=1,
      seed=np.int64(0),
    )

  @parameterized.parameters((0.1, 0.3), (0.0, 0.3))
  def test_dropout(self, before, after):
    """A rate acts in training alone."""
    workdir = self.create_tempdir().full_path
    make = lambda rate: dropping(rate)
    run(workdir, student=make(before))
    self.refused('dropout', workdir, student=make(after))

  @parameterized.parameters('x', 'boxes')
  def test_a_metric_of_another_entry_or_output(self, of):
    def metric(scale):
      if of == 'x':
        see = lambda got, y, x: scale * x[:, 0]
        return {'seen': cxjax.Metric(see, others=('x',))}
      see = lambda got, want: (
        scale * jnp.abs(got - want).reshape(-1, 2, 2).sum((1, 2))
      )
      return {'seen': cxjax.Metric(see, reference='teacher', output='boxes')}

    def both(params, x):
      low = x @ params['low'][:, :4]
      return {'logits': low[:, :2], 'boxes': low}, {'low': low}

    models = (cxjax.from_fn(both, parameters(seed)) for seed in (0, 1))
    plan = cxjax.plan(
      *models,
      (X, Y % 2),
      num_steps=2,
      layers=(),
      loss={'logits': 'kl', 'boxes': 'mse'},
    )
    train = functools.partial(
      cxjax.distill,
      plan,
      [(X, Y % 2)],
      held_out=(X, Y % 2),
      workdir=self.create_tempdir().full_path,
    )
    (_, want), (_, found) = (train(metrics=metric(1.0)) for _ in range(2))
    self.assertEqual(found, want)
    with self.assertRaisesRegex(errors.UserError, 'metrics'):
      train(metrics=metric(2.0))

  def test_what_cannot_be_hashed_is_said(self):
    shape = jax.ShapeDtypeStruct(X.shape[:1], jnp.float32)
    see = lambda got, y: jax.pure_callback(lambda a: a[:, 0], shape, got)
    with self.assertLogs(level='WARNING') as log:
      run(self.create_tempdir().full_path, metrics={'seen': see})
    (said,) = (line for line in log.output if 'cannot be noticed' in line)
    self.assertIn('choose another workdir', said)


def dropping(rate):
  """A network with dropout that it declares."""

  def apply(params, x):
    keys = None
    if isinstance(x, dict):
      keys, x = x['dropout'], x['tokens']
    if keys is not None:
      keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))
      x = x * keep(keys)
    return two_layers(params, x)

  found = cxjax.from_fn(apply, parameters(1))
  abilities = cxjax.Abilities(inputs=(), dropout=rate)
  return dataclasses.replace(found, abilities=abilities)


class Ended(Exception):
  pass


def changing(workdir, on_record=None):
  """A run with all that a change may be of; what it finds, as text."""
  params, history = run(
    workdir,
    steps=12,
    loss=closure(2.0),
    weight=lambda fraction: 1.0 - fraction,
    optimizer=rate(0.1),
    trainable='low|out',
    keep_best='right',
    on_record=on_record,
  )
  return str(([float(leaf) for leaf in np.ravel(params['low'])], history))


# With another seed of hashes than here.
SCRIPT = """
import sys
import run_identity_test
print(run_identity_test.changing(sys.argv[1]))
"""


@pytest.mark.slow
class ProcessTest(parameterized.TestCase):
  def other_process(self, folder):
    tests = pathlib.Path(__file__).parent
    paths = [str(tests), str(tests.parent)]
    paths += filter(None, sys.path)
    seed = '1' if os.environ.get('PYTHONHASHSEED') == '2' else '2'
    done = subprocess.run(
      [sys.executable, '-c', SCRIPT, folder],
      env={
        **os.environ,
        'JAX_NUM_CPU_DEVICES': str(jax.device_count()),
        'PYTHONHASHSEED': seed,
        'PYTHONPATH': os.pathsep.join(paths),
      },
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    return done.stdout.removesuffix('\n')

  def test_another_process_resumes(self):
    folder, whole = (self.create_tempdir().full_path for _ in range(2))

    def end(record):
      if record['step'] == 6:
        raise Ended

    with self.assertRaises(Ended):
      changing(folder, end)
    resumed = self.other_process(folder)
    self.assertEqual(resumed, changing(whole))
    self.assertIn("'step': 12", resumed)
