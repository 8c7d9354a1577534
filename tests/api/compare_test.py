"""Tests of comparisons: the runs once, and the refusals."""

import dataclasses
import functools
import io
import itertools
import math
import os
import pathlib
import pickle
import tempfile
from unittest import mock

from absl.testing import parameterized
import jax
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.api import compare as compare_lib
from cxjax.api import contest
from cxjax.api import fit_batches
from cxjax.api import named_plans
from small_networks import BIG
from small_networks import PLAN
from small_networks import SMALL
from small_networks import batches
from small_networks import parameters
from small_networks import two_layers

INPUTS = batches()


def labels(x):
  return np.asarray(np.argmax(two_layers(BIG.params, x)[0], axis=-1))


DATA = [(x, labels(x)) for x in INPUTS]
HELD_OUT = np.concatenate(INPUTS[:4]), labels(np.concatenate(INPUTS[:4]))
PAIR = {'layers': [('high', 'low')]}


class Shuffled:
  """A loader that shuffles anew each time, all but the first batches."""

  def __init__(self, data, fixed=0):
    self.data, self.fixed = data, fixed
    self.rng = np.random.default_rng(0)

  def __iter__(self):
    yield from self.data[: self.fixed]
    rest = self.data[self.fixed :]
    yield from (rest[i] for i in self.rng.permutation(len(rest)))


def compare(student=SMALL, data=DATA, held_out=HELD_OUT, **kwargs):
  """A comparison of few steps; its texts go into `said`."""
  options = dict(num_steps=20, rates=(1e-2,), seeds=2, costs='counted')
  options |= {'report': lambda text: None, **kwargs}
  return cxjax.compare(BIG, student, data, held_out=held_out, **options)


@pytest.mark.slow
class RunTest(parameterized.TestCase):
  """One comparison, which all tests look at."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.said, cls.folder = [], pathlib.Path(tempfile.mkdtemp())
    cls.compare = staticmethod(
      functools.partial(
        compare,
        methods={
          'short': {'method': 'extracted_labels', **PAIR, 'share': 0.25},
          'one_shot': {'method': 'one_shot'},
        },
        rates=(3e-2, 1e-2),
        workdir=cls.folder,
        report=cls.said.append,
      )
    )
    cls.found = cls.compare()

  def test_budgets_are_equal(self):
    short, one_shot = self.found.contenders
    self.assertEqual((one_shot.steps, len(one_shot.students)), (20, 2))
    # One step less than the budget at most.
    self.assertLess(0, one_shot.flops - short.flops + 1)
    self.assertLess(one_shot.flops - short.flops, max(short.stage_flops))
    steps = [stage.steps for stage in short.plan.stages]
    self.assertAlmostEqual(steps[0] / short.steps, 0.25, delta=0.05)
    # The teacher is charged where it runs: not in the last stage of `short`.
    labels, output = (
      short.plan.stage_plans_with_costs[-1],
      one_shot.plan.stage_plans_with_costs[0],
    )
    self.assertEqual(labels.teacher_flops, 0)
    self.assertEqual(short.stage_flops[-1], labels.student_flops)
    self.assertEqual(
      one_shot.stage_flops, (output.student_flops + output.teacher_flops,)
    )

  def test_every_method_is_searched_alike(self):
    settings = [
      (row['method'], row['share of the budget'], row['learning rate'])
      for row in self.found.trials
    ]
    expected = itertools.product(('short', 'one_shot'), [0.5], (1e-2, 3e-2))
    self.assertCountEqual(settings, expected)
    for one in self.found.contenders:
      scores = {
        row['learning rate']: row['accuracy']
        for row in self.found.trials
        if row['method'] == one.method
      }
      self.assertEqual(scores[one.rate], max(scores.values()))

  def test_the_best_is_the_student_of_the_best_score(self):
    best = self.found.best
    rows = {row['method']: row for row in self.found.rows}
    means = [row['accuracy: mean'] for row in rows.values()]
    self.assertEqual(rows[best.method]['accuracy: mean'], max(means))
    self.assertEqual(rows[best.method]['against the best'], 'best')
    got, _ = two_layers(best.params, HELD_OUT[0])
    accuracy = np.mean(np.argmax(got, -1) == HELD_OUT[1])
    self.assertAlmostEqual(accuracy, max(best.scores), places=6)

  def test_a_method_prints_in_a_line(self):
    shown = repr(self.found.best)
    self.assertIn('method=', shown)
    self.assertLess(len(shown), 400)

  def test_says_what_it_costs_before_it_starts(self):
    first = self.said[0]
    self.assertIn('of one_shot in 20 steps', first)
    self.assertIn('2 for 1/2 of the budget; then the best rate', first)
    self.assertIn('teacher itself has accuracy 1', first)
    self.assertIn('In all at most', first)

  def test_prints_the_result_once(self):
    found, said = self.found, '\n'.join(self.said)
    self.assertNotIn(found.advice, said)
    self.assertEndsWith(found.markdown(), found.advice)
    self.assertNotIn(found.description, found.markdown())
    text = (self.folder / 'comparison.md').read_text()
    self.assertEqual(text, f'{found.description}\n\n{found.markdown()}\n')
    self.assertNotIn('trials', repr(found))

  def test_writes_and_resumes(self):
    for name in ('comparison.md', 'comparison.csv', 'search.csv'):
      self.assertTrue((self.folder / name).exists())
    before = (self.folder / 'comparison.png').read_bytes()
    logs = [*self.folder.rglob('metrics.jsonl')]
    self.assertLen(logs, 4)
    times = {path: path.read_bytes() for path in logs}
    again = self.compare()
    self.assertEqual(str(again), str(self.found))
    self.assertEqual({path: path.read_bytes() for path in logs}, times)
    again.plot(self.folder / 'again.png')
    self.assertEqual((self.folder / 'again.png').read_bytes(), before)
    with self.assertRaisesRegex(errors.UserError, 'optimizer'):
      self.compare(optimizer={'warmup': 0.5})

  @parameterized.parameters('', '.', 3, None, 'a/..')
  def test_paths_that_it_cannot_be_written_to(self, path):
    with self.assertRaisesRegex(errors.UserError, f'path={path!r} (must|is a)'):
      self.found.plot(path)
    if path in ('', 3, None):
      with self.assertRaisesRegex(errors.UserError, f'folder={path!r} must'):
        self.found.write(path)

  def test_pickles(self):
    found = pickle.loads(pickle.dumps(self.found))
    self.assertEqual(str(found), str(self.found))
    self.assertEqual(found.best.flops, self.found.best.flops)

  def test_the_learning_rate_rises_first(self):
    self.assertIn('adam with a warm-up of 6%, schedule cosine', self.said[0])
    one_shot = self.found.contenders[1]
    first = one_shot.history[0]  # Its last update came after 1 of 20 steps.
    rates = [one_shot.rate * 0.05 / 0.06] * 2
    self.assertSequenceAlmostEqual(first['learning_rate'], rates)


@pytest.mark.slow
class VocabularyTest(parameterized.TestCase):
  def test_the_classes_that_both_have_are_compared(self):
    padded = parameters(1)
    padded['out'] = np.pad(padded['out'], ((0, 0), (0, 2)))
    student = cxjax.from_fn(two_layers, padded)
    both = dict(
      methods=('supervised', 'one_shot'), layers=(), num_steps=8, seeds=1
    )
    with self.assertRaisesRegex(errors.UserError, 'vocab'):
      compare(student, **both)
    found = compare(student, vocab=3, **both)
    without = compare(**both)
    for one, other in zip(found.rows, without.rows, strict=True):
      self.assertEqual(one['accuracy: mean'], other['accuracy: mean'])
    np.testing.assert_array_equal(found.best.params['out'][:, 3:], 0.0)


class RefusalTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(methods=()), 'methods is empty'),
    (dict(methods=('one_shot', 'joint', 'one_shot')), "'one_shot' 2 times"),
    (dict(methods=('one_shoot',)), "mean 'one_shot'"),
    (dict(methods={'a/b': {'method': 'joint'}}), "'a/b'.*slashes"),
    (dict(methods={'a': 'joint'}), r"methods\['a'\]='joint' must be a plan"),
    (dict(methods={'a': {'method': 'joint', 'hard': 1}}), 'option of joint'),
    (dict(methods=('progressive',)), 'earlier checkpoints'),
    (dict(methods=('joint',), layers=()), 'layers=.. leaves none'),
    (dict(rates=()), 'rates is empty'),
    (dict(rates=1e-3), 'rates=0.001 must be'),
    (dict(rates=(1e-3, 1e-3)), 'has a rate twice'),
    (dict(rates=(1e-3, -1.0)), 'learning_rate=-1.0'),
    (dict(equal='flop'), "mean 'flops'"),
    (dict(budget=0.0), 'budget=0.0'),
    (dict(seeds=0), 'seeds=0'),
    (dict(seeds=2**31), 'seeds=2147483648 must be .*at most 10000'),
    (dict(trainable=np.ones(3)), 'trainable=array.* must be a pattern'),
    (dict(trainable=()), r'trainable=\(\) must not be empty'),
    (dict(trainable=None), 'trainable=None must be a pattern'),
    (dict(held_out=None), 'held_out is missing'),
    (dict(data=iter(DATA)), 'an iterator, which can be read once'),
    (dict(data=Shuffled(DATA)), 'a Shuffled .* other batches each time'),
    (dict(data=Shuffled(DATA, fixed=1)), 'a Shuffled .* other batches each'),
    (dict(data=[]), 'batches is empty'),
    (dict(metrics=np.ones(2)), r'metrics=array.* must be names'),
    (dict(rates=np.array(3)), r'rates=array.* must be learning rates'),
    (dict(data=np.array(3)), 'batches is a ndarray'),
    (
      dict(methods={'a': {'method': 'late_to_early', 'layer': 'x'}}),
      "layer='x'",
    ),
    (dict(workdir=3), 'workdir=3 must be'),
    (dict(workdir='~/a'), '~'),
    (dict(optimizer=1), 'optimizer=1 must be a dict'),
    (dict(optimizer=optax.adam(0.1)), 'must be a dict .* of the search'),
    (dict(optimizer={'name': 'lion'}), "'lion'.*sgd, adam, adamw"),
    (dict(optimizer={'momentum': 0.9}), 'momentum.*=0.9 is a setting of sgd'),
    (
      dict(num_steps=3, rates=(1, 2, 3)),
      "'one_shot'.*0 of them.* needs 4 st",
    ),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(errors.UserError, message):
      compare(**{'methods': ('supervised', 'one_shot'), **arguments})

  def test_labels_that_are_not_there(self):
    for name in ('supervised', 'extracted_labels'):
      with self.assertRaisesRegex(errors.UserError, f'{name!r} .*have none'):
        compare(data=INPUTS, held_out=HELD_OUT[0], methods=('one_shot', name))

  def test_a_teacher_of_shapes(self):
    shapes = jax.eval_shape(lambda: BIG.params)
    teacher = dataclasses.replace(BIG, params=shapes)
    options = dict(held_out=HELD_OUT, num_steps=20, methods=('one_shot',))
    with self.assertRaisesRegex(errors.UserError, 'teacher has a shape and no'):
      cxjax.compare(teacher, SMALL, DATA, **options, costs='counted')

  def test_logits_where_outputs_are_embeddings(self):
    for name in ('supervised', 'extracted_labels'):
      message = f"{name!r} reads .* logits.*'cosine' they are none"
      with self.assertRaisesRegex(errors.UserError, message):
        compare(methods=('one_shot', name), loss='cosine')

  @pytest.mark.slow
  def test_plans_of_other_models_or_batches(self):
    other = cxjax.from_fn(two_layers, parameters(5))
    wide = cxjax.from_fn(two_layers, parameters(1, low=7))
    plan = functools.partial(cxjax.plan, num_steps=9)
    for what, found in (
      ('teacher', plan(other, SMALL, DATA[0])),
      ('student', plan(BIG, wide, DATA[0])),
      ('batch', PLAN),
    ):
      with self.assertRaisesRegex(
        errors.UserError, f"'mine' has another {what}"
      ):
        compare(methods={'mine': found})

  def test_batches_to_fit_on_that_nothing_reads(self):
    with self.assertRaisesRegex(errors.UserError, 'there is none: leave it'):
      compare(methods='one_shot', fit_on=DATA)

  def test_methods_by_default(self):
    earlier = cxjax.with_checkpoints(BIG, {5: BIG})
    output = named_plans.Output('kl', 1.0, 0.0, None, None)
    for teacher, example, more in (
      (BIG, INPUTS[0], ()),
      (BIG, DATA[0], compare_lib.LABELED),
      (earlier, INPUTS[0], ('progressive',)),
    ):
      planner = named_plans.Planner(teacher, SMALL, example, None, output)
      found = compare_lib._default_methods(planner)
      self.assertCountEqual(found, (*compare_lib.METHODS, *more))

  @pytest.mark.slow
  def test_a_fitted_method_by_default_where_there_are_examples_enough(self):
    output = named_plans.Output('kl', 1.0, 0.0, None, None)
    few = [tuple(leaf[:1] for leaf in DATA[0])]
    thin = dataclasses.replace(BIG, params=parameters(0, high=2))
    for teacher, data, reason in (
      (BIG, DATA, ''),
      (BIG, few, 'examples'),
      (thin, DATA, 'directions'),
    ):
      with self.subTest(reason):
        said = []
        planner = named_plans.Planner(teacher, SMALL, data[0], None, output)
        found = compare_lib._fitted(planner, 20, {}, data, said.append)
        self.assertCountEqual(found, [] if reason else [compare_lib.FITTED])
        self.assertLen(said, bool(reason))
        self.assertIn(reason, ''.join(said))

  @pytest.mark.slow
  def test_the_default_with_labels_has_it(self):
    found = compare(num_steps=40, seeds=1)
    names = [one.method for one in found.contenders]
    default = (*compare_lib.LABELED, *compare_lib.METHODS, compare_lib.FITTED)
    self.assertCountEqual(names, default)

  def test_a_metric_that_is_nan_for_the_teacher(self):
    metric = cxjax.Metric(lambda ours, _: ours[..., 0] * math.nan)
    with self.assertRaisesRegex(errors.UserError, "teacher's own own is NaN"):
      compare(methods='one_shot', metrics={'own': metric})

  def test_a_metric_that_does_not_say_if_less_is_better(self):
    brier = lambda output, labels: (output**2).sum(-1)
    with self.assertRaisesRegex(errors.UserError, 'higher_is_better=False'):
      compare(metrics={'brier': brier}, methods=('one_shot',))

  def test_what_is_not_finite_has_no_score(self):
    for score, loss, leaf, known in (
      (0.5, 1.0, 1.0, True),
      (math.inf, 1.0, 1.0, False),
      (0.5, math.inf, 1.0, False),
      (0.5, 1.0, math.nan, False),
    ):
      found = contest._score(score, loss, {'w': np.float32([leaf])})
      self.assertEqual(math.isfinite(found), known)

  def test_methods_fit_on_the_first_batches(self):
    fitted = cxjax.plan(
      BIG,
      SMALL,
      DATA[0],
      num_steps=9,
      stages=(
        cxjax.Stage('a', 9, cxjax.Term('high', 'low', projection='centered')),
      ),
    )
    loader = mock.MagicMock(__iter__=lambda _: iter(DATA * 9))
    found = fit_batches.shared(None, loader, PLAN, fitted)
    np.testing.assert_array_equal([x for x, _ in found], [*INPUTS, *INPUTS[:4]])
    self.assertIs(fit_batches.shared(DATA, loader, fitted), DATA)
    self.assertIsNone(fit_batches.shared(None, loader, PLAN))

  @pytest.mark.slow
  def test_a_report_that_is_printed_fits_80_columns(self):
    with (
      mock.patch('sys.stdout', io.StringIO()) as stdout,
      mock.patch.object(contest.Contest, 'run', side_effect=KeyError('ran')),
      self.assertRaisesRegex(KeyError, 'ran'),
    ):
      compare(methods=['one_shot'], report=print)
    self.assertBetween(max(map(len, stdout.getvalue().splitlines())), 70, 80)

  @pytest.mark.slow
  def test_a_stdout_that_is_closed(self):
    with open(os.devnull, 'w') as stdout:
      pass
    with (
      mock.patch('sys.stdout', stdout),
      mock.patch.object(contest.Contest, 'run', side_effect=KeyError('ran')),
      self.assertRaisesRegex(KeyError, 'ran'),
    ):
      compare(methods=['one_shot'], report=print)

  def test_scores_that_cannot_be_compared(self):
    target = np.full((8, 3), 1 / 3, np.float32)
    data = [(INPUTS[0], target)]
    term = cxjax.Term(target='labels', loss='mse')
    stage = cxjax.Stage('labels', 20, term)
    own = cxjax.plan(BIG, SMALL, data[0], stages=stage)
    methods = {'own': own, 'one_shot': {'method': 'one_shot'}}
    message = "'own' is evaluated by the labels.*by the teacher's outputs"
    with self.assertRaisesRegex(errors.UserError, message):
      compare(data=data, held_out=data[0], methods=methods, loss='mse')
