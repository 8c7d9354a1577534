"""Records are written once, shown, and passed on."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import struct
import termios
import types
from unittest import mock

from absl.testing import parameterized

from cxjax import errors
from cxjax.training import metric_log


def record(step, stage='hidden0', **more):
  return {'step': step, 'stage': stage, 'loss': 0.125, **more}


def evaluated(step, *values, metric='accuracy', stage='output'):
  return record(step, stage, **{f'eval/{metric}': list(values)})


@contextlib.contextmanager
def terminal(columns):
  """A terminal to write to, and what was written, once it is closed."""
  reader, writer = os.openpty()
  fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack('4H', 25, columns, 0, 0))
  written: list[str] = []
  with os.fdopen(writer, 'w') as stream:
    yield stream, written
    stream.flush()
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
      while True:
        written.append(os.read(reader, 2**12).decode())
  os.close(reader)


class MetricLogTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def open(self, step=0, on_record=None, primary='accuracy', title='teacher'):
    return metric_log.MetricLog(self.folder, step, title, primary, on_record)

  def lines(self):
    return (self.folder / 'metrics.jsonl').read_text().splitlines()


class WriteTest(MetricLogTest):
  def test_records_are_lines_of_json(self):
    records = [record(10), evaluated(20, 0.5, 1.0)]
    with self.open() as log:
      for number, one in enumerate(records):
        log.write(one)
        self.assertLen(self.lines(), number + 1)  # At once.
      self.assertEqual(log.records, records)
    self.assertEqual(list(map(json.loads, self.lines())), records)
    self.assertEqual(metric_log.read(self.folder), records)

  def test_a_resumed_run_writes_no_record_twice(self):
    with self.open() as log:
      for step in (10, 20, 30):
        log.write(record(step))
    with self.open(step=20) as log:
      self.assertEqual([one['step'] for one in log.records], [10, 20])
      log.write(record(30, gain=2.5))
    steps = [one['step'] for one in metric_log.read(self.folder)]
    self.assertEqual(steps, [10, 20, 30])
    self.assertIn('2.5', self.lines()[-1])

  @parameterized.parameters('{"step": 2', '3', '{"loss": 1}', '{"step": "3"}')
  def test_records_after_damage_are_dropped(self, damaged):
    with self.open() as log:
      log.write(record(10))
    with (self.folder / 'metrics.jsonl').open('a') as f:
      f.write(f'{damaged}\n{json.dumps(record(30))}\n')
    steps = [one['step'] for one in metric_log.read(self.folder)]
    self.assertEqual(steps, [10])
    with self.open(step=40) as log:
      self.assertLen(log.records, 1)
    self.assertLen(self.lines(), 1)

  def test_without_a_file(self):
    self.assertEqual(metric_log.read(self.folder / 'none'), [])

  def test_a_folder_in_place_of_the_file(self):
    (self.folder / 'metrics.jsonl').mkdir()
    for function in (lambda: metric_log.read(self.folder), self.open):
      with self.assertRaisesRegex(
        errors.UserError, 'metrics.jsonl cannot be read.*regular file.*remove'
      ):
        function()

  def test_the_digest_of_a_log_is_that_of_its_file(self):
    with self.open() as log:
      for step in (10, 20):
        log.write(evaluated(step, 0.1, float('nan')))
    with self.open(step=20) as log:
      log.write(record(30))
      found = metric_log.read(self.folder)
      self.assertEqual(log.digest_records(), metric_log.digest_records(found))
      self.assertEqual(log.digest_records()['records'], 3)

  def test_a_folder_that_cannot_be_written(self):
    (self.folder / 'tensorboard').write_text('')
    with self.assertRaisesRegex(errors.UserError, 'Cannot write'):
      self.open()

  def test_a_full_disk(self):
    with self.open() as log:
      lines = mock.Mock(
        name='lines', **{'flush.side_effect': OSError(28, 'Full')}
      )
      lines.name = 'metrics.jsonl'
      log._files.pop().close()
      log._files.append(lines)
      with self.assertRaisesRegex(
        errors.UserError, r'Cannot write metrics.jsonl: Full\. Make room'
      ):
        log.write(record(10))


class OnRecordTest(MetricLogTest):
  def test_gets_a_copy_of_every_new_record_once_it_is_written(self):
    seen = []

    def on_record(one):
      self.assertLen(self.lines(), 2 + len(seen))
      seen.append(json.dumps(one))
      one['eval/accuracy'].clear()

    with self.open() as log:
      log.write(record(5))
    with self.open(step=5, on_record=on_record) as log:
      for step in (10, 20):
        log.write(evaluated(step, 0.5))
      self.assertEqual(log.records[-1], evaluated(20, 0.5))
    self.assertEqual(seen, [json.dumps(evaluated(n, 0.5)) for n in (10, 20)])

  def test_its_exceptions_propagate(self):
    """Early stopping in one line."""

    class Enough(Exception):
      pass

    def on_record(one):
      raise Enough

    with self.assertRaises(Enough), self.open(on_record=on_record) as log:
      log.write(record(10))
    self.assertLen(self.lines(), 1)

  def test_is_called_in_the_first_process_only(self):
    on_record = mock.Mock()
    with (
      mock.patch('jax.process_index', return_value=1),
      self.open(on_record=on_record) as log,
    ):
      log.write(record(10))
      self.assertLen(log.records, 1)
    on_record.assert_not_called()
    self.assertEmpty(list(self.folder.iterdir()))


class ProgressTest(MetricLogTest):
  def show(self, stream, *records, total=2_000_000, **settings):
    with mock.patch('sys.stderr', stream), self.open(**settings) as log:
      log.expect(total)
      for one in records:
        log.write(one)

  def test_a_terminal_of_80_columns_shows_the_metric(self):
    one = evaluated(1_234_567, 0.25, 0.75, metric='perplexity')
    with terminal(columns=80) as (stream, written):
      self.show(stream, one, title='progressive', primary='perplexity')
    lines = ''.join(written).replace('\n', '\r').split('\r')
    self.assertLessEqual(max(map(len, lines)), 80)
    last = [line for line in lines if line.strip()][-1]
    self.assertRegex(last, r'^progressive .* 1.23M/2.00M .* left, ')
    self.assertIn('loss 0.125, perplexity 0.5, output', last)

  def test_a_log_file_gets_lines(self):
    """One for 10 seconds, and one for the end."""
    clock = mock.patch.object(metric_log.time, 'monotonic')
    with clock as now:
      now.return_value = 0.0

      def on_record(_):
        now.return_value += 4.0

      records = [record(step) for step in range(10, 60, 10)]
      records.append(evaluated(60, 0.5, 1.0))
      stream = io.StringIO()
      self.show(stream, *records, total=120, on_record=on_record)
    text = stream.getvalue()
    self.assertNotIn('\r', text)
    lines = text.splitlines()
    self.assertLen(lines, 2)
    self.assertEqual(
      lines[0],
      'teacher:  33% 40/120 [00:12<00:24,  3.33step/s, loss 0.125, hidden0]',
    )
    self.assertRegex(
      lines[1],
      r'^teacher: 60/120 .*step/s, loss 0.125, accuracy 0.75, output\]$',
    )

  @parameterized.parameters(
    ('a/fitnets', 'a/fitnets: 10/20 [00:12<00:12,  1.20s/step, {}]'),
    ('text_bert/one_shot', 'one_shot: 10/20 [00:12<00:12,  1.20s/step, {}]'),
    ('text/late_to_early', 'text/late_to_early: 10/20 [00:12 left, {}]'),
    ('wikipedia_bert/late_to_early', 'late_to_early: 10/20 [00:12 left, {}]'),
    (
      'text_bert/extracted_pca_rotated_labels',
      'extracted_pca_rotated_labels: 10/20, {}',
    ),
  )
  def test_a_line_of_a_log_fits_80_columns(self, title, expected):
    stream, one = io.StringIO(), evaluated(10, 0.5, 1.0, metric='perplexity')
    with mock.patch.object(metric_log.time, 'monotonic') as now:
      now.return_value = 0.0
      wait = lambda _: setattr(now, 'return_value', 12.0)
      with mock.patch.object(metric_log, 'LINE_INTERVAL', 100.0):
        self.show(
          stream,
          one,
          total=20,
          title=title,
          primary='perplexity',
          on_record=wait,
        )
    expected = expected.format('loss 0.125, perplexity 0.75, output')
    self.assertEqual(stream.getvalue(), expected + '\n')
    self.assertLessEqual(len(expected), 80)

  def test_a_short_form_stays(self):
    clock = mock.patch.object(metric_log.time, 'monotonic')
    with clock as now:
      now.return_value = 0.0
      wait = lambda _: setattr(now, 'return_value', now() + 12.0)
      records = (
        record(10),
        record(20, stage='a long name'),
        record(30, stage='a stage with a longer name'),
        record(40),
        record(50),
      )
      stream = io.StringIO()
      self.show(stream, *records, title='text/a', total=90, on_record=wait)
    later = (33, 30), (44, 40), (56, 50)
    forms = [line.split(' [')[0] for line in stream.getvalue().splitlines()]
    self.assertEqual(
      forms, ['text/a:  22% 20/90', *(f'a:  {p}% {n}/90' for p, n in later)]
    )

  def test_a_bar_with_a_long_title_shows_the_metric_and_the_stage(self):
    one = evaluated(1_234_567, 0.25, 0.75, metric='perplexity')
    with terminal(columns=80) as (stream, written):
      title = 'text_bert/extracted_labels'
      self.show(stream, one, title=title, primary='perplexity')
    lines = ''.join(written).replace('\n', '\r').split('\r')
    self.assertLessEqual(max(map(len, lines)), 80)
    last = [line for line in lines if line.strip()][-1].strip()
    self.assertStartsWith(last, 'text_bert/extracted_labels ')
    self.assertEndsWith(last, ', loss 0.125, perplexity 0.5, output')

  @parameterized.parameters(None, types.SimpleNamespace(write=len, flush=list))
  def test_a_program_without_a_console(self, stream):
    self.show(stream, evaluated(20, 0.5, 1.0))
    self.assertLen(metric_log.read(self.folder), 1)

  @parameterized.parameters(True, False)
  def test_a_stream_that_is_closed(self, at_once):
    stream = io.StringIO()
    if at_once:
      stream.close()
    self.show(stream, record(10), on_record=lambda _: stream.close())
    self.assertLen(metric_log.read(self.folder), 1)

  def test_a_bar_beside_a_stdout_that_is_closed(self):
    with open(os.devnull, 'w') as stdout:
      pass
    with terminal(80) as (stream, written), mock.patch('sys.stdout', stdout):
      self.show(stream, record(10))
    self.assertIn('loss 0.125', ''.join(written))

  def test_a_resumed_run_counts_its_own_steps(self):
    with mock.patch.object(metric_log.time, 'monotonic') as now:
      now.return_value = 0.0
      stream = io.StringIO()
      with mock.patch('sys.stderr', stream), self.open(step=100) as log:
        now.return_value = 20.0
        log.write(record(120))
    self.assertRegex(stream.getvalue(), r'^teacher: .* 1.00step/s')

  def test_a_metric_that_is_not_the_primary_is_not_shown(self):
    one = evaluated(10, 0.7654, metric='loss')  # No rate of steps, either.
    stream = io.StringIO()
    self.show(stream, one)
    self.assertNotIn('0.7654', stream.getvalue())


class EvaluationsTest(parameterized.TestCase):
  RECORDS = (
    record(5),
    evaluated(10, 0.5, 0.1),
    evaluated(20, 0.9, 0.2),
    evaluated(30, 0.7, 0.95),
    evaluated(40, 3.0, metric='perplexity'),
  )

  def test_evaluations(self):
    found = list(metric_log.evaluations(self.RECORDS, 'accuracy'))
    self.assertEqual(
      found, [(10, [0.5, 0.1]), (20, [0.9, 0.2]), (30, [0.7, 0.95])]
    )
    self.assertEmpty(list(metric_log.evaluations(self.RECORDS, 'bleu')))

  @parameterized.parameters(
    (0.9, True, [20, 30]),
    (0.95, True, [None, 30]),
    (0.5, True, [10, 30]),
    (0.15, False, [None, 10]),
    (0.5, False, [10, 10]),
  )
  def test_steps_to(self, threshold, higher_is_better, expected):
    found = metric_log.steps_to(
      self.RECORDS, 'accuracy', threshold, higher_is_better
    )
    self.assertEqual(found, expected)

  def test_steps_to_what_is_not_finite(self):
    records = [evaluated(10, float('nan')), evaluated(20, 1.0)]
    for higher_is_better in (True, False):
      found = metric_log.steps_to(records, 'accuracy', 1.0, higher_is_better)
      self.assertEqual(found, [20])
