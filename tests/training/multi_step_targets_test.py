"""Targets of many steps: made at once, or stored."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import pytest

from cxjax import errors
from cxjax.methods import targets as targets_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import multi_step
from tests.methods import networks
from tests.training.many_steps import HIDDEN
from tests.training.many_steps import JOINT
from tests.training.many_steps import LABELS
from tests.training.many_steps import SEEDS
from tests.training.many_steps import SPAN
from tests.training.many_steps import TEACHER
from tests.training.many_steps import B
from tests.training.many_steps import D
from tests.training.many_steps import Stage
from tests.training.many_steps import Term
from tests.training.many_steps import args_of
from tests.training.many_steps import assert_close
from tests.training.many_steps import draw
from tests.training.many_steps import options
from tests.training.many_steps import pick
from tests.training.many_steps import stack
from tests.training.many_steps import teacher_params
from tests.training.many_steps import train

pytestmark = pytest.mark.slow

# Several terms on sequences: masks, weights, centered means of one batch each.
SEQUENCES = Stage(
  'sequences',
  5,
  (
    Term(target='labels'),
    Term(top_k=2),
    Term('low', 'high', projection='gaussian', centered=True),
    Term(
      'high', 'low', tokens='predicted', centered=True, norm='layer', scale=2.0
    ),
    Term('low', 'low', pool='mean', centered=True, name='mean'),
  ),
)


class ManyTargetsTest(parameterized.TestCase):
  """The targets of K batches are those of each of them."""

  @parameterized.parameters((SEEDS, 2, 1), (1, 2, 4))
  def test_are_those_of_each_batch(self, streams, microbatches, devices):
    every = [
      [networks.sequence_batch(10 * s + k) for k in range(2)]
      for s in range(streams)
    ]
    join = lambda *leaves: jnp.stack(leaves)
    batches = jax.tree.map(join, *[jax.tree.map(join, *one) for one in every])
    batches['x']['dropout'] = jax.random.split(
      jax.random.key(0), (streams, 2, networks.B)
    )
    teacher = networks.sequence_params(5, 0)
    matrices = {'low': jax.random.normal(jax.random.key(1), (SEEDS, 5, 3))}

    def fun(batches):
      return multi_step.many_targets(
        networks.sequence_apply,
        teacher,
        matrices,
        batches,
        SEQUENCES,
        microbatches,
      )

    with jax.set_mesh(mesh_lib.make({'data': devices}, networks.B)):
      found = jax.device_get(jax.jit(fun)(batches))
    self.assertCountEqual(found, SEQUENCES.named_terms)
    one = jax.jit(
      lambda matrices, batch: targets_lib.make_targets(
        networks.sequence_apply, teacher, matrices, batch, SEQUENCES
      )
    )
    for seed in range(SEEDS):
      for k in range(2):
        stream = seed % streams
        want = one(pick(matrices, seed), every[stream][k])
        for name, value in want.items():
          # A projection belongs to a seed, other targets to a stream.
          lead = seed if name == 'low' else stream
          got = jax.tree.map(lambda leaf, i=lead, j=k: leaf[i, j], found[name])
          chex.assert_trees_all_close(got, value, rtol=1e-5, atol=1e-5)

  def test_labels_alone_need_no_teacher(self):
    batches = {'x': jnp.zeros((1, 2, B, D)), 'y': jnp.zeros((1, 2, B), int)}
    found = multi_step.many_targets(None, None, None, batches, LABELS)
    self.assertIs(found['labels'], batches['y'])


class StoredTargetsTest(parameterized.TestCase):
  @parameterized.parameters((HIDDEN, True, 1), (JOINT, False, 2))
  def test_are_as_good_as_the_teacher(self, stage, shared, lookahead):
    start, stop = 4, 8
    keys = stack(2)[:1] if shared else stack(2)
    want = train(stage, start, stop, keys=keys)
    states, _, _, _, matrices, *_ = args_of(stage, start, stop)
    steps = start + jnp.arange(4)
    make = lambda steps: multi_step.many_targets(
      TEACHER.apply,
      teacher_params(),
      matrices,
      multi_step.draw_batches(draw, keys, steps, None),
      stage,
    )
    found = jax.jit(make)(steps)
    stored = {
      name: found[name].swapaxes(0, 1)  # `[T, streams, ...]`.
      for name in stage.teacher_terms
    }
    fun = functools.partial(
      multi_step.train_many_steps,
      **{**options(stage), 'teacher': None},
      lookahead=lookahead,
    )
    args = states, start, stop, None, None, keys, None, stored, SPAN
    assert_close(jax.jit(fun)(*args), want)

  def test_those_of_another_stage_are_refused(self):
    """No term learns labels in place of a target that is missing."""
    states, start, stop, *_ = args_of(JOINT, 4, 8)
    stored = {'output': jnp.zeros((4, SEEDS, B, 2))}
    fun = functools.partial(
      multi_step.train_many_steps,
      **{**options(JOINT), 'teacher': None},
      lookahead=1,
    )
    with self.assertRaisesRegex(errors.UserError, 'keys labels, output, hid'):
      fun(states, start, stop, None, None, stack(2), None, stored, SPAN)
