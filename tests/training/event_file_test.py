"""TensorBoard's curves of a run."""

import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

import pytest

from cxjax.training import event_file
from cxjax.training import metric_log
from tests import processes


def scalars(folder):
  """`(step, tag, value)` of every scalar; tag 'start' for a new session."""
  from tensorboard.compat.proto import event_pb2

  found = []
  for path in sorted(folder.iterdir()):
    content, at = path.read_bytes(), 0
    while at < len(content):  # Length, checksum, event, checksum.
      (length,) = struct.unpack_from('<Q', content, at)
      event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
      at += 16 + length
      if event.HasField('session_log'):
        found.append((event.step, 'start', None))
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
  return found


class EventFileTest(unittest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def write(self, *records, step=0):
    file = event_file.EventFile(self.folder, step)
    for step, stage, values in records:
      file.write({'step': step, 'stage': stage, **values})
    file.close()

  def test_tags(self):
    losses = {'loss': 0.125, 'loss/labels': 0.25, 'loss/hidden0': 0.5}
    self.write(
      (10, 'hidden0', losses),
      (20, 'output', {'loss': 0.125, 'eval/accuracy': [0.5, 1.0]}),
    )
    self.assertEqual(
      scalars(self.folder),
      [
        (1, 'start', None),
        (10, 'loss/hidden0', 0.125),
        (10, 'loss/hidden0/labels', 0.25),
        (10, 'loss/hidden0/hidden0', 0.5),
        (20, 'loss/output', 0.125),
        (20, 'eval/accuracy', 0.75),
      ],
    )

  def test_what_is_not_finite_has_no_curve(self):
    self.write((10, 'output', {'loss': [1.0, float('nan')], 'eval/cka': 0.5}))
    self.assertEqual(scalars(self.folder)[1:], [(10, 'eval/cka', 0.5)])

  def test_a_resumed_run_says_from_where(self):
    """TensorBoard drops what is later; nothing is lost in the same second."""
    self.write((20, 'output', {'loss': 1.0}))
    self.write(step=10)
    found = scalars(self.folder)
    self.assertIn((20, 'loss/output', 1.0), found)
    self.assertIn((11, 'start', None), found)

  def test_tensorboard_reads_it(self):
    from tensorboard.backend.event_processing import event_accumulator

    self.write((10, 'output', {'loss': 0.5}), (20, 'output', {'loss': 0.25}))
    read = event_accumulator.EventAccumulator(str(self.folder)).Reload()
    found = [(one.step, one.value) for one in read.Scalars('loss/output')]
    self.assertEqual(found, [(10, 0.5), (20, 0.25)])

  def test_without_curves_for_a_folder_that_is_removed(self):
    log = metric_log.MetricLog(self.folder, 0, 'run', 'cka', temporary=True)
    with log:
      log.write({'step': 10, 'stage': 'output', 'loss': 0.125})
    names = [path.name for path in self.folder.iterdir()]
    self.assertEqual(names, ['metrics.jsonl'])

  @pytest.mark.slow
  def test_takes_no_package_that_is_slow_to_import(self):
    slow = ('torch', 'tensorflow', 'matplotlib')
    code = f"""
import sys
from cxjax.training import event_file
import pathlib
event_file.EventFile(pathlib.Path(sys.argv[1]), 0).close()
print(*{{*{slow}}} & {{*sys.modules}})
"""
    done = subprocess.run(
      [sys.executable, '-c', code, self.folder],
      env=processes.environment(),
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.stdout, '\n', done.stderr)
