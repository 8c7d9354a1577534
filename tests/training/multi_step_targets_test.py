"""Targets of many steps that are stored."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

from cxjax import errors
from cxjax.training import batch_targets
from cxjax.training import multi_step
from tests.training.many_steps import HIDDEN
from tests.training.many_steps import JOINT
from tests.training.many_steps import SEEDS
from tests.training.many_steps import SPAN
from tests.training.many_steps import TEACHER
from tests.training.many_steps import B
from tests.training.many_steps import args_of
from tests.training.many_steps import assert_close
from tests.training.many_steps import draw
from tests.training.many_steps import options
from tests.training.many_steps import stack
from tests.training.many_steps import teacher_params
from tests.training.many_steps import train

pytestmark = pytest.mark.slow


class StoredTargetsTest(parameterized.TestCase):
  @parameterized.parameters((HIDDEN, True, 1), (JOINT, False, 2))
  def test_are_as_good_as_the_teacher(self, stage, shared, lookahead):
    start, stop = 4, 8
    keys = stack(2)[:1] if shared else stack(2)
    want = train(stage, start, stop, keys=keys)
    states, _, _, _, matrices, *_ = args_of(stage, start, stop)
    steps = start + jnp.arange(4)
    make = lambda steps: batch_targets.many_targets(
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
