"""Functions and runs of the previous release, called as they were then."""

import functools
import pathlib
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from experiments import parity_mlp
from legacy_warnings import TestCase
from legacy_warnings import quiet
from small_networks import BIG
from small_networks import SMALL
from small_networks import X
from small_networks import Y
from small_networks import batches
from small_networks import two_layers


class StepTest(TestCase):
  """The pure functions, one after the other, as on the old examples page."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.batch = {'x': X, 'y': Y}
    cls.models = two_layers, SMALL.params, two_layers, BIG.params
    cls.stage, _ = cxjax.extracted([('high', 'low')], (4, 5))
    cls.fitnets, _ = cxjax.extracted(
      [('high', 'low')], (4, 5), projection='identity', regressor=True
    )
    cls.matrix = cxjax.random_projection(jax.random.key(5), 'gaussian', (4, 5))
    cls.tx = optax.sgd(0.1)

  def old_state(self, stage):
    planned = cxjax.plan_stage(stage, self.batch, *self.models)
    with self.warns('cxjax.trained is now cxjax.trainable_mask'):
      mask = cxjax.trained(two_layers, SMALL.params, X, stage)
    training = {'stage': stage, 'tx': self.tx, 'mask': mask}
    shape = quiet(lambda: planned.readout)
    with self.warns('cxjax.enter is now cxjax.init_stage'):
      state = cxjax.enter(
        jax.random.key(6), SMALL.params, shape=shape, **training
      )
    return state, training

  def test_the_plan_of_a_stage(self):
    with self.warns('cxjax.PlannedStage is now cxjax.StagePlan'):
      kind = cxjax.PlannedStage
    planned = cxjax.plan_stage(self.fitnets, self.batch, *self.models)
    self.assertIsInstance(planned, kind)
    for name, value, new in (
      ('projection', (4, 4), 'projections[TERM]'),
      ('readout', (5, 4), 'regressors[TERM]'),
      ('teacher_width', 4, 'terms[TERM].teacher_width'),
      ('student_width', 5, 'terms[TERM].student_width'),
    ):
      with self.warns(f'{name} of a StagePlan is now {new};'):
        self.assertEqual(getattr(planned, name), value)
    plain = cxjax.plan_stage(self.stage, self.batch, *self.models)
    self.assertIsNone(quiet(lambda: plain.readout))
    with self.warns('cxjax.show is now cxjax.format_plan'):
      self.assertIn('gaussian 4 x 5', cxjax.show([plain]))

  def test_the_stages_of_a_plan(self):
    teacher, student = (
      cxjax.from_fn(two_layers, model.params) for model in (BIG, SMALL)
    )
    plan = cxjax.plan(teacher, student, self.batch, num_steps=4, layers=())
    with self.warns('planned of a Plan is now stage_plans'):
      self.assertIs(plan.planned, plan.stage_plans)
    with self.warns('costed of a Plan is now stage_plans_with_costs'):
      self.assertIs(plan.costed, plan.stage_plans_with_costs)

  def test_the_target_is_an_array(self):
    with self.warns('cxjax.target is now cxjax.make_targets'):
      want = cxjax.target(
        two_layers, BIG.params, self.matrix, self.batch, self.stage
      )
    _, found = two_layers(BIG.params, X)
    np.testing.assert_allclose(want, found['high'] @ self.matrix, rtol=1e-5)
    (labels,) = cxjax.supervised(4)
    got = quiet(lambda: cxjax.target(None, None, None, self.batch, labels))
    np.testing.assert_array_equal(got, Y)

  @pytest.mark.slow
  def test_updates(self):
    """Those of a term written out, whichever form is used."""
    state, training = self.old_state(self.stage)
    want = quiet(
      lambda: cxjax.target(
        two_layers, BIG.params, self.matrix, self.batch, self.stage
      )
    )
    step = jax.jit(
      functools.partial(cxjax.train_step, apply=two_layers, **training)
    )
    after, loss = step(state, self.batch, want)
    with self.warns('want= of train_step is now targets='):
      same, _ = cxjax.train_step(
        state, self.batch, want=want, apply=two_layers, **training
      )

    def objective(params):
      got = two_layers(params, X)[1]['low']
      return jnp.sum((got - want) ** 2, -1).mean()

    value, grads = jax.value_and_grad(objective)(SMALL.params)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, SMALL.params, grads)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5)
    chex.assert_trees_all_close(same.params, expected, rtol=1e-5)

  @pytest.mark.slow
  def test_a_readout(self):
    state, _ = self.old_state(self.fitnets)
    with self.warns('readout of a State is now regressors[TERM]'):
      kernel = state.readout['kernel']
    self.assertEqual(kernel.shape, (5, 4))
    plain, _ = self.old_state(self.stage)
    self.assertEqual(quiet(lambda: plain.readout), {})

  @pytest.mark.slow
  def test_many_steps(self):
    """One array of matrices, as those of the single term."""
    state, training = self.old_state(self.stage)

    def draw(key, step, rows):
      x = jax.random.normal(jax.random.fold_in(key, step), X.shape)
      return {'x': x, 'y': jnp.zeros(8, int)}

    twice = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), tree)
    keys = jax.random.split(jax.random.key(7), 2)
    options = {
      'draw': draw,
      'student': two_layers,
      'teacher': two_layers,
      'lookahead': 2,
      **training,
    }
    with self.warns('cxjax.advance is now cxjax.train_many_steps'):
      old = cxjax.advance
    args = twice(state), 0, 4, BIG.params
    states, seen = jax.jit(functools.partial(old, **options))(
      *args, twice(self.matrix), keys
    )
    new, same = jax.jit(functools.partial(cxjax.train_many_steps, **options))(
      *args, {'low': twice(self.matrix)}, keys
    )
    chex.assert_trees_all_equal(states.params, new.params)
    np.testing.assert_array_equal(seen['loss'], same['loss'])
    self.assertEqual(seen['loss'].shape, (2,))

  def test_metrics(self):
    found = cxjax.evaluate(SMALL.params, self.batch, apply=two_layers)
    found |= cxjax.agreement(
      SMALL.params, BIG.params, self.batch, apply=two_layers, teacher=two_layers
    )
    self.assertContainsSubset(
      ('accuracy', 'loss', 'agreement', 'teacher_kl'), found
    )

  @pytest.mark.slow
  def test_distill(self):
    """Nothing of it was renamed."""
    with self.warns():
      plan = cxjax.plan(BIG, SMALL, (X, Y), num_steps=4, layers=(), alpha=0.5)
      params, history = cxjax.distill(
        plan,
        [(x, Y) for x in batches()],
        held_out=(X, Y),
        optimizer=optax.adam(1e-3),
        log_every=2,
        metrics={'right': lambda got, y: got.argmax(-1) == y},
      )
    self.assertEqual(params.keys(), SMALL.params.keys())
    self.assertIn('eval/right', history[-1])


@pytest.mark.slow
class RunTest(TestCase):
  """The calls of the notebooks on the files of a run."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.config = parity_mlp.tiny('extracted')
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', DeprecationWarning)
      from cxjax import build
      from cxjax import checkpoint
      from cxjax import experiment
      from cxjax import journal
      from cxjax import plots
      from cxjax import summary
      from cxjax import table
    cls.build, cls.checkpoint, cls.journal = build, checkpoint, journal
    cls.experiment, cls.plots = experiment, plots
    cls.summary, cls.table = summary, table
    methods = ('one_shot', 'extracted')
    cls.summaries = experiment.compare(cls.config, methods, cls.workdir)
    cls.folder_of = cls.workdir / 'extracted'

  def test_journal(self):
    rows = self.journal.read(self.folder_of)
    with self.warns("is now evaluations(records, 'accuracy')"):
      steps, values = zip(*self.journal.evaluations(rows), strict=True)
    self.assertEqual(steps, (10, 20, 30, 40, 50, 60))
    final = self.summaries[1]['final']
    self.assertEqual(values[-1], final['accuracy'])
    with self.warns():
      *_, last = self.journal.evaluations(rows, 'loss')
    self.assertEqual(last, (60, final['loss']))
    with self.warns("is now steps_to(records, 'accuracy', x)"):
      found = self.journal.steps_to(rows, 0.0)
    self.assertEqual(found, [10, 10])

  def test_checkpoint(self):
    newest = self.checkpoint.latest(self.folder_of)
    self.assertIn(newest, self.checkpoint.steps(self.folder_of))
    record = self.checkpoint.read_record(self.folder_of, newest)
    with self.warns("record['accuracy'] is now record['score'];"):
      found = {name: record[name] for name in ('stage', 'accuracy', 'end')}
    self.assertEqual(found['accuracy'], self.summaries[1]['final']['accuracy'])
    with self.assertRaises(KeyError):
      _ = record['accuracies']

  def test_teacher_and_students(self):
    config, teacher = self.experiment.load(self.config, self.workdir)
    self.assertEqual(dict(teacher.checkpoints).keys(), {0, 20, 40, 60})
    task = self.build.make_task(config)
    batch = quiet(
      lambda: task.draw(
        self.build.key_for(config, 'held_out'), 0, config.data.eval_size
      )
    )
    module, params = self.experiment.load_students(
      config, self.workdir, 'extracted'
    )
    logits, _ = jax.vmap(module.apply, (0, None))(params, batch['x'])
    np.testing.assert_allclose(
      np.mean(np.argmax(logits, -1) == batch['y'][None], axis=1),
      self.summaries[1]['final']['accuracy'],
    )
    with self.warns('is now teachers.train_teacher('):
      again = self.experiment.train_teacher(self.config, self.workdir)
    chex.assert_trees_all_equal(again.params, teacher.params)
    with self.warns('is now teachers.load_teacher('):
      again = self.experiment.load_teacher(
        self.config, self.workdir / 'teacher', 60
      )
    chex.assert_trees_all_equal(again.params, teacher.params)

  def test_tables_and_plots(self):
    self.assertIn('one_shot', self.summary.compare_table(self.summaries))
    self.assertGreater(self.summary.flops(self.summaries[0], 10), 0)
    self.assertIn(' a |', self.table.markdown([{'a': 1}]))
    with self.warns('cxjax.plots.OTHERS is now cxjax.analysis.plots.OTHERS'):
      others = self.plots.OTHERS
    dict(zip(('normed', 'fitnets'), others, strict=True))
    rows = self.journal.read(self.folder_of)
    figure, panels = self.plots.axes('student steps', 'accuracy', 2, width=3.6)
    self.plots.boundaries(panels[0], rows, self.plots.COLORS['extracted'])
    path = self.folder() / 'a.png'
    self.plots.save(figure, path)
    self.assertTrue(path.exists())
    with self.warns("is now curves(runs, 'accuracy', 'held-out accuracy',"):
      self.plots.accuracy_curves({'extracted': rows}, path)

  def test_a_refused_run_is_a_value_error(self):
    other = self.config.copy_and_resolve_references()
    other.batch_size = 64
    with self.assertRaisesRegex(ValueError, 'batch_size'):
      self.experiment.run(other, self.workdir)
