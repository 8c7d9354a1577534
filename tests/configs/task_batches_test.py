"""Tests of the checks of what a task of a config makes."""

import dataclasses
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax import tasks
from cxjax.configs import builders
from cxjax.configs import task_batches
from experiments import parity_mlp

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class Own(tasks.SyntheticTask):
  """A task of three classes, some entries of whose batches are replaced."""

  change: dict
  num_classes = 3

  def batch(self, key, step, batch_size):
    x = jax.random.normal(jax.random.fold_in(key, step), (batch_size, 7))
    batch = {'x': x, 'y': (x.sum(-1) > 0).astype(jnp.int32), **self.change}
    return {name: leaf for name, leaf in batch.items() if leaf is not None}


class TaskBatchesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.config = parity_mlp.tiny()
    self.key = jax.random.key(0)

  def held_out(self, **change):
    return task_batches.held_out(self.config, Own(change), self.key)

  @parameterized.parameters(
    ({'y': np.full(64, -1)}, 'Labels from -1 to -1: the output has 3 classes'),
    ({'y': np.full(64, 3)}, 'Labels from 3 to 3: the output has 3 classes'),
    ({'y': np.full((64, 3), 0.5)}, 'must be probabilities'),
    ({'y': None}, r"is a dict of \['x'\]: it must be a dict of 'x', the input"),
    ({'x': None}, r"is a dict of \['y'\]: it must"),
    ({'y': {'a': np.zeros(64)}}, "and 'y', an array of labels"),
    ({'weights': np.full(64, -1.0)}, "'weights' must be finite numbers"),
    ({'weights': np.full(64, np.nan)}, "'weights' must be finite numbers"),
  )
  def test_a_held_out_set_is_refused(self, change, message):
    with self.assertRaisesRegex(
      errors.UserError, f"^The held-out set of the task 'parity'.*{message}"
    ):
      self.held_out(**change)

  @parameterized.parameters(
    ({},),
    ({'y': np.eye(3)[np.zeros(64, int)]},),
    ({'y': np.full(64, -100), 'weights': np.zeros(64)},),
    ({'y': np.full(64, 0.5)},),
  )
  def test_a_held_out_set_is_drawn(self, change):
    found = self.held_out(**change)
    for name, value in change.items():
      np.testing.assert_array_equal(found[name], np.asarray(value))

  def test_stages_of_ones_own_may_compare_real_numbers(self):
    self.config.method = 'custom'
    self.assertEqual(self.held_out(y=np.full((64, 3), 0.5))['y'][0, 0], 0.5)

  def test_a_tuple_in_place_of_a_dict(self):
    with (
      mock.patch.object(Own, 'batch', lambda *args: (jnp.ones(8), jnp.ones(8))),
      self.assertRaisesRegex(errors.UserError, 'is a tuple: it must be a dict'),
    ):
      self.held_out()

  def test_batches_of_another_size(self):
    task_batches.check(self.config, Own({}))
    with self.assertRaisesRegex(
      errors.UserError, r'an array of shape \[4, 7\], and batch_size is 8: make'
    ):
      task_batches.check(self.config, Own({'x': np.zeros((4, 7))}))

  def test_an_experiment_is_checked(self):
    own = Own({'y': np.full(64, -1)})
    with (
      mock.patch.object(builders, 'make_task', lambda config: own),
      self.assertRaisesRegex(errors.UserError, 'Labels from -1'),
    ):
      builders.open_experiment(self.config, self.create_tempdir().full_path)


if __name__ == '__main__':
  absltest.main()
