"""Tests of the map of the methods, with made-up comparisons."""

import pathlib
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver

from cxjax import errors
from cxjax import tables
from cxjax.methods import registry
from experiments import contestants
from experiments import paths
import scripts

map_lib = scripts.load('experiments.map')


def row(method, mean, verdict, experiment='a', equal='flops'):
  return {
    'experiment': experiment,
    'equal': equal,
    'metric': 'accuracy',
    'method': method,
    'mean': mean,
    'min': mean - 0.1,
    'max': mean,
    'against the best': verdict,
  }


ENDS = {'min': 0.4, 'max': 0.6, 'against the best': 'best'}
ROWS = [
  row('supervised', 0.5, 'worse'),
  row('some', 0.7, 'less reliable'),
  row('one_shot', 0.9, 'best'),
  row('joint', 0.88, 'within the spread'),
]


class MapTest(absltest.TestCase):
  def test_winners_and_those_within_their_spread(self):
    other = row('joint', 0.2, 'best', 'b', 'steps')
    first, second = map_lib.winners([*ROWS, other])
    self.assertEqual(first['flops'], 'one_shot 0.9, joint 0.88, [some 0.7]')
    self.assertEqual((first['steps'], second['steps']), ('', 'joint 0.2'))

  def test_what_cannot_be_told_is_in_brackets(self):
    few = row('few', 0.6, 'unknown: too few seeds')
    (found,) = map_lib.winners([*ROWS, few])
    self.assertEndsWith(found['flops'], '[some 0.7], [few 0.6]')

  def test_what_was_equal_otherwise_stays(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    setting = mock.Mock(num_steps=10)
    found = mock.Mock(metric='accuracy', page='The table.')
    found.rows = [{'method': 'a', 'accuracy: mean': 0.5, **ENDS}]
    with (
      mock.patch.object(map_lib, 'setting', return_value=setting),
      mock.patch.object(map_lib, 'compare', return_value=found),
    ):
      for axes in (['steps', 'flops'], ['flops'], ['stored']):
        with flagsaver.flagsaver(axes=axes):
          map_lib.study('digits', folder / 'runs', folder)
    want = ['steps', 'flops', 'stored']
    rows = tables.read_csv(folder / 'map_digits.csv')
    self.assertEqual([one['equal'] for one in rows], want)
    text = (folder / 'map_digits.md').read_text()
    self.assertEqual(re.findall('## Equal: (.*)', text), want)
    self.assertEqual(text.count('The table.'), 3)

  def test_pictures_of_what_was_written(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    tables.write_csv(folder / 'map_a.csv', ROWS)
    lines = map_lib.read(folder)
    self.assertEqual([r['method'] for r in lines], [r['method'] for r in ROWS])
    map_lib.picture(lines, 'flops', folder / 'map_flops.png')
    map_lib.picture(lines, 'steps', folder / 'map_steps.png')  # Has none.
    self.assertTrue((folder / 'map_flops.png').exists())
    self.assertFalse((folder / 'map_steps.png').exists())

  def test_a_method_that_diverged_is_read_and_drawn(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    one = row('fitnets', float('nan'), 'diverged')
    tables.write_csv(folder / 'map_a.csv', [*ROWS, one])
    lines = map_lib.read(folder)
    self.assertEqual(lines[-1]['against the best'], 'diverged')
    map_lib.picture(lines, 'flops', folder / 'map_flops.png')
    self.assertNotIn('fitnets', map_lib.winners(lines)[0]['flops'])

  def test_methods_are_registered(self):
    unknown = set(contestants.METHODS) - set(registry.METHODS)
    self.assertEmpty(unknown)
    with self.assertRaisesRegex(errors.UserError, 'digit'):
      contestants.find('digit', 'tiny', pathlib.Path('/nowhere'))

  def test_what_cannot_be_run_is_refused_before_any_work(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    tables.write_csv(folder / 'map_a.csv', ROWS)
    for flags, message in {
      ('vary', ('share=2',)): 'share=2.0 must be',
      ('vary', ('share=0.1,0.2', 'norm=layers')): "Unknown norm 'layers'",
      ('methods', ('one_shot', 'token_embeddings')): (
        "Unknown method of parity_mlp 'token_embeddings'"
      ),
      ('size', 'tinny'): "--size 'tinny'. Did you mean 'tiny'. .*: cpu, tiny",
    }.items():
      with (
        mock.patch.object(contestants, 'find') as find,
        flagsaver.flagsaver(**dict([flags]), results=str(folder)),
        flagsaver.flagsaver(workdir=str(folder / 'runs')),
        self.assertRaisesRegex(errors.UserError, message),
      ):
        map_lib.main([])
      find.assert_not_called()

  def test_the_embeddings_of_tokens_are_varied_as_extracted(self):
    with flagsaver.flagsaver(methods=['token_embeddings'], vary=['share=0.1']):
      map_lib.check_variations()
    with (
      flagsaver.flagsaver(methods=['token_embeddings'], vary=['share=2']),
      self.assertRaisesRegex(errors.UserError, 'share=2.0 must be'),
    ):
      map_lib.check_variations()

  def test_a_damaged_table_is_refused_before_any_work(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    path = folder / 'map_a.csv'
    tables.write_csv(path, ROWS)
    good = path.read_text()
    for text in ('', 'a,b\n1,2\n', good[: len(good) // 2], '\0', good + 'a\n'):
      path.write_text(text)
      with (
        mock.patch.object(contestants, 'find') as find,
        flagsaver.flagsaver(
          results=str(folder), workdir=str(folder / 'runs'), vary=[]
        ),
        self.assertRaisesRegex(errors.UserError, 'map_a.csv .*move it away'),
      ):
        map_lib.main([])
      find.assert_not_called()
    path.write_bytes(b'\xff\xfe')
    with self.assertRaisesRegex(errors.UserError, 'cannot be read'):
      map_lib.read(folder)

  def test_rates(self):
    with flagsaver.flagsaver(rates=['0.03', '3e-3']):
      self.assertEqual(paths.fractions(map_lib._RATES), [0.03, 0.003])
    with (
      flagsaver.flagsaver(rates=['0.5', '1']),
      self.assertRaisesRegex(errors.UserError, '--rates=0.5,1 must'),
    ):
      paths.fractions(map_lib._RATES)

  def test_the_first_batches_come_again(self):
    few = contestants.First(range(9), 3)
    self.assertEqual([list(few), list(few)], [[0, 1, 2]] * 2)


if __name__ == '__main__':
  absltest.main()
