"""Tests of the time of a run by purpose."""

import time
from unittest import mock

from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from cxjax.training import stopwatch


class StopwatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 100.0
    self.compiled = 0.0
    self.enter_context(
      mock.patch.object(time, 'perf_counter', lambda: self.now)
    )
    self.watch = stopwatch.Stopwatch(lambda: self.compiled)

  def test_time_since_the_last_wait_is_that_of_the_purpose(self):
    self.now += 2
    self.watch.wait('train')
    self.now += 3
    self.watch.wait('evaluate')
    self.now += 4
    self.watch.wait('train')
    expected = {'compile': 0, 'train': 6, 'evaluate': 3, 'save': 0}
    self.assertEqual(self.watch.seconds, expected)

  def test_compiling_counts_for_itself_alone(self):
    self.now, self.compiled = self.now + 5, self.compiled + 3
    self.watch.wait('train')
    self.now, self.compiled = self.now + 1, self.compiled + 1
    self.watch.wait('train')
    self.assertEqual(self.watch.seconds['compile'], 4)
    self.assertEqual(self.watch.seconds['train'], 2)

  def test_restart_forgets(self):
    self.now += 7
    self.watch.restart()
    self.now += 1
    self.watch.wait('train')
    self.assertEqual(self.watch.seconds['train'], 1)

  def test_earlier_processes_are_added(self):
    self.watch.add({'train': 10.0, 'compile': 2.0})
    self.now += 1
    self.watch.wait('train')
    self.assertEqual(self.watch.seconds['train'], 11)
    self.assertEqual(self.watch.seconds['compile'], 2)

  def test_clocks_that_disagree_make_no_negative_time(self):
    self.compiled += 3
    self.watch.wait('train')
    self.assertEqual(self.watch.seconds['train'], 0)

  def test_returns_the_values_on_the_host(self):
    found = self.watch.wait('train', {'a': jnp.arange(3)})
    self.assertIsInstance(found['a'], np.ndarray)
    np.testing.assert_array_equal(found['a'], [0, 1, 2])
