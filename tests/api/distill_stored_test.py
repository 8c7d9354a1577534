"""Runs of `distill` on stored targets are those with the teacher."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

import cxjax
from cxjax import errors
from cxjax.methods import output_pieces
from cxjax.training import compiled_steps
from cxjax.training import target_cache
from small_networks import BIG
from small_networks import PLAN
from small_networks import SMALL
from small_networks import C
from small_networks import X
from small_networks import Y
from small_networks import batches
from small_networks import parameters
from small_networks import two_layers
from tests.api.distilled import Ended
from tests.api.distilled import FolderTest
from tests.api.distilled import distill
from tests.api.distilled import end_after
from tests.api.distilled import whole

LAYERS = [('high', 'low')]
pytestmark = pytest.mark.slow


class StoredTargetsTest(FolderTest):
  def setUp(self):
    super().setUp()
    self.root = self.folder()

  def cache(self, output='hidden', **fields):
    return {'folder': self.root / 'targets', 'output': output, **fields}

  def assert_same(self, found, want):
    chex.assert_trees_all_close(found.params, want.params, rtol=0, atol=1e-6)
    losses = [[r['loss'] for r in run.history] for run in (found, want)]
    np.testing.assert_allclose(*losses, rtol=1e-5)

  @parameterized.parameters('logits', 'hidden')
  def test_is_the_run_with_the_teacher(self, output):
    """Made by the first call; the second runs no teacher."""
    run = lambda **kwargs: distill(
      PLAN, log_every=2, held_out=X, cache=self.cache(output), **kwargs
    )
    self.assert_same(run(), whole(2))
    # A list of 12 batches is stored once, although there are 20 steps.
    found = target_cache.load(self.root / 'targets')
    self.assertEqual(found.record['cache']['batches'], 12)
    width = {'logits': C, 'hidden': 4}[output]
    stored = found.read(1, 3)[0]['targets']['output']
    self.assertEqual(stored.shape, (1, *X.shape[:1], width))
    with mock.patch.object(target_cache, 'write', side_effect=AssertionError):
      self.assert_same(run(workdir=self.root / 'run'), whole(2))

  def test_outputs_in_pieces_with_labels(self):
    plan = cxjax.plan(
      BIG, SMALL, (X, Y), num_steps=8, layers=(), alpha=0.3, top_k=2
    )
    data = [(x, Y) for x in batches(number=8)]
    want = cxjax.distill(plan, data, held_out=(X, Y))
    small = dict(WHOLE_ON_CPU=8, PIECE_ON_CPU=16, FEWEST_ON_CPU=3)
    with mock.patch.multiple(output_pieces, **small):
      found = cxjax.distill(plan, data, held_out=(X, Y), cache=self.cache())
    self.assert_same(found, want)
    self.assertIn('eval/agreement', found.history[-1])

  def test_a_loader_and_buffers_that_are_used_again(self):
    def loader():
      buffer = np.empty_like(X)
      for batch in batches(number=20):
        buffer[:] = batch
        yield buffer

    run = lambda data: distill(
      PLAN, data, held_out=X, cache=self.cache(), workdir=self.root / 'run'
    )
    first = run(loader())
    again = run(loader())  # It is finished.
    chex.assert_trees_all_equal(first.params, again.params)
    self.assert_same(first, distill(PLAN, batches(number=20), held_out=X))

  def test_another_loader_is_refused(self):
    """A generator is looked at, and loses no batch by that."""
    run = lambda seed, **fields: distill(
      PLAN,
      iter(batches(seed, number=20)),
      held_out=X,
      cache=self.cache(**fields),
    )
    first = run(0)
    self.assert_same(first, distill(PLAN, batches(number=20), held_out=X))
    chex.assert_trees_all_equal(run(0).params, first.params)
    with self.assertRaisesRegex(errors.UserError, r'first batch \(another\)'):
      run(1)
    other = run(1, folder=self.root / 'others')
    self.assert_same(other, distill(PLAN, batches(1, number=20), held_out=X))

  def test_a_loader_that_differs_later_is_refused(self):
    """The message has the batch; a begun workdir trains on the stored ones."""
    steps = [*batches(number=20)]
    other = [*steps[:13], *batches(1, number=7)]
    run = lambda data, **kwargs: distill(
      PLAN, iter(data), held_out=X, cache=self.cache(), **kwargs
    )
    workdir = self.root / 'run'
    first = run(steps, workdir=workdir)
    with self.assertRaisesRegex(
      errors.UserError, 'Batch 14 of the loader is not the one whose targets'
    ):
      run(other)
    with self.assertRaisesRegex(errors.UserError, 'ended after 9, and the run'):
      run(steps[:9])
    again = run(other, workdir=workdir)
    chex.assert_trees_all_equal(first.params, again.params)

  def test_a_loader_that_shuffles_resumes(self):
    """The workdir says which targets are its own."""
    run = lambda seed, **kwargs: distill(
      PLAN,
      iter(batches(seed, number=20)),
      held_out=X,
      cache=self.cache(),
      log_every=2,
      **kwargs,
    )
    workdir = self.root / 'run'
    with self.assertRaises(Ended):
      run(0, workdir=workdir, on_record=end_after(7))
    found = run(1, workdir=workdir)
    chex.assert_trees_all_equal(found.params, run(0).params)
    with self.assertRaisesRegex(errors.UserError, 'first batch'):
      run(1, workdir=self.root / 'another')

  def test_several_students(self):
    """Each has a projection of its own; they share the batches."""
    students = cxjax.from_fn(two_layers, [parameters(1), parameters(2)])
    plan = cxjax.plan(BIG, students, X, num_steps=20, layers=LAYERS)
    run = lambda **kwargs: distill(plan, held_out=X, seed=[3, 4], **kwargs)
    self.assert_same(run(cache=self.cache(batches=12)), run())

  def test_a_loader_gives_no_batch_twice(self):
    with self.assertRaisesRegex(errors.UserError, 'only a list can give again'):
      distill(PLAN, iter(batches()), held_out=X, cache=self.cache(batches=12))

  def test_an_interrupted_run_goes_on(self):
    run = lambda **kwargs: distill(
      PLAN, log_every=2, held_out=X, cache=self.cache(), **kwargs
    )
    workdir = self.root / 'run'
    with self.assertRaises(Ended):
      run(workdir=workdir, save_every=4, on_record=end_after(7))
    found = run(workdir=workdir, save_every=4)
    chex.assert_trees_all_equal(found.params, run().params)
    with self.assertRaisesRegex(errors.UserError, r'cache \('):
      other = self.cache('logits', folder=self.root / 'others')
      distill(PLAN, log_every=2, held_out=X, cache=other, workdir=workdir)

  def test_the_head_alone_is_held(self):
    held = []
    stage_teacher = compiled_steps.CompiledSteps.stage_teacher

    def note(self, planned):
      found = stage_teacher(self, planned)
      if self._spec.stored_targets:
        shapes = [leaf.shape for leaf in jax.tree.leaves(found)]
        held.append((planned.stage.name, shapes))
      return found

    with mock.patch.object(compiled_steps.CompiledSteps, 'stage_teacher', note):
      distill(PLAN, held_out=X, cache=self.cache())
    self.assertEqual(held, [('low', []), ('output', [(4, C)])])

  def test_others_are_refused(self):
    distill(PLAN, held_out=X, cache=self.cache())
    other = cxjax.from_fn(two_layers, parameters(5))
    cases = (
      ({'cache': self.cache('logits')}, 'give cache.output=hidden, or'),
      ({'seed': 1}, r'seed \(0 there, 1 here\).*distill\(cache=.*DIR'),
      ({'data': batches(seed=1)}, 'batches'),
      ({'data': batches(number=20)}, 'batches'),
      (
        {'plan': cxjax.plan(other, SMALL, X, num_steps=20, layers=LAYERS)},
        'teacher.params',
      ),
    )
    for fields, message in cases:
      fields = {'plan': PLAN, 'cache': self.cache(), **fields}
      with self.assertRaisesRegex(errors.UserError, message):
        distill(held_out=X, **fields)


class ArgumentTest(FolderTest):
  @parameterized.parameters(
    (3, 'cache=3 must be a dict by names'),
    ({}, 'has no folder: give one, as'),
    ({'folders': 'x'}, "field of cache 'folders'. Did you mean 'folder'"),
    ({'folder': 3}, 'must be a path'),
    ({'output': 'hiden'}, "Did you mean 'hidden'"),
    ({'output': ['x']}, 'Choose one of: logits, hidden'),
    ({'dtype': 'float16'}, 'float32, bfloat16'),
    ({'batches': -1}, 'batches'),
    ({'batches': 21}, 'must be at most the 20 steps'),
  )
  def test_is_refused_in_one_line(self, cache, message):
    root = self.folder()
    if cache and cache != 3 and 'folders' not in cache:
      cache = {'folder': str(root / 'targets'), **cache}
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      distill(PLAN, held_out=X, cache=cache)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEmpty(list(root.iterdir()))

  def test_a_teacher_without_a_head(self):
    def normalized(params, x):
      logits, activations = two_layers(params, x)
      return jax.nn.log_softmax(logits), activations

    teacher = cxjax.from_fn(normalized, parameters(0))
    plan = cxjax.plan(teacher, SMALL, X, num_steps=4, layers=())
    cache = {'folder': self.folder() / 'targets', 'output': 'hidden'}
    with self.assertRaisesRegex(errors.UserError, 'Use cache.output=logits'):
      distill(plan, held_out=X, cache=cache)

  def test_labels_have_no_targets(self):
    stage = cxjax.Stage('labels', 4, cxjax.Term(target='labels'))
    plan = cxjax.plan(BIG, SMALL, (X, Y), stages=(stage,))
    cache = {'folder': self.folder() / 'targets'}
    with self.assertRaisesRegex(errors.UserError, 'no targets to store'):
      cxjax.distill(plan, [(X, Y)], held_out=(X, Y), cache=cache)

  def test_a_folder_with_runs_is_refused(self):
    root = self.folder()
    with self.assertRaisesRegex(errors.UserError, 'holds the workdir'):
      distill(PLAN, cache={'folder': root}, workdir=root / 'run')
    distill(PLAN, held_out=X, workdir=root / 'run')
    with self.assertRaisesRegex(errors.UserError, 'holds a run'):
      distill(PLAN, held_out=X, cache={'folder': root / 'run'})
