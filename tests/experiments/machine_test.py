"""Tests of what else the machine does."""

import subprocess
import sys
from unittest import mock

from absl.testing import absltest

from experiments.benchmarks import machine


class BusyTest(absltest.TestCase):
  def read(self, *lines):
    """The busy cores by the first lines of /proc/stat, a second apart."""
    stat = mock.Mock(**{'read_text.side_effect': lines})
    with (
      mock.patch.object(machine, 'STAT', stat),
      mock.patch.object(machine.os, 'sysconf', return_value=100),
      mock.patch.object(machine.time, 'perf_counter', side_effect=[0.0, 1.0]),
      mock.patch.object(machine.time, 'sleep'),
    ):
      return machine.busy_cores()

  def test_counts_work_and_neither_idling_nor_waiting(self):
    before, after = 'cpu 100 0 50 900 7 1 2 0', 'cpu 190 20 60 990 99 6 7 9'
    self.assertAlmostEqual(self.read(before, after), 1.3)

  def test_the_peak_is_that_of_the_process_itself(self):
    weight = bytearray(300_000_000)
    self.assertGreater(machine.peak(), 300)
    read = 'from experiments.benchmarks import machine; print(machine.peak())'
    out = subprocess.check_output([sys.executable, '-c', read], text=True)
    self.assertLess(float(out), 200)
    self.assertEqual(machine.peak(2**30), 0)
    del weight

  def test_without_proc_it_is_the_load(self):
    missing = mock.Mock(**{'exists.return_value': False})
    with (
      mock.patch.object(machine, 'STAT', missing),
      mock.patch.object(machine.os, 'getloadavg', return_value=(0.7, 1, 1)),
    ):
      self.assertEqual(machine.busy_cores(), 0.7)
