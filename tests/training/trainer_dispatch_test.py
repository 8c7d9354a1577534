"""When the loop waits for the device."""

from unittest import mock

from absl.testing import parameterized
import pytest

from cxjax.training import compiled_steps
from cxjax.training import stopwatch
from cxjax.training import trainer
from tests.training import runs

pytestmark = pytest.mark.slow


class DispatchTest(runs.TestCase):
  """When the host waits for the device."""

  def events(self, spec):
    """What the loop does, in order, and the result."""
    found = []
    train = compiled_steps.CompiledSteps.train_many_steps
    wait = stopwatch.Stopwatch.wait
    save = trainer.checkpoint_writer.CheckpointWriter.save

    def note_train(steps, planned, *args):
      start, stop = args[3:5]
      found.append(('train', start, stop))
      return train(steps, planned, *args)

    def note_wait(watch, purpose, tree=()):
      found.append(('wait', purpose))
      return wait(watch, purpose, tree)

    def note_save(writer, step, *args, **kwargs):
      found.append(('save', step))
      return save(writer, step, *args, **kwargs)

    folder = self.folder()
    writer = trainer.checkpoint_writer.CheckpointWriter
    with (
      mock.patch.object(
        compiled_steps.CompiledSteps, 'train_many_steps', note_train
      ),
      mock.patch.object(stopwatch.Stopwatch, 'wait', note_wait),
      mock.patch.object(writer, 'save', note_save),
    ):
      result = self.fit(spec, folder)
    return found, result, folder

  def unread(self, events):
    """Number of dispatches that are not read yet, before each dispatch."""
    counts, unread = {}, 0
    for kind, *what in events:
      if kind == 'train':
        counts[what[0]] = unread
        unread += 1
      elif kind == 'wait' and what == ['train']:
        unread -= 1
    return counts

  def test_the_next_steps_go_out_before_the_last_ones_are_read(self):
    spec = runs.changed(runs.labels(), loop={'save_every': 40, 'eval_every': 8})
    events, _, _ = self.events(spec)
    # From the second dispatch on there is always one on its way.
    expected = {start: min(start, 1) for start in range(0, 40, 4)}
    self.assertEqual(self.unread(events), expected)
    self.assertEqual(
      events[:8],
      [
        ('train', 0, 4),
        ('train', 4, 8),
        ('wait', 'train'),
        ('train', 8, 12),
        ('wait', 'train'),
        ('wait', 'evaluate'),
        ('train', 12, 16),
        ('wait', 'train'),
      ],
    )

  def test_a_new_stage_is_no_reason_to_wait(self):
    spec = runs.changed(runs.main(), loop={'save_every': 80, 'eval_every': 8})
    events, _, _ = self.events(spec)
    expected = {0: 0, 4: 1, 6: 1, 8: 1, 11: 1, 12: 1, 16: 1}
    self.assertEqual(self.unread(events), expected)

  def test_it_waits_where_it_saves(self):
    events, _, _ = self.events(runs.main())
    expected = {0: 0, 4: 1, 6: 1, 8: 0, 11: 1, 12: 1, 16: 0}
    self.assertEqual(self.unread(events), expected)
    # And what it saves was found to be finite.
    for i, (kind, *_) in enumerate(events):
      if kind == 'save':
        self.assertEqual(self.unread([*events[:i], ('train', -1, 0)])[-1], 0)

  @parameterized.parameters(
    ({'keep_best': 'loss'}, {8, 16, 24, 32}),
    ({'save_at': (1.0,)}, {8, 16, 24, 32}),
    ({'stop_at': 1.0}, {8, 16, 24, 32}),
    # No accuracy is above 1.
    ({'stop_at': 2.0}, set()),
    ({'save_at': (0.0, 2.0)}, {8}),
    # The run goes on beyond the next dispatch, whatever the score.
    ({'stop_at': 1.0, 'overrun': 0.5}, {8}),
    ({'save_every': 12}, {12, 24, 36}),
  )
  def test_it_waits_where_metrics_decide(self, loop, waits):
    loop = {'save_every': 40, 'eval_every': 8, **loop}
    events, _, _ = self.events(runs.changed(runs.labels(), loop=loop))
    read = {
      start for start, unread in self.unread(events).items() if not unread
    }
    self.assertEqual(read, {0, *waits})

  @parameterized.parameters(False, True)
  def test_nothing_differs_from_a_loop_that_always_waits(self, late_end):
    loop = {'save_every': 80, 'eval_every': 4}
    if late_end:  # It is known only once the next steps are on their way.
      loop |= {'stop_at': 0.0, 'overrun': 2.0}
    spec = runs.changed(runs.main(), loop=loop)
    _, one, folder = self.events(spec)
    with mock.patch.object(trainer.Trainer, '_must_read', lambda self: True):
      events, two, other = self.events(spec)
    self.assertEqual(set(self.unread(events).values()), {0})
    self.assertEqual(one.records, two.records)
    self.assert_same_run(spec, folder, other)
