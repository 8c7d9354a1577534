"""Tests of what a finished run reports."""

import copy
import dataclasses
import json
import pathlib

from absl.testing import parameterized
import numpy as np
import pytest

from cxjax import errors
from cxjax import files
from cxjax.training import summary
from tests.training import runs

# Names that other tools read.
CONTRACT = (
  'method',
  'num_seeds',
  'steps',
  'examples',
  'final',
  'steps_to',
  'stages',
  'seconds',
  'steps_per_second',
)


def made_up(**fields):
  """The summary of a run of 100 steps of 8 examples, of two seeds."""
  stage = lambda steps, student, teacher: {
    'steps': steps,
    'student_flops': student,
    'teacher_flops': teacher,
  }
  return {
    'method': 'extracted',
    'num_seeds': 2,
    'steps': 100,
    'examples': 800,
    'length': 1,
    'primary_metric': 'accuracy',
    'final': {'accuracy': [1.0, 0.9], 'loss': [0.1, 0.3]},
    'steps_to': {'0.9': [20, 100], '0.99': [50, None]},
    'stages': [stage(30, 10.0, 5.0), stage(70, 100.0, 0.0)],
    'seconds': {'train': 2.0},
    **fields,
  }


def edits(value):
  """Yields copies of a JSON value, in each of which something else differs."""
  if isinstance(value, dict | list):
    for key in value if isinstance(value, dict) else range(len(value)):
      for other in edits(value[key]):
        changed = copy.deepcopy(value)
        changed[key] = other
        yield changed
      changed = copy.deepcopy(value)
      del changed[key]
      yield changed
  else:
    yield from (None, [value], f'{value}.', float('nan'))


class ChecksumsTest(parameterized.TestCase):
  RECORDS = (
    {'step': 50, 'loss': 0.5, 'eval/accuracy': [0.5]},
    {'step': 100, 'loss': 0.25, 'eval/accuracy': [0.9]},
  )

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'summary.json'
    files.write_json(self.folder / 'config.json', {'seed': 0})
    self.log(self.RECORDS)
    summary.write(self.path, made_up(), self.RECORDS)

  def log(self, records):
    text = ''.join(json.dumps(record) + '\n' for record in records)
    (self.folder / 'metrics.jsonl').write_text(text)

  def assert_refused(self, said):
    with self.assertRaisesRegex(errors.UserError, said) as caught:
      summary.read(self.path)
    self.assertNotIn('\n', str(caught.exception))

  def test_is_read_as_it_was_written(self):
    self.assertEqual(summary.read(self.path), made_up())

  def test_every_edit_is_refused(self):
    written = json.loads(self.path.read_text())
    found = [one for one in edits(written) if one != written]
    self.assertGreater(len(found), 100)
    for edited in found:
      self.path.write_text(json.dumps(edited))
      self.assert_refused('(was edited|has no digest).*Restore it, or remove')

  @parameterized.parameters('[]', '1', 'null', '{}', '', '{"steps": 1}', '\0')
  def test_another_content_is_refused(self, text):
    self.path.write_text(text)
    self.assert_refused('Restore it, or remove .*writes it again')

  def test_a_folder_in_its_place_is_refused(self):
    self.path.unlink()
    self.path.mkdir()
    self.assert_refused('not a regular file.*Restore it, or remove')

  def test_an_earlier_version_had_no_checksums(self):
    files.write_json(self.path, made_up())
    self.assert_refused('has no digest')

  def test_another_config_is_refused(self):
    files.write_json(self.folder / 'config.json', {'seed': 1})
    self.assert_refused('config.json was edited')

  def test_every_edit_of_the_records_is_refused(self):
    whole = list(self.RECORDS)
    found = [one for one in edits(whole) if one != whole]
    found += [whole[::-1], [*whole, whole[-1]], [whole[0], *whole], []]
    for records in found:
      self.log(records)
      self.assert_refused(
        'metrics.jsonl (was edited|lacks some|has more).*Restore it, or remove'
      )
    (self.folder / 'metrics.jsonl').unlink()
    self.assert_refused('metrics.jsonl lacks some of its 2 records')


@pytest.mark.slow
class SummarizeTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.spec = runs.spec()
    cls.result = runs.fit(cls.spec, folder)
    cls.found = summary.summarize('mine', cls.spec, cls.result)

  def test_fields_of_the_contract(self):
    self.assertContainsSubset(CONTRACT, self.found)
    self.assertEqual(json.loads(json.dumps(self.found)), self.found)

  def test_values(self):
    found, last = self.found, self.result.records[-1]
    self.assertEqual(found['method'], 'mine')
    self.assertEqual(
      [found[k] for k in ('num_seeds', 'steps', 'examples', 'length')],
      [runs.SEEDS, 20, 20 * runs.SIZE, 1],
    )
    names = ('accuracy', 'loss', 'agreement', 'teacher_kl')
    self.assertEqual(
      found['final'], {name: last[f'eval/{name}'] for name in names}
    )
    self.assertEqual(found['primary_metric'], 'accuracy')
    self.assertIsNone(found['best_step'])
    self.assertCountEqual(found['steps_to'], ('0.9', '0.99'))
    self.assertLen(found['steps_to']['0.9'], runs.SEEDS)

  def test_stages_and_their_terms(self):
    early, late, joint = self.found['stages']
    self.assertEqual(
      [(s['name'], s['steps']) for s in (early, late, joint)],
      [('early', 6), ('late', 5), ('joint', 9)],
    )
    self.assertEqual((early['checkpoint'], late['checkpoint']), (10, None))
    (term,) = early['terms']
    expected = {
      'name': 'hidden0',
      'target': 'hidden0',
      'student': 'hidden0',
      'weight': 1.0,
      'projection': 'gaussian',
      'shape': [6, 4],
    }
    self.assertEqual(term, expected)
    found = [(t['name'], t['weight'], t['shape']) for t in joint['terms']]
    self.assertEqual(
      found, [('output', 'schedule', None), ('labels', 1.0, None)]
    )
    self.assertEqual((joint['target'], joint['student']), ('logits', 'logits'))
    self.assertGreater(joint['student_flops'], 0)
    self.assertEqual(early['student_flops'], late['student_flops'])

  def test_a_run_that_stops_early(self):
    """Its last stage was shorter than planned."""
    spec = runs.changed(self.spec, loop={'stop_at': 0.0})
    result = runs.fit(spec, self.create_tempdir().full_path)
    found = summary.summarize('mine', spec, result)
    self.assertEqual(found['steps'], 16)
    self.assertEqual([s['steps'] for s in found['stages']], [6, 5, 5])

  def test_stages_that_were_not_reached(self):
    def stop(record):
      raise StopIteration

    folder = self.create_tempdir().full_path
    result = runs.fit(self.spec, folder, stop)
    found = summary.summarize('mine', self.spec, result)
    steps = [s['steps'] for s in found['stages']]
    self.assertEqual((found['steps'], steps), (6, [6, 0, 0]))
    cost = sum(
      found['stages'][0][f'{who}_flops'] for who in ('student', 'teacher')
    )
    self.assertEqual(summary.flops(found), 6 * cost)

  def test_the_best_step(self):
    spec = runs.changed(self.spec, loop={'keep_best': 'loss'})
    result = runs.fit(spec, self.create_tempdir().full_path)
    found = summary.summarize('mine', spec, result)
    losses = {
      r['step']: np.mean(r['eval/loss'])
      for r in result.records
      if 'eval/loss' in r
    }
    self.assertEqual(found['best_step'], min(losses, key=losses.get))

  def test_steps_to_shares_of_the_best_score(self):
    """A loss has no such share."""
    records = [
      {'step': 4, 'eval/accuracy': [0.5, 0.95], 'eval/loss': [0.1, 0.2]},
      {'step': 8, 'eval/accuracy': [0.92, 0.9], 'eval/loss': [0.1, 0.2]},
    ]
    result = dataclasses.replace(self.result, records=records)
    found = summary.summarize('mine', self.spec, result)['steps_to']
    self.assertEqual(found, {'0.9': [8, 4], '0.99': [None, None]})
    spec = runs.changed(self.spec, primary='loss')
    found = summary.summarize('mine', spec, result)['steps_to']
    self.assertEqual(found, {'0.9': [None, None], '0.99': [None, None]})


class FlopsTest(parameterized.TestCase):
  @parameterized.parameters(
    (None, 30 * 15 + 70 * 100), (10, 150), (30, 450), (40, 450 + 1000)
  )
  def test_of_the_first_steps(self, steps, expected):
    self.assertEqual(summary.flops(made_up(), steps), expected)

  def test_share_of_the_teacher(self):
    share = summary.teacher_share(made_up())
    self.assertAlmostEqual(share, 150 / (450 + 7000))


class CompareTest(parameterized.TestCase):
  def test_a_seed_that_does_not_get_there_leaves_no_median(self):
    row = summary.compare_row(made_up())
    self.assertEqual(row['at 99%'], '1 of 2')
    self.assertIsNone(row['steps to 99%: median'])
    self.assertEqual(row['final accuracy: mean'], 0.95)
    self.assertEqual(row['cross entropy'], 0.2)
    self.assertNotIn('tokens/s', row)

  def test_all_seeds_get_there(self):
    reached = {'0.9': [20, 30], '0.99': [50, 70]}
    row = summary.compare_row(made_up(steps_to=reached))
    self.assertEqual(row['at 99%'], '2 of 2')
    self.assertEqual((row['steps to 99%: median'], row['worst']), (60, 70))
    self.assertEqual(row['examples'], 60 * 8)
    self.assertEqual(row['GFLOP'], 3.5e-6)

  def test_the_spread_is_that_of_a_sample(self):
    """As of the verdict below the table; one seed has none."""
    self.assertEqual(summary.compare_row(made_up())['sd'], 0.0707)
    one = {'accuracy': [1.0], 'loss': [0.1]}
    never = {'0.9': [None], '0.99': [None]}
    row = summary.compare_row(made_up(final=one, steps_to=never))
    self.assertIsNone(row['sd'])

  def test_tokens_of_sequences(self):
    row = summary.compare_row(made_up(length=16))
    self.assertEqual(row['tokens/s'], 800 * 16 * 2 / 2.0)
    self.assertEqual(row['teacher share'], 0.02)

  def test_a_table_has_no_empty_columns(self):
    never = {'0.9': [None, None], '0.99': [None, None]}
    one = made_up(steps_to=never, method='one_shot')
    self.assertNotIn('99%', summary.compare_table([one, one]))
    table = summary.compare_table([made_up(), one])
    self.assertIn('0 of 2', table)
    self.assertLen(table.splitlines(), 4)

  def test_one_row_for_each_seed(self):
    first, second = summary.seed_rows(made_up())
    expected = {
      'method': 'extracted',
      'seed': 1,
      'steps': 100,
      'examples': 800,
      'final_accuracy': 0.9,
      'steps_to_0.9': 100,
      'steps_to_0.99': None,
      'flops': 7450.0,
    }
    self.assertEqual(second, expected)
    self.assertEqual((first['seed'], first['final_accuracy']), (0, 1.0))
