"""From two models and an example to a trained student."""

import contextlib
import functools
import itertools
import pathlib
import sqlite3
import threading
from unittest import mock

from absl.testing import parameterized
import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import flops
from cxjax.methods import losses
from cxjax.training import checkpoints as checkpoints_lib
from cxjax.training import metric_log
from small_networks import BIG
from small_networks import ONE
from small_networks import PLAN
from small_networks import SMALL
from small_networks import STUDENT
from small_networks import TEACHER
from small_networks import B
from small_networks import C
from small_networks import Image
from small_networks import Net
from small_networks import X
from small_networks import Y
from small_networks import batches
from small_networks import network
from small_networks import parameters
from small_networks import two_layers


class Ended(Exception):
  """Raised by a hook to end a run, which nothing of ours catches."""


def end_after(number, seen=None):
  """A hook that ends the run at its record `number`, from 1."""
  seen = [] if seen is None else seen

  def hook(record):
    seen.append(record)
    if len(seen) == number:
      raise Ended

  return hook


class Arrays:
  """The batches, as grain reads them."""

  def __len__(self):
    return 12

  def __getitem__(self, i):
    return batches()[i]

  def __repr__(self):
    return 'Arrays'


def distill(plan=ONE, data=None, **kwargs):
  return cxjax.distill(plan, batches() if data is None else data, **kwargs)


@functools.cache
def whole(stages=1):
  """A run that nothing interrupted, of `ONE` or of `PLAN`, for all tests."""
  plan = {1: ONE, 2: PLAN}[stages]
  return distill(plan, log_every=2, held_out=X)


class FolderTest(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)


@pytest.mark.slow
class LearnTest(FolderTest):
  def test_learns_its_teacher(self):
    student = network(Net((16,)), X, 1, 2)
    plan = cxjax.plan(TEACHER, student, X, num_steps=600)
    held_out = np.concatenate(batches(1, 20))
    params, history = cxjax.distill(
      plan,
      batches(2, 300),
      held_out=held_out,
      learning_rate=0.01,
    )
    first, last = history[0], history[-1]
    self.assertEqual([last['step'], last['stage']], [600, 'output'])
    self.assertLess(max(last['eval/loss']), 0.05)
    self.assertGreater(min(last['eval/agreement']), 0.75)
    self.assertLess(max(last['eval/loss']), 0.2 * min(first['eval/loss']))
    # The parameters that come back are those that were evaluated.
    for seed in range(2):
      got = Net((16,)).apply(params[seed], held_out)
      want, _ = TEACHER.apply(TEACHER.params, held_out)
      np.testing.assert_allclose(
        losses.kl(got, want).mean(), last['eval/loss'][seed], rtol=1e-3
      )

  def test_costs_are_found_once_for_the_plan_and_its_run(self):
    for costs, number in (('counted', 0), ('compiled', 2)):
      plan = cxjax.plan(BIG, SMALL, X, num_steps=2, layers=(), costs=costs)
      compiled = mock.Mock(side_effect=flops.compiled)
      with mock.patch.dict(flops.COUNTS, compiled=compiled):
        str(plan)
        distill(plan)
      self.assertEqual(compiled.call_count, number, costs)

  def test_the_student_that_went_in_is_as_it_was(self):
    before = {name: leaf.copy() for name, leaf in SMALL.params.items()}
    params, _ = whole()
    chex.assert_trees_all_equal(SMALL.params, before)
    self.assertGreater(
      float(jnp.abs(params['low'] - before['low']).max()), 1e-4
    )

  def test_several_are_each_as_alone(self):
    several = cxjax.from_fn(two_layers, [SMALL.params, parameters(2)])
    layers = [('high', 'low')]
    plan = cxjax.plan(BIG, several, X, num_steps=20, layers=layers)
    both, history = distill(plan, log_every=2, held_out=X)
    one, alone = whole(2)
    chex.assert_trees_all_close(both[0], one, rtol=1e-4, atol=1e-6)
    self.assertLen(history[-1]['eval/loss'], 2)
    np.testing.assert_allclose(
      history[-1]['eval/loss'][0], alone[-1]['eval/loss'][0], rtol=1e-4
    )

  @pytest.mark.slow
  def test_images_and_nnx(self):
    class Small(nnx.Module):
      def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(2, C, rngs=rngs)

      def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))

    x = batches(shape=(B, 4, 4, 1))
    model = Small(nnx.Rngs(0))
    plan = cxjax.plan(
      network(Image(1), x[0]), cxjax.from_nnx(model), x[0], num_steps=20
    )
    self.assertEqual(plan.stages[0].terms[0].student, 'conv')
    new, history = distill(plan, x)
    self.assertIsInstance(new, Small)
    self.assertLess(history[-1]['loss'], history[0]['loss'])
    self.assertEqual(new(x[0]).shape, (B, C))

  @pytest.mark.slow
  def test_bfloat16_and_parts_of_a_batch(self):
    plan = cxjax.plan(
      BIG, SMALL, X, num_steps=20, layers=(), dtype=jnp.bfloat16
    )
    params, _ = distill(plan, microbatches=2)
    chex.assert_trees_all_equal_dtypes(params, whole()[0])
    chex.assert_trees_all_close(params, whole()[0], atol=0.02)

  @pytest.mark.slow
  def test_devices(self):
    got, _ = distill(PLAN, mesh={'data': 2, 'fsdp': 2}, held_out=X)
    want, _ = whole(2)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)

  def test_the_largest_logits_alone(self):
    found = []
    for top in (C, 0):  # All of them, either way.
      plan = cxjax.plan(
        BIG, SMALL, X, num_steps=9, layers=(), temperature=2.0, top_k=top
      )
      params, history = distill(plan)
      found.append((params, history[-1]['eval/loss']))
    chex.assert_trees_all_close(*found, rtol=1e-3, atol=1e-5)


FADING = optax.linear_schedule(1.0, 0.0, 0.5)  # In the first half.
# Equal widths: what is compared needs no projection, and can be recomputed.
JOINT = cxjax.Stage(
  'joint',
  10,
  terms=(
    cxjax.Term('logits', 'logits'),
    cxjax.Term('low', 'low', weight=FADING),
    cxjax.Term('high', 'high', weight=2.0),
    cxjax.Term('logits', 'labels', weight=0.25),
  ),
)


def by_hand(data, y, rate):
  """The joint stage written out as a loop; losses of each step."""

  def objective(params, x, weight):
    got, ours = two_layers(params, x)
    want, theirs = two_layers(BIG.params, x)
    terms = {
      'output': losses.kl(got, want).mean(),
      'low': losses.l2(ours['low'], theirs['low']).mean(),
      'high': losses.l2(ours['high'], theirs['high']).mean(),
      'labels': losses.cross_entropy(got, y).mean(),
    }
    weights = {'output': 1.0, 'low': weight, 'high': 2.0, 'labels': 0.25}
    return sum(weights[name] * terms[name] for name in terms), terms

  params, records = SMALL.params, []
  step = jax.jit(jax.value_and_grad(objective, has_aux=True))
  for i, x in enumerate(data):
    weight = max(1 - i / len(data) / 0.5, 0.0)
    (loss, terms), grads = step(params, x, weight)
    params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    records.append({'loss': loss} | {f'loss/{k}': v for k, v in terms.items()})
  return params, records


@pytest.mark.slow
class TermsTest(FolderTest):
  """A stage of several terms: labels beside the teacher, several layers."""

  def test_is_the_weighted_sum(self):
    data = batches(number=10)
    plan = cxjax.plan(BIG, SMALL, (X, Y), stages=(JOINT,))
    params, history = distill(
      plan, [(x, Y) for x in data], optimizer=optax.sgd(0.1), log_every=1
    )
    want, records = by_hand(data, Y, 0.1)
    chex.assert_trees_all_close(params, want, rtol=1e-4, atol=1e-6)
    for found, record in zip(history, records, strict=True):
      for name, value in record.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)

  def test_several_students_and_devices(self):
    students = cxjax.from_fn(two_layers, [SMALL.params, BIG.params])
    plan = cxjax.plan(BIG, students, (X, Y), stages=JOINT)
    data = batches(number=10)
    (one, two), history = distill(
      plan,
      [(x, Y) for x in data],
      optimizer=optax.sgd(0.1),
      mesh={'data': 2},
      microbatches=2,
    )
    want, _ = by_hand(data, Y, 0.1)
    chex.assert_trees_all_close(one, want, rtol=1e-4, atol=1e-6)
    # The teacher itself has nothing to learn but the labels.
    self.assertLess(history[-1]['loss/high'], history[0]['loss/high'])
    self.assertFalse(jnp.array_equal(two['out'], BIG.params['out']))

  def test_learns_with_projections(self):
    """The three lines of the issue: joint losses, one of which fades out."""
    fading = optax.linear_schedule(1.0, 0.0, 1.0)
    stage = cxjax.Stage(
      'joint',
      300,
      terms=(
        cxjax.Term('logits', 'logits'),
        cxjax.Term('Dense_0', 'Dense_1', projection='gaussian', weight=fading),
        cxjax.Term('logits', 'labels', weight=0.5),
      ),
    )
    plan = cxjax.plan(TEACHER, STUDENT, (X, Y), stages=(stage,))
    _, history = distill(plan, [(x, Y) for x in batches()], learning_rate=0.02)
    first, last = history[0], history[-1]
    self.assertLess(last['loss/output'], 0.5 * first['loss/output'])
    self.assertIn('loss/Dense_0', last)
    self.assertIn('loss/labels', last)
    self.assertEqual(last['stage'], 'joint')

  def test_a_single_term_has_no_loss_of_its_own(self):
    _, history = whole()
    names = {name for record in history for name in record if '/' in name}
    self.assertEqual(names, {'eval/loss', 'eval/agreement'})

  @pytest.mark.slow
  def test_resumes(self):
    """Its projections and where it is in its schedule come back."""
    stage = cxjax.Stage(
      'joint',
      20,
      terms=(
        cxjax.Term('logits', 'logits'),
        cxjax.Term('low', 'high', projection='gaussian', weight=FADING),
        cxjax.Term('high', 'low', projection='gaussian', regressor=True),
      ),
    )
    plan = cxjax.plan(BIG, SMALL, X, stages=stage)
    want, history = distill(plan, log_every=2)
    again = functools.partial(distill, plan, log_every=2, workdir=self.folder())
    with self.assertRaises(Ended):
      again(on_record=end_after(4))
    params, same = again()
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(same, history)


@pytest.mark.slow
class OnRecordTest(FolderTest):
  def test_is_called_with_every_record_once_and_in_order(self):
    folder, seen, written, taken = self.folder(), [], [], []

    def hook(record):
      seen.append(dict(record))
      written.append(len(metric_log.read(folder)))
      record.clear()  # A copy: the history stays.

    def stream():
      for x in batches(number=20):
        taken.append(len(seen))
        yield x

    _, history = distill(
      data=stream(), held_out=X, workdir=folder, log_every=2, on_record=hook
    )
    self.assertEqual(seen, history)
    self.assertEqual([record['step'] for record in seen], [*range(2, 21, 2)])
    self.assertEqual(written, list(range(1, 11)))  # After it was written.
    self.assertGreater(taken[-1], 3)  # Live: while there is more to train.

  def test_an_exception_ends_the_run_and_the_same_call_resumes(self):
    want, history = whole()
    folder, seen, rest = self.folder(), [], []
    again = functools.partial(
      distill, workdir=folder, held_out=X, log_every=2, save_every=4
    )
    with self.assertRaises(Ended):
      again(on_record=end_after(7, seen))
    self.assertEqual(seen, history[:7])
    self.assertEqual(checkpoints_lib.latest(folder), 12)
    params, same = again(on_record=rest.append)
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(same, history)
    self.assertEqual(rest, history[6:])
    # Finished: nothing is trained, and nothing recorded.
    params, same = again(on_record=end_after(1))
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(same, history)

  def test_early_stopping_without_a_workdir(self):
    """The exception of the hook is the one that is raised."""
    with self.assertRaises(Ended):
      distill(log_every=2, on_record=end_after(1))


@pytest.mark.slow
class TrainableTest(FolderTest):
  DECAYING = staticmethod(functools.partial(optax.adamw, 0.1, weight_decay=0.5))

  @parameterized.parameters(
    ('lo*', {'low'}),
    ('^(low|out)$', {'low', 'out'}),
  )
  def test_the_others_are_bit_for_bit_what_they_were(self, pattern, moved):
    plan = cxjax.plan(BIG, SMALL, X, num_steps=6, layers=())
    params, _ = distill(plan, trainable=pattern, optimizer=self.DECAYING())
    for name, before in SMALL.params.items():
      self.assertEqual(
        np.array_equal(params[name], before), name not in moved, name
      )

  def test_paths_of_flax_and_several_students(self):
    students = network(Net((4,)), X, 0, 1)
    plan = cxjax.plan(TEACHER, students, X, num_steps=20, share=0.5)
    found, _ = distill(
      plan, trainable='Dense_*/bias', optimizer=self.DECAYING()
    )
    for before, after in zip(students.params, found, strict=True):
      for path, leaf in jax.tree.leaves_with_path(before):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        layer, kind = name.split('/')[-2:]
        same = np.array_equal(after['params'][layer][kind], leaf)
        self.assertEqual(same, kind == 'kernel', name)

  @parameterized.parameters(
    ('hidden', 'no parameter of the student. Their paths are: high, low, out'),
    ('(low', 'is no regular expression'),
    ('out', "trains no parameter with 'low'"),
    (('low', 3), "must be a pattern of paths, as 'block*'"),
  )
  def test_refuses(self, pattern, message):
    plan = cxjax.plan(BIG, SMALL, X, num_steps=6, layers=[('low', 'low')])
    with self.assertRaises(errors.UserError) as caught:
      distill(plan, trainable=pattern)
    self.assertIn(message, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


def turning(count):
  """A learning rate that is negative from the tenth step on: it unlearns."""
  return jnp.where(count < 10, 0.5, -0.5)


@pytest.mark.slow
class KeepBestTest(FolderTest):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    students = cxjax.from_fn(two_layers, [SMALL.params, parameters(2)])
    plan = cxjax.plan(BIG, students, X, num_steps=20, layers=())
    cls.train = functools.partial(
      distill, plan, held_out=X, optimizer=optax.sgd(turning), log_every=2
    )
    cls.best = cls.train(keep_best='loss')

  def losses_of(self, students):
    want, _ = BIG.apply(BIG.params, X)
    return [
      float(losses.kl(two_layers(params, X)[0], want).mean())
      for params in students
    ]

  def test_the_best_that_were_evaluated_come_back(self):
    students, history = self.best
    scores = {
      r['step']: np.mean(r['eval/loss']) for r in history if 'eval/loss' in r
    }
    best = min(scores, key=scores.get)
    self.assertEqual(best, 10)
    self.assertLess(scores[10], 0.9 * scores[20])
    record = next(r for r in history if r['step'] == best)
    np.testing.assert_allclose(
      self.losses_of(students), record['eval/loss'], rtol=1e-4
    )
    last, same = self.train()
    self.assertEqual(same, history)  # What is kept changes nothing else.
    np.testing.assert_allclose(
      self.losses_of(last), history[-1]['eval/loss'], rtol=1e-4
    )

  @parameterized.parameters(4, 7)  # Before and after the best.
  @pytest.mark.slow
  def test_a_run_that_was_ended_finds_it_again(self, number):
    workdir = self.folder()
    want, history = self.best
    with self.assertRaises(Ended):
      self.train(keep_best='loss', workdir=workdir, on_record=end_after(number))
    for _ in range(2):  # Resumed, and finished before.
      students, same = self.train(keep_best='loss', workdir=workdir)
      chex.assert_trees_all_equal(students, want)
      self.assertEqual(same, history)

  def test_more_may_be_better(self):
    """By a metric of one's own, of which the greatest is the best."""
    score = cxjax.Metric(lambda got, want: -losses.kl(got, want))
    names = {'agreement': lambda a, b: a[:, 0] > 0, 'score': score}
    best, _ = self.train(keep_best='score', metrics=names)
    chex.assert_trees_all_equal(best, self.best[0])

  def test_a_metric_that_there_is_not(self):
    with self.assertRaisesRegex(
      errors.UserError, "keep_best 'los'. Did you mean 'loss'"
    ):
      self.train(keep_best='los')


@pytest.mark.slow
class ResumeTest(FolderTest):
  @parameterized.parameters('iterator', 'grain', 'grain_loader')
  def test_a_run_that_was_killed_goes_on(self, kind):
    """In the second stage: its batches are those that come next."""
    if kind.startswith('grain'):
      import grain  # noqa: PLC0415

      data = grain.MapDataset.source(batches()).repeat().to_iter_dataset()
      make = lambda: iter(data)
      if kind == 'grain_loader':  # Its states are bytes.
        order = grain.samplers.IndexSampler(12, num_epochs=None)
        make = lambda: grain.DataLoader(data_source=Arrays(), sampler=order)
    else:
      # As those of the list, which comes again and again.
      stream = lambda: iter(batches() + batches() + batches()[:1])
      make = stream
    folder = self.folder()
    again = functools.partial(
      distill, PLAN, workdir=folder, held_out=X, log_every=2
    )
    with self.assertRaises(Ended):
      again(make(), on_record=end_after(7))
    self.assertEqual(checkpoints_lib.latest(folder), 12)
    params, history = again(make())
    want, same = whole(2)
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(history, same)

  def test_as_many_batches_as_steps(self):
    """Where the last of them are no whole chunk as well."""
    data = batches(number=20)
    want, _ = distill(data=data, held_out=X, log_every=2)
    params, _ = distill(data=iter(data), held_out=X, log_every=7, save_every=7)
    chex.assert_trees_all_close(params, want, rtol=1e-5)
    with self.assertRaisesRegex(errors.UserError, 'ended after 19'):
      distill(data=iter(data[:19]), log_every=7)


class LoaderTest(FolderTest):
  """Each is read as the list of the same batches, or refused in one line."""

  def same(self, data, **options):
    params, history = distill(data=data, log_every=2, held_out=X, **options)
    want, same = whole()
    chex.assert_trees_all_equal(params, want)
    self.assertEqual(history, same)

  def rows(self):
    """The path of a database of the batches."""
    path = self.folder() / 'rows'
    with contextlib.closing(sqlite3.connect(path)) as opened:
      opened.execute('create table rows (row blob)')
      data = [(x.tobytes(),) for x in batches()]
      opened.executemany('insert into rows values (?)', data)
      opened.commit()
    return path

  def test_a_connection_that_knows_one_thread(self):
    path = self.rows()
    read = lambda opened: (
      np.frombuffer(row, np.float32).reshape(B, -1)
      for (row,) in opened.execute('select row from rows')
    )

    class Batches:
      def __iter__(self):
        return read(sqlite3.connect(path))

    self.same(Batches())
    with (
      contextlib.closing(sqlite3.connect(path)) as opened,
      self.assertRaisesRegex(errors.UserError, 'Batch 1 .*`__iter__`'),
    ):
      distill(data=read(opened))

  @pytest.mark.slow
  def test_a_buffer_that_is_used_again(self):
    def stream():
      buffer = np.empty_like(X)
      while True:
        for x in batches():
          buffer[:] = x
          yield buffer

    self.same(stream())

  def test_arrays_that_are_deleted(self):
    def stream():
      while True:
        for x in map(jnp.array, batches()):
          yield x
          x.delete()

    self.same(stream())

  def test_an_error_has_the_number_of_the_batch(self):
    cause, threads = OSError('gone'), []

    def stream():
      threads.append(threading.current_thread())
      yield from batches()
      raise cause

    with self.assertRaisesRegex(
      errors.UserError, '^Batch 13 cannot be read: OSError: gone.$'
    ) as caught:
      distill(data=stream(), held_out=X)
    self.assertIs(caught.exception.__cause__, cause)
    self.assertFalse(threads[0].is_alive())

  def test_a_state_that_cannot_be_saved_is_refused_first(self):
    class Batches:
      def __iter__(self):
        return self

      def __next__(self):
        return X

      def get_state(self):
        return {'rng': object()}

      def set_state(self, state):
        del state

    with self.assertRaisesRegex(errors.UserError, "'rng'. is a object"):
      distill(data=Batches(), held_out=X, on_record=self.fail)

  def test_held_out_may_not_be_the_iterator_of_the_batches(self):
    data = iter(batches())
    with self.assertRaisesRegex(errors.UserError, 'an iterator of its own'):
      distill(data=data, held_out=data)


class LastBatchTest(FolderTest):
  @pytest.mark.slow
  def test_dropped(self):
    short = [*batches(), X[:5]]
    params, _ = distill(data=short, last_batch='drop', log_every=2, held_out=X)
    chex.assert_trees_all_equal(params, whole()[0])

  @pytest.mark.slow
  def test_dropped_and_resumed(self):
    folder, short = self.folder(), [*batches()[:3], X[:5]]
    again = functools.partial(
      distill, data=short, last_batch='drop', log_every=2, held_out=X
    )
    want, _ = again()
    with self.assertRaises(Ended):
      again(workdir=folder, on_record=end_after(7))
    chex.assert_trees_all_equal(again(workdir=folder)[0], want)
    with self.assertRaisesRegex(errors.UserError, 'last_batch'):
      again(workdir=folder, last_batch='error')

  def test_no_whole_batch(self):
    for data in ([X[:5]], itertools.repeat(X[:5])):
      with self.assertRaisesRegex(errors.UserError, 'Batch 2 and the one befo'):
        distill(data=data, last_batch='drop', held_out=X)

  @parameterized.parameters(True, False)
  @pytest.mark.slow
  def test_padded_is_the_mean_of_the_real_examples(self, labels):
    """In hidden and in output stages, with labels and without."""
    rows = [B, 5]
    data = [(batches()[i][:n], Y[:n]) for i, n in enumerate(rows)]
    tiled = [
      [np.concatenate([a] * (40 // len(a))) for a in one] for one in data
    ]
    options = {'alpha': 0.5} if labels else {}
    if not labels:
      data, tiled = ([x for x, _ in some] for some in (data, tiled))
    found = []
    for some, last in ((data, 'pad'), (tiled, 'error')):
      plan = cxjax.plan(
        BIG, SMALL, some[0], num_steps=12, layers=[('high', 'low')], **options
      )
      found.append(
        distill(
          plan,
          some,
          last_batch=last,
          held_out=data[0],
          optimizer=optax.sgd(0.1),
          log_every=6,
        )
      )
    (params, history), (want, same) = found
    chex.assert_trees_all_close(params, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      [record['loss'] for record in history],
      [record['loss'] for record in same],
      rtol=1e-5,
    )

  def test_a_choice_that_is_none(self):
    with self.assertRaisesRegex(errors.UserError, "'dorp'.*'drop'"):
      distill(last_batch='dorp')


@pytest.mark.slow
class ArgumentsTest(FolderTest):
  @parameterized.parameters(
    ({'plan': TEACHER}, 'plan is a ModelAdapter: make one with cxjax.plan'),
    ({'log_every': 0}, 'log_every=0'),
    ({'log_every': 2.5}, 'log_every=2.5 must be a whole number'),
    ({'eval_every': 0}, 'eval_every=0'),
    ({'save_every': 'x'}, "save_every='x' must be a whole"),
    ({'optimizer': 'adam'}, "optimizer='adam' must be one of optax"),
    ({'data': 3}, 'batches are a int'),
    ({'learning_rate': lambda step: 0.1}, 'learning_rate is.*optimizer=optax'),
    ({'learning_rate': 0.0}, 'learning_rate=0.0 must be a finite number'),
    ({'learning_rate': float('nan')}, 'learning_rate=nan must be'),
    ({'seed': -1}, 'seed=-1'),
    ({'seed': 0.5}, 'seed=0.5'),
    ({'held_out': X[:0]}, 'held_out has parts of 0 examples'),
    ({'held_out': X[:, :4]}, r'held_out has shape \[8, 4\]'),
    ({'data': [X[:, :4]]}, r'the first batch has shape \[8, 4\]'),
    ({'microbatches': 3}, 'microbatches=3 must divide'),
    ({'microbatches': 1.5}, 'microbatches=1.5 must be a whole'),
    ({'on_record': 3}, 'on_record=3 must be a function'),
    ({'workdir': 3}, 'workdir=3 must be a folder'),
    ({'workdir': ''}, "workdir='' must be a folder"),
    ({'mesh': {'tensor': 2}}, "'tensor'"),
    ({'mesh': {'student': 'tenser'}}, "'tenser'.*mean 'tensor'"),
    ({'mesh': {'model': 2, 'student': 'tensor'}}, 'needs the partition_rules'),
  )
  def test_what_cannot_be(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      distill(**options)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ([X, X[:5]], r'batch 2 has shape \[5, 6\].*\[8, 6\].*last_batch='),
    ([(X, X)], 'batch 1 has x, y, the example of the plan x'),
    ([], 'There is no batch'),
    (iter([]), 'There is no batch'),
    (iter(batches(number=5)), 'ended after 5.*iterated'),
  )
  def test_batches_that_cannot_be(self, data, message):
    with self.assertRaisesRegex(errors.UserError, message):
      distill(data=data, held_out=X)

  def test_parameters_that_match_no_partition_rule(self):
    rules = [('low$', 1)]
    model = cxjax.from_fn(two_layers, parameters(0, 4), partition_rules=rules)
    plan = cxjax.plan(BIG, model, X, num_steps=2, layers=())
    mesh = {'data': 1, 'model': 2, 'student': 'tensor'}
    with self.assertLogs(level='WARNING') as log:
      params, _ = distill(plan, mesh=mesh)
    self.assertRegex(
      log.output[0], 'student has 2 parameters that match no partition rule.*'
    )
    self.assertIn(': high, out.', log.output[0])
    want, _ = distill(plan, mesh={'data': 1})
    chex.assert_trees_all_close(params, want, rtol=1e-4, atol=1e-6)

  @pytest.mark.slow
  def test_arrays_and_numbers_of_other_libraries(self):
    class Tensor:
      def __init__(self, array):
        self.array = array

      def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)

    class Batches:  # Without __iter__.
      def __getitem__(self, i):
        return [Tensor(batches()[i]), Tensor(y)]

    y = Y.astype(np.int64)
    plan = cxjax.plan(
      BIG,
      SMALL,
      [Tensor(X), Tensor(y)],
      num_steps=np.int64(20),
      steps=np.array([10, 10]),
      layers=zip(['high'], ['low'], strict=True),
    )
    rate = 2**-10
    got, history = distill(
      plan,
      Batches(),
      learning_rate=np.float32(rate),
      log_every=np.int64(2),
      seed=np.int32(0),
      workdir=self.folder(),
    )
    self.assertIn('eval/accuracy', history[-1])
    layers = [('high', 'low')]
    same = cxjax.plan(
      BIG, SMALL, (X, y), num_steps=20, steps=(10, 10), layers=layers
    )
    self.assertEqual(same.stages, plan.stages)
    data = [(x, y) for x in batches()]
    want, _ = distill(same, data, learning_rate=rate, log_every=2)
    chex.assert_trees_all_equal(got, want)

  def test_numbers_of_numpy_in_terms(self):
    term = cxjax.Term(
      'low',
      'high',
      weight=np.float32(0.5),
      scale=np.float32(2),
      projection='gaussian',
      regressor=True,
      width=np.int64(3),
    )
    stage = cxjax.Stage('hidden', np.int64(2), (term,))
    plan = cxjax.plan(BIG, SMALL, X, stages=stage)
    _, history = distill(plan, workdir=self.folder())
    self.assertEqual(history[-1]['step'], 2)


@pytest.mark.slow
class LabelsTest(FolderTest):
  @parameterized.parameters(7, -100)
  def test_labels_of_no_class(self, label):
    y = np.full(B, label)
    plan = cxjax.plan(BIG, SMALL, (X, y), num_steps=20, layers=(), alpha=0.5)
    with self.assertRaisesRegex(errors.UserError, f'{label}: the output has 3'):
      distill(plan, [(X, y)], held_out=(X, y * 0))
    with self.assertRaisesRegex(errors.UserError, f'{label}: the output has 3'):
      distill(plan, [(X, y * 0)], held_out=(X, y))

  def test_labels_that_no_weight_counts(self):
    weights = np.array([1] * (B - 2) + [0] * 2, np.float32)
    data = {'x': X, 'y': Y, 'weights': weights}
    plan = cxjax.plan(BIG, SMALL, data, num_steps=20, layers=(), alpha=0.5)
    optimizer = optax.MultiSteps(optax.adam(1e-3), 2)
    want, history = distill(plan, [data], optimizer=optimizer)
    ignored = {**data, 'y': np.where(weights == 0, -100, Y)}
    got, same = distill(plan, [ignored], optimizer=optimizer)
    chex.assert_trees_all_equal(got, want)
    self.assertEqual(history[-1], same[-1])
    with self.assertRaisesRegex(
      errors.UserError, r"'weights' of shape \[8, 2\]"
    ):
      bad = {**data, 'weights': np.ones((B, 2))}
      cxjax.plan(BIG, SMALL, bad, num_steps=20, layers=(), alpha=0.5)

  def test_supervised(self):
    stages = cxjax.supervised(20)
    plan = cxjax.plan(BIG, SMALL, {'x': X, 'y': Y}, stages=stages)
    params, history = distill(plan, [{'x': X, 'y': Y}])
    got, _ = two_layers(params, X)
    np.testing.assert_allclose(
      losses.cross_entropy(got, Y).mean(),
      history[-1]['eval/loss'][0],
      rtol=1e-5,
    )

  def test_labels_that_are_read_by_nothing_may_be_missing(self):
    plan = cxjax.plan(BIG, SMALL, (X, None), num_steps=20)
    self.assertNotIn('y', plan.batch)


class EachStudentTest(parameterized.TestCase):
  """Students side by side, each with a rate and a seed of its own."""

  def plan(self, *seeds):
    """One hidden stage of students whose starts have these seeds."""
    students = cxjax.from_fn(two_layers, list(map(parameters, seeds)))
    term = cxjax.Term('low', 'high', projection='gaussian')
    stage = cxjax.Stage('hidden', 10, term)
    return cxjax.plan(BIG, students, X, stages=stage)

  @pytest.mark.slow
  def test_each_is_as_alone_and_outlives_one_that_diverges(self):
    with self.assertLogs(level='WARNING') as logged:
      together, history = distill(
        self.plan(1, 2, 2),
        learning_rate=[1e-3, 1e38, 3e-2],
        seed=[5, 6, 6],
        diverged='keep',
      )
    self.assertIn('seed 1 is not finite', logged.output[0])
    (alone,), _ = distill(self.plan(2), learning_rate=3e-2, seed=[6])
    chex.assert_trees_all_close(together[2], alone, rtol=1e-5, atol=1e-6)
    self.assertTrue(np.isnan(together[1]['low']).all())
    self.assertTrue(np.isfinite(history[-1]['eval/agreement'])[[0, 2]].all())

  @parameterized.parameters(
    (dict(learning_rate=[1e-3]), r'=\[0.001\] has 1, .* 2 students: give one'),
    (dict(learning_rate=[1e-3, -1.0]), 'learning_rate=-1.0'),
    (dict(seed=[1, 2, 3]), r'seed=\[1, 2, 3\] has 3, .* 2 students'),
    (dict(diverged='ignore'), "'ignore'.*error, keep"),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(errors.UserError, message):
      distill(self.plan(1, 2), **arguments)
