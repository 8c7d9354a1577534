"""Tests of the cause of a loss that is not finite."""

import dataclasses
import functools
import itertools
import pathlib
import types
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.training import checkpoints
from cxjax.training import compiled_steps
from cxjax.training import failures
from cxjax.training import metric_log
from cxjax.training import run_spec
from tests.methods import networks
from tests.training import runs

Stage, Term = runs.Stage, runs.Term


class ExplainTest(parameterized.TestCase):
  def explain(self, message, bad, stage=None, rows=None, **fields):
    stage = stage or Stage('labels', 40, runs.LABELS)
    spec = runs.spec((stage,), **fields)
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      failures.explain(spec, stage, folder, np.array(bad), rows)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ([7, 5], 'seed 1 is not finite at step 5'),
    ([5, 7], 'seed 0 is not finite at step 5'),
    ([5, 5], 'seed 0 is not finite at step 5'),
  )
  def test_the_first_seed_and_step(self, bad, message):
    self.explain(f"{message}, in stage 'labels'.*none was saved yet", bad)

  def weights(self, of):
    """Batches whose weights are `of(key, t)`."""

    def draw(key, t, rows=None):
      return {**runs.draw(key, t), 'weights': of(key, t)}

    return draw

  @pytest.mark.slow
  def test_a_batch_in_which_nothing_counts(self):
    draw = self.weights(lambda key, t: jnp.full(runs.SIZE, t != 5, float))
    message = 'batch of seed 1 at step 5 has no position that counts'
    self.explain(message, [9, 5], draw=draw)
    self.explain('seed 1 is not finite at step 4', [9, 4], draw=draw)

  @pytest.mark.slow
  def test_of_any_term(self):
    """Hidden activations count by the mask, labels by the weights."""

    def draw(key, t, rows=None):
      batch = networks.sequence_batch()
      return {**batch, 'weights': 0 * batch['weights']}

    student = types.SimpleNamespace(
      apply=networks.sequence_apply,
      init=lambda key, x: networks.sequence_params(3, 1),
    )
    teacher = dataclasses.replace(
      runs.teacher(),
      apply=networks.sequence_apply,
      params=networks.sequence_params(3, 0),
    )
    fields = dict(draw=draw, student=student, teacher=teacher)
    both = (Term('low', 'low'), runs.LABELS)
    stage = Stage('s', 1, both)
    self.explain('no position that counts', [5, 5], stage, **fields)
    alone = Stage('s', 1, both[:1])
    self.explain('seed 0 is not finite', [5, 5], alone, **fields)

  @parameterized.parameters((True, 4), (False, 24))
  @pytest.mark.slow
  def test_a_schedule_that_is_not_finite(self, restart_schedule, step):
    stages = Stage('first', 20, runs.LABELS), Stage('second', 20, runs.LABELS)
    spec = runs.spec(
      stages,
      optimizer=lambda *_: optax.sgd(
        lambda n: jnp.where(n < step, 0.1, jnp.inf)
      ),
      restart_schedule=restart_schedule,
    )
    folder = pathlib.Path(self.create_tempdir().full_path)
    message = f'at step {step} of its schedule: correct its learning rate'
    with self.assertRaisesRegex(errors.UserError, message):
      failures.explain(spec, stages[1], folder, np.array([25, 40]), None)

  def test_a_shared_stream_is_that_of_every_seed(self):
    draw = self.weights(lambda key, t: jnp.full(runs.SIZE, t != 5, float))
    self.explain(
      'seed 1 at step 5 has no position',
      [9, 5],
      draw=draw,
      keys=runs.keys(streams=1),
    )

  def test_rows_of_the_host_are_those_of_the_step(self):
    rows = {
      'x': np.ones((4, 2, runs.SIZE, runs.BITS), np.float32),
      'weights': np.ones((4, 2, runs.SIZE), np.float32),
    }
    rows['weights'][5 % 4, 1] = 0
    host = run_spec.HostData(
      rows=jax.eval_shape(lambda: jax.tree.map(lambda x: x[0, 0], rows))
    )
    fields = dict(draw=lambda key, t, rows: rows, host=host, rows=rows)
    self.explain('seed 1 at step 5 has no position', [9, 5], **fields)
    self.explain('seed 0 is not finite at step 5', [5, 9], **fields)
    self.explain('seed 1 is not finite at step 6', [9, 6], **fields)

  def test_rows_that_all_seeds_share(self):
    rows = {'weights': np.ones((4, 1, runs.SIZE), np.float32)}
    rows['weights'][5 % 4] = 0
    host = run_spec.HostData(
      rows=jax.eval_shape(lambda: jax.tree.map(lambda x: x[0, 0], rows))
    )
    draw = lambda key, t, rows: {**runs.draw(key, t), **rows}
    self.explain(
      'seed 1 at step 5 has no position',
      [9, 5],
      draw=draw,
      host=host,
      rows=rows,
      keys=runs.keys(streams=1),
    )


def poisoned(params, name, value=np.nan):
  """Parameters of a perceptron with one weight that is not finite."""
  params = jax.tree.map(jnp.array, params)
  layer = params['params'][name]
  layer['kernel'] = layer['kernel'].at[0, 0].set(value)
  return params


class CauseTest(parameterized.TestCase):
  output = Stage('output', 40, Term())

  def explain(self, message, stage=None, rows=None, **fields):
    stage = stage or self.output
    spec = runs.spec((stage,), **fields)
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      failures.explain(spec, stage, folder, np.array([6, 9]), rows)
    self.assertNotIn('smaller', str(caught.exception))

  @parameterized.parameters(np.nan, np.inf)
  def test_an_example_of_the_batch(self, value):
    """In the step, or in one before it whose loss was finite yet."""
    rows = {
      'x': np.ones((4, 2, runs.SIZE, runs.BITS), np.float32),
      'weights': np.ones((4, 2, runs.SIZE), np.float32),
    }
    rows['x'][5 % 4, 0, 2, 1] = rows['x'][4 % 4, 1] = value
    rows['x'][4 % 4, 0, 3], rows['weights'][4 % 4, 0, 3] = value, 0
    host = run_spec.HostData(
      rows=jax.eval_shape(lambda: jax.tree.map(lambda x: x[0, 0], rows))
    )
    draw = lambda key, t, rows: {**runs.draw(key, t), **rows}
    self.explain(
      "'x' of the batch of step 5 is NaN .* 1 of 4 examples.* example 2",
      rows=rows,
      host=host,
      draw=draw,
    )

  def test_a_batch_that_is_drawn(self):
    def draw(key, t, rows=None):
      batch = runs.draw(key, t)
      return {**batch, 'x': jnp.where(t == 6, jnp.nan, batch['x'])}

    self.explain("'x' of the batch of step 6 is .* 4 of 4", draw=draw)

  @parameterized.parameters(('hidden0', np.nan), ('logits', np.inf))
  @pytest.mark.slow
  def test_the_parameters_of_the_teacher(self, name, value):
    params = poisoned(runs.teacher_params(), name, value)
    teacher = dataclasses.replace(runs.teacher(), params=params)
    message = f"parameter 'params/{name}/kernel' of the teacher is NaN"
    self.explain(message, teacher=teacher)

  def teacher(self, value):
    def apply(params, x):
      logits, seen = runs.TEACHER.apply(params, x)
      return logits.at[:, 1].set(value), seen

    return dataclasses.replace(runs.teacher(), apply=apply)

  def test_the_output_of_the_teacher(self):
    message = "teacher's 'logits' is NaN or infinite for the batch of step 6"
    self.explain(message, teacher=self.teacher(jnp.nan))

  def test_classes_that_the_teacher_excludes(self):
    message = "teacher's 'logits' is -inf for some classes.*'output' infinite"
    teacher = self.teacher(-jnp.inf)
    self.explain(
      message, Stage('output', 40, Term(loss='mse')), teacher=teacher
    )

  @pytest.mark.slow
  def test_a_class_that_the_student_alone_excludes(self):
    def apply(params, x):
      logits, seen = runs.STUDENT.apply(params, x)
      return logits.at[:, 1].set(-jnp.inf), seen

    params = runs.STUDENT.init(jax.random.key(0), jnp.zeros((1, runs.BITS)))
    start = (params, params)
    self.explain(
      "student's 'logits' is not finite for the batch of step 6, before",
      student=types.SimpleNamespace(apply=apply),
      start=start,
    )

  def test_float16(self):
    """It overflows where the other dtypes do not."""

    def apply(params, x):
      logits, seen = runs.STUDENT.apply(params, x)
      return jax.jit(lambda x: x.astype(jnp.float16) * 1.0)(logits), seen

    student = types.SimpleNamespace(apply=apply, init=runs.STUDENT.init)
    self.explain('The student computes in float16, which', student=student)

  @pytest.mark.slow
  def test_the_student_that_is_given(self):
    params = runs.STUDENT.init(jax.random.key(0), jnp.zeros((1, runs.BITS)))
    start = (params, poisoned(params, 'logits'))
    message = "parameter 'params/logits/kernel' of the student is NaN"
    self.explain(message, start=start)
    with self.assertRaisesRegex(errors.UserError, message):
      failures.check_start(runs.spec((self.output,), start=start))


class StartTest(parameterized.TestCase):
  def check(self, stage, params):
    teacher = dataclasses.replace(runs.teacher(), params=params)
    failures.check_start(runs.spec((stage,), teacher=teacher))

  def test_finite(self):
    self.check(Stage('s', 1, Term()), runs.teacher_params())

  @pytest.mark.slow
  def test_a_teacher(self):
    params = poisoned(runs.teacher_params(), 'hidden0')
    with self.assertRaisesRegex(errors.UserError, "'params/hidden0/kernel'"):
      self.check(Stage('s', 1, Term()), params)
    # Nothing reads it.
    self.check(Stage('s', 1, runs.LABELS), params)

  def test_an_optimizer_that_counts_in_python(self):
    steps = itertools.count(1)
    tx = optax.stateless(
      lambda grads, _: optax.tree.scale(1 / next(steps), grads)
    )
    spec = runs.spec((Stage('s', 1, runs.LABELS),), optimizer=lambda *_: tx)
    with self.assertRaisesRegex(errors.UserError, 'a state in Python'):
      failures.check_start(spec)

  def test_a_model_that_counts_in_python(self):
    spec, steps = runs.spec((Stage('s', 1, runs.LABELS),)), itertools.count(1)

    def counts(params, x):
      output, activations = spec.student.apply(params, x)
      return output * next(steps), activations

    student = types.SimpleNamespace(apply=counts, init=spec.student.init)
    with self.assertRaisesRegex(errors.UserError, 'The student computes some'):
      failures.check_start(dataclasses.replace(spec, student=student))

  def test_what_is_read_alone_counts(self):
    params = poisoned(runs.teacher_params(), 'logits')
    self.check(Stage('s', 1, runs.HIDDEN), params)


def poison(at, seed=None, what='x'):
  """Batches of which one is not finite, or has nothing that counts."""
  keys = jax.device_get(jax.random.key_data(runs.keys().data))

  def draw(key, t, rows=None):
    batch, hit = runs.draw(key, t), t == at
    if seed is not None:
      hit &= (jax.random.key_data(key) == keys[seed]).all()
    if what == 'x':
      return {**batch, 'x': batch['x'] * jnp.where(hit, jnp.nan, 1.0)}
    return {**batch, 'weights': jnp.where(hit, 0.0, jnp.ones(runs.SIZE))}

  return draw


@pytest.mark.slow
class FailureTest(runs.TestCase):
  def failed(self, message, folder, *stages, **fields):
    """The one line of a run that fails."""
    stages = stages or (Stage('labels', 40, runs.LABELS),)
    spec = runs.spec(stages, teacher=None, teacher_metrics={}, **fields)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      self.fit(spec, folder)
    self.assertNotIn('\n', str(caught.exception))
    return spec

  def test_a_loss_that_is_not_finite_is_named_though_steps_go_on(self):
    """Step 9 is read when the steps from 12 on were dispatched."""
    folder, train, stops = (
      self.folder(),
      compiled_steps.CompiledSteps.train_many_steps,
      [],
    )

    def note(steps, planned, *args):
      stops.append(args[4])
      return train(steps, planned, *args)

    with mock.patch.object(
      compiled_steps.CompiledSteps, 'train_many_steps', note
    ):
      self.failed(
        "seed 0 is not finite at step 9, in stage 'labels': 'x' of the batch "
        'of step 9 is NaN',
        folder,
        draw=poison(9),
      )
    self.assertEqual(stops, [4, 8, 12, 16])
    self.assertEqual(checkpoints.steps(folder), [8])
    self.assertIsNone(checkpoints.fault(folder, 8))
    self.assertEqual([r['step'] for r in metric_log.read(folder)], [4, 8])

  def test_the_stage_is_that_of_the_step(self):
    """Though the next stage was under way."""
    self.failed(
      "seed 1 is not finite at step 9, in stage 'first'",
      self.folder(),
      Stage('first', 10, runs.LABELS),
      Stage('second', 30, runs.LABELS),
      draw=poison(9, seed=1),
    )

  def test_before_the_first_checkpoint(self):
    self.failed('step 2, .*of step 2 is NaN', self.folder(), draw=poison(2))

  def test_a_rate_that_is_too_high(self):
    spec = self.failed(
      'none was saved yet. Try a smaller learning rate, in another workdir',
      self.folder(),
      optimizer=functools.partial(runs.adam, name='sgd', learning_rate=1e38),
    )
    # A folder that is removed after the run is not named.
    spec = dataclasses.replace(spec, loop=runs.loop(temporary=True))
    bad = np.array([2, 40])
    with self.assertRaisesRegex(
      errors.UserError, r'targets are\. Try a smaller learning rate\.$'
    ):
      failures.explain(spec, spec.stages[0], self.folder(), bad, None)

  def test_no_rate_is_too_high_at_the_first_step(self):
    stages, loop = (
      (Stage('labels', 40, runs.LABELS),),
      runs.loop(temporary=True),
    )
    spec = runs.spec(stages, teacher=None, teacher_metrics={}, loop=loop)
    with self.assertRaisesRegex(
      errors.UserError, r'targets are\. No step was made before: correct'
    ):
      failures.explain(spec, stages[0], self.folder(), np.array([0, 40]), None)

  @parameterized.parameters(None, 1)
  def test_a_batch_in_which_nothing_counts(self, seed):
    self.failed(
      f'The batch of seed {seed or 0} at step 13 has no position that counts',
      self.folder(),
      draw=poison(13, seed, 'weights'),
    )
