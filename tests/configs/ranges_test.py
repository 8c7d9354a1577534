"""Ranges of the numeric fields of configs."""

from collections.abc import Mapping
import importlib
import math
import numbers
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import ranges
import experiments
from experiments import parity_mlp
from experiments import text_bert

NAN, INF = math.nan, math.inf


def configs():
  """Every config of experiments/, at every size and of every method."""
  (folder,) = experiments.__path__
  for path in sorted(pathlib.Path(folder).glob('*.py')):
    sizes = re.search(r'base\.choose\(\s*variant,\s*{(.*?)}', path.read_text())
    if sizes is not None:
      module = importlib.import_module(f'experiments.{path.stem}')
      for size in re.findall(r"'(\w+)'", sizes[1]):
        yield f'{path.stem}:{size}', module.get_config(size).to_dict()


def numeric_fields(config, prefix=''):
  """Names of the fields that hold numbers, or may: empty tuples."""
  for name, value in config.items():
    if isinstance(value, Mapping):
      yield from numeric_fields(value, f'{prefix}{name}.')
      continue
    parts = value if isinstance(value, list | tuple) else (value,)
    is_number = [
      isinstance(part, numbers.Real) and not isinstance(part, bool)
      for part in parts
    ]
    if any(is_number):
      yield f'{prefix}{name}'


class EveryFieldTest(parameterized.TestCase):
  def test_has_a_range_or_is_listed_as_free(self):
    names = [name for name, _ in configs()]
    self.assertContainsSubset(
      ['parity_mlp:paper', 'text_bert:cpu', 'wikipedia_bert:tiny'], names
    )
    without = {
      f'{config}: {field}'
      for config, values in configs()
      for field in numeric_fields(values)
      if field not in ranges.FREE
      and field not in ranges.RANGES
      and field.rpartition('.')[2] not in ranges.RANGES
    }
    self.assertEmpty(without)

  def test_is_in_its_range(self):
    for name, config in configs():
      with self.subTest(name):
        ranges.check(config)

  def test_no_name_is_left_over(self):
    """Neither of a range nor of a free field."""
    fields = {'custom.stages', 'data.shards'}
    for _, config in configs():
      fields.update(_names(config))
    known = fields | {field.rpartition('.')[2] for field in fields}
    self.assertContainsSubset(ranges.RANGES.keys() | ranges.FREE, known)


def _names(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, Mapping):
      yield from _names(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}'


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ('seed', -1),
    ('seed', 2**32),
    ('num_steps', 0),
    ('mesh.cpu_devices', 0),
    ('num_steps', 2**31),
    ('optimizer.learning_rate', INF),
    ('optimizer.learning_rate', 0.0),
    ('optimizer.b1', 1.0),
    ('optimizer.b1', -1.0),
    ('optimizer.b2', NAN),
    ('optimizer.momentum', -1.0),
    ('optimizer.weight_decay', NAN),
    ('optimizer.weight_decay', -1.0),
    ('optimizer.warmup', 1.0),
    ('teacher.optimizer.learning_rate', NAN),
    ('teacher.stop_at', NAN),
    ('teacher.overrun', -0.1),
    ('teacher.save_at', ('a',)),
    ('teacher.save_at', (INF,)),
    ('save_minutes', -1.0),
    ('save_minutes', NAN),
    ('temperature', INF),
    ('alpha', 1.1),
    ('extracted.scale', INF),
    ('extracted.share', 1.0),
    ('extracted.steps', ('a', 'b')),
    ('extracted.steps', (30.5, 29.5)),
    ('progressive.scores', (0.5, NAN)),
    ('progressive.scores', (True,)),
    ('progressive.checkpoints', ('x',)),
    ('extracted.checkpoint', -2),
    ('student.init_std', -1.0),
    ('student.dropout', NAN),
    ('teacher.width', 0),
  )
  def test_refuses(self, name, value):
    config = text_bert.tiny()
    ranges.check(config.to_dict())
    config.update_from_flattened_dict({name: value})
    with self.assertRaises(errors.UserError) as caught:
      ranges.check(config.to_dict())
    self.assertStartsWith(str(caught.exception), f'{name}=')
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ('seed', 2**32 - 1),
    ('optimizer.b1', 0),
    ('teacher.stop_at', 1.5),
    ('stop_at', INF),
    ('stop_at', -3.0),
    ('extracted.steps', (30, 30)),
    ('progressive.scores', (0, 1)),
    ('progressive.scores', (-2.5,)),
    ('extracted.checkpoint', -1),
    ('extracted.width', 0),
  )
  def test_accepts(self, name, value):
    config = parity_mlp.tiny()
    config.update_from_flattened_dict({name: value})
    ranges.check(config.to_dict())

  @parameterized.parameters(
    (NAN, r'^data.noise=nan must be a number\.$'),
    ((0.1, NAN), r'^data.noise=\(0.1, nan\): nan is not a number\.$'),
    ('a\0b', 'must be a string without null characters'),
    (len, '^data.noise=.* cannot be written as JSON'),
    (b'x', '^data.noise=.* cannot be written as JSON'),
  )
  def test_refuses_in_a_field_that_it_does_not_know(self, value, message):
    with self.assertRaisesRegex(errors.UserError, message):
      ranges.check_values({'data': {'noise': value}})

  @parameterized.parameters(INF, -1.0, 'a', None, ((('a', 1),),), True)
  def test_accepts_in_a_field_that_it_does_not_know(self, value):
    ranges.check_values({'data': {'noise': value}})

  @parameterized.parameters('gs://b/x', '~/x', 'a[b]', 'a\\b', '/dev/null/x')
  def test_a_folder_that_cannot_be(self, folder):
    config = text_bert.tiny()
    for block in (config.data, config.teacher, config.cache):
      block.folder = folder
      with self.assertRaisesRegex(errors.UserError, r'^\w+\.folder '):
        ranges.check(config.to_dict())
      block.folder = ''

  @parameterized.parameters('optimizer', 'teacher.optimizer')
  def test_a_field_that_the_optimizer_does_not_read(self, block):
    """A warning: a flag may name another optimizer than the file sets up."""
    config = parity_mlp.tiny()
    config.update_from_flattened_dict({f'{block}.name': 'adam'})
    config.update_from_flattened_dict({f'{block}.b1': 0.5})
    with self.assertNoLogs('absl', level='WARNING'):
      ranges.warn_of_unread(config)
    config.update_from_flattened_dict({f'{block}.name': 'sgd'})
    ranges.check(config.to_dict())
    with self.assertLogs('absl', level='WARNING') as caught:
      ranges.warn_of_unread(config)
    (line,) = caught.output
    self.assertIn(f'{block}.b1=0.5 is not read: it is a setting of adam', line)
    self.assertIn(f'{block}.name is sgd', line)

  def test_a_block_that_holds_itself(self):
    config = parity_mlp.tiny().to_dict()
    config['data']['again'] = config['data']
    with self.assertRaisesRegex(errors.UserError, 'holds itself'):
      ranges.check(config)

  def test_free_fields_are_checked_elsewhere(self):
    ranges.check_values({'mesh': {'seed': 0, 'data': -1}})

  def test_prefix_names_the_block(self):
    with self.assertRaisesRegex(errors.UserError, '^optimizer.b1=1.0 must'):
      ranges.check_values({'b1': 1.0}, 'optimizer.')


class TypeTest(parameterized.TestCase):
  """Fields of another type than their default, and fields that are missing."""

  def config(self):
    return parity_mlp.tiny('extracted').to_dict()

  @parameterized.parameters(
    ('teacher', None, 'teacher=None must be a block of fields'),
    ('cache', 'x', "cache='x' must be a block"),
    ('share_batches', 'no', "share_batches='no' must be True or False"),
    ('hard_labels', 0, 'hard_labels=0 must be True or False'),
    ('keep_best', (), r'keep_best=\(\) must be a string'),
    ('batch_size', [8], r'batch_size=\[8\] must be one value, not a list'),
    ('seed', {}, 'seed={} must be one value'),
    ('extracted.layers', 'h', "extracted.layers='h' must be a list"),
    ('progressive.rule', 'x', "Unknown progressive.rule 'x'"),
    ('data.d', [8], r'data.d=\[8\] must be one value'),
    ('data.d', 2**31 - 1, 'data.d=2147483647 must be a whole number from 1'),
    ('teacher.depth', 2**31 - 1, 'teacher.depth=2147483647 must be'),
  )
  def test_another_type_is_refused(self, field, value, message):
    config = self.config()
    *blocks, last = field.split('.')
    block = config
    for name in blocks:
      block = block[name]
    block[last] = value
    with self.assertRaisesRegex(errors.UserError, f'^{message}'):
      ranges.check(config)

  @parameterized.parameters('data', 'mesh', 'teacher.folder', 'extracted.steps')
  def test_a_missing_field_is_named(self, field):
    config = self.config()
    block, _, last = field.rpartition('.')
    del (config[block] if block else config)[last]
    with self.assertRaisesRegex(errors.UserError, f"no field '{field}'"):
      ranges.check(config)

  def test_a_field_that_the_task_or_the_model_reads_is_named(self):
    for block in ('data', 'student'):
      config = parity_mlp.tiny('extracted')
      with config.unlocked():
        config[block] = {}
      with self.assertRaisesRegex(errors.UserError, "has no field '[a-z]+'"):
        builders.check(builders.open_experiment(config, pathlib.Path('w')))


class RangeTest(parameterized.TestCase):
  @parameterized.parameters(
    (ranges.SHARE, 'a number in (0, 1)'),
    (ranges.RATE, 'a number in [0, 1)'),
    (ranges.POSITIVE, 'a finite number above 0'),
    (ranges.NOT_NEGATIVE, 'a finite number not below 0'),
    (ranges.FINITE, 'a finite number'),
    (ranges.RANGES['stop_at'], 'a number, or None'),
    (ranges.COUNT, 'a whole number from 1 to 2147483647'),
  )
  def test_says_what_is_allowed(self, allowed, text):
    self.assertEqual(str(allowed), text)


if __name__ == '__main__':
  absltest.main()
