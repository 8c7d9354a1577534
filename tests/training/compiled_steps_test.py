"""Tests of what is compiled for a run, and how often."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax.methods import projections
from cxjax.methods import targets as targets_lib
from cxjax.training import abstract
from cxjax.training import compiled_steps
from cxjax.training import multi_step
from tests.training import runs

pytestmark = pytest.mark.slow

Stage, Term = runs.Stage, runs.Term


@functools.cache
def made():
  """A specification, its programs and its plan; the stages of `runs`."""
  _, steps, planned = runs.programs(runs.spec())
  return steps, planned


def spec():
  return made()[0]._spec


def states(index, seed=0):
  steps, planned = made()
  keys = steps.keys(spec().keys.stage, seed)
  return steps.init_stage(planned[index], keys, steps.init(spec().keys.init))


def train_args(index, start, stop, params=None, span=(0, 6), schedule=(6, 0)):
  """Arguments of `CompiledSteps.train_many_steps`."""
  steps, planned = made()
  params = runs.teacher_params() if params is None else params
  matrices = steps.matrices(planned[index], index)
  keys = spec().keys.data
  args = states(index), start, stop, params, matrices, keys, None, None
  return planned[index], schedule, span, *args


class CompiledTest(parameterized.TestCase):
  """Each program is compiled once."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.set_mesh(runs.MESH))

  def compiled(self, args):
    """Advances; how many programs were compiled, of ours and by XLA."""
    events = []
    listen = lambda event, *_, **__: events.append(event)
    steps, _ = made()
    jax.block_until_ready(args[3:])
    before = len(steps)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
      jax.block_until_ready(steps.train_many_steps(*args))
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)
    inside = [e for e in events if 'backend_compile' in e]
    return len(steps) - before, len(inside)

  def test_nothing_differs_enough_to_compile_again(self):
    steps, _ = made()
    steps.train_many_steps(*train_args(0, 0, 4))
    for change in (
      dict(start=4, stop=6),  # Another place.
      dict(start=0, stop=4, params=runs.teacher_params(1)),
      dict(start=0, stop=4, schedule=(20, 3)),
      dict(start=0, stop=4, span=(7, 90)),
      dict(index=1, start=6, stop=8),  # Another stage of the same objective.
    ):
      args = train_args(**{'index': 0, **change})
      self.assertEqual(self.compiled(args), (0, 0), change)

  def test_seconds_are_those_of_compiling(self):
    steps = compiled_steps.CompiledSteps(spec())
    self.assertEqual((len(steps), steps.seconds), (0, 0.0))
    steps.keys(spec().keys.stage, 3)
    taken = steps.seconds
    self.assertGreater(taken, 0)
    steps.keys(spec().keys.stage, 4)
    self.assertEqual((len(steps), steps.seconds), (1, taken))


class ProgramTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.set_mesh(runs.MESH))

  def test_init(self):
    steps, _ = made()
    found = steps.init(spec().keys.init)
    init = jax.jit(runs.STUDENT.init)
    for seed in range(runs.SEEDS):
      want = init(spec().keys.init[seed], jnp.zeros((1, runs.BITS)))
      got = jax.tree.map(lambda leaf, i=seed: leaf[i], found)
      chex.assert_trees_all_close(got, want, rtol=1e-6)

  def test_students_that_are_given_stay_the_callers(self):
    init = lambda key: runs.STUDENT.init(key, jnp.zeros((1, runs.BITS)))
    start = tuple(map(init, spec().keys.init))
    given = runs.spec((Stage('s', 5, runs.LABELS),), teacher=None, start=start)
    steps = compiled_steps.CompiledSteps(given)
    (planned,) = given.plan()
    params = steps.init(given.keys.init)
    steps.init_stage(planned, given.keys.stage, params)  # Donates `params`.
    params = steps.init(given.keys.init)
    for seed, want in enumerate(start):
      got = jax.tree.map(lambda leaf, i=seed: leaf[i], params)
      chex.assert_trees_all_equal(got, want)

  def test_matrices_are_of_their_stage_and_seed(self):
    steps, planned = made()
    early, late = (steps.matrices(planned[i], i)['hidden0'] for i in (0, 1))
    self.assertEqual(early.shape, (runs.SEEDS, 6, 4))
    self.assertLen(np.unique(np.stack([*early, *late]), axis=0), 4)
    keys = steps.keys(spec().keys.stage, 2)
    want = projections.random_projection(keys[1], 'gaussian', (6, 4))
    np.testing.assert_allclose(late[1], want, rtol=1e-6)
    self.assertEqual(steps.matrices(planned[2], 2), {})

  def test_matrices_of_terms(self):
    """Each term has its own, unless it shares."""
    shared = dict(projection='gaussian', shared_projection=True)
    own = dict(projection='gaussian')
    term = lambda **fields: Term('hidden0', 'hidden0', **fields)
    terms = (term(**own), term(**own), term(**shared), term(**shared))
    given = runs.spec((Stage('a', 5, terms), Stage('b', 5, terms)))
    steps, plan = compiled_steps.CompiledSteps(given), given.plan()
    one, two = (steps.matrices(plan[i], i) for i in (0, 1))
    names = list(plan[0].projections)
    self.assertCountEqual(one, names)
    for a, b in ((2, 3),):
      np.testing.assert_array_equal(one[names[a]], one[names[b]])
    np.testing.assert_array_equal(one[names[2]], two[names[2]])
    every = [one[names[0]], one[names[1]], two[names[0]], two[names[1]]]
    self.assertLen(np.unique(np.stack(every), axis=0), 4)
    given = runs.spec((Stage('a', 5, terms[:2]),))
    steps, (plan,) = compiled_steps.CompiledSteps(given), given.plan()
    self.assertFalse(np.array_equal(*steps.matrices(plan, 0).values()))

  def test_shared_projections_are_not_those_of_a_stage(self):
    """Otherwise the terms of stage 0 would share with the others."""
    shared = Term(
      'hidden0', 'hidden0', projection='gaussian', shared_projection=True
    )
    own = Term('hidden0', 'hidden0', projection='gaussian')
    given = runs.spec((Stage('a', 5, (own, shared)),))
    steps, (plan,) = compiled_steps.CompiledSteps(given), given.plan()
    found = steps.matrices(plan, 0)
    self.assertFalse(np.array_equal(*found.values()))

  def test_the_teacher_of_a_stage(self):
    steps, (early, late, _) = made()
    for planned, seed in ((early, 1), (late, 0)):
      chex.assert_trees_all_equal(
        steps.stage_teacher(planned), runs.teacher_params(seed)
      )
    alone = Stage('s', 5, runs.LABELS)
    for teacher in (None, runs.teacher()):
      given = runs.spec((alone,), teacher=teacher)
      steps = compiled_steps.CompiledSteps(given)
      self.assertIsNone(steps.stage_teacher(given.plan()[0]))
    given = runs.spec(teacher=runs.teacher(available=False))
    steps = compiled_steps.CompiledSteps(given)
    self.assertIsNone(steps.stage_teacher(given.plan()[0]))

  def test_evaluate_and_agreement(self):
    steps, _ = made()
    params = steps.init(spec().keys.init)
    found = steps.evaluate(params)
    self.assertCountEqual(found, ('accuracy', 'loss'))
    self.assertEqual(found['loss'].shape, (runs.SEEDS,))
    found = steps.agreement(params, runs.teacher_params())
    self.assertCountEqual(found, ('agreement', 'teacher_kl'))

  def test_targets_are_those_of_the_training(self):
    """What the cache stores: for each seed, of the terms with a teacher."""
    steps, planned = made()
    for index, name in ((0, 'hidden0'), (2, 'output')):
      matrices = steps.matrices(planned[index], index)
      batches, found = steps.targets(
        planned[index], 5, None, runs.teacher_params(), matrices
      )
      self.assertEqual(list(found), [name])
      make = jax.jit(
        functools.partial(
          targets_lib.make_targets,
          runs.TEACHER.apply,
          runs.teacher_params(),
          stage=planned[index].stage,
        )
      )
      for seed in range(runs.SEEDS):
        batch = runs.draw(spec().keys.data[seed], 5)
        got = jax.tree.map(lambda leaf, i=seed: leaf[i], batches)
        chex.assert_trees_all_equal(got, batch)
        matrix = jax.tree.map(lambda leaf, i=seed: leaf[i], matrices)
        want = make(matrix, batch)
        np.testing.assert_allclose(found[name][seed], want[name], rtol=1e-5)

  def test_advance_is_many_steps(self):
    steps, planned = made()
    got = steps.train_many_steps(*train_args(2, 12, 16, span=(11, 9)))
    train = functools.partial(
      multi_step.train_many_steps,
      draw=spec().batch,
      student=runs.STUDENT.apply,
      teacher=runs.TEACHER.apply,
      stage=planned[2].stage,
      tx=spec().optimizer(6, 0),
      mask=planned[2].mask,
      lookahead=spec().lookahead_steps,
    )
    want = jax.jit(train)(
      states(2),
      12,
      16,
      runs.teacher_params(),
      {},
      spec().keys.data,
      None,
      None,
      (11, 9),
    )
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


class AbstractTest(parameterized.TestCase):
  @parameterized.parameters(0, 2)
  def test_shapes_are_those_of_the_arguments(self, index):
    """The program that a dry run compiles is the one that a run dispatches."""
    steps, planned = made()
    with jax.set_mesh(runs.MESH):
      args = (
        states(index),
        *multi_step.int32_arguments((6, 0), (0, 6), 0, 4),
        steps.place_teacher(runs.teacher_params()),
        steps.matrices(planned[index], index),
        spec().keys.data,
        None,
        None,
      )
    shape = lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf))
    shapes = abstract.arguments(spec(), planned[index])
    self.assertEqual(
      jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes),
      jax.tree.map(shape, args),
    )
