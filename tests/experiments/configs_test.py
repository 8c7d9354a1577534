"""The configs of experiments/: their fields, and that each can be planned."""

import importlib
import pathlib

from absl.testing import parameterized
import pytest

from cxjax.methods import registry
import experiments
from tests.configs.planned import plans

FOLDER = pathlib.Path(experiments.__path__[0])
CONFIGS = tuple(
  path.stem
  for path in sorted(FOLDER.glob('*.py'))
  if 'def get_config' in path.read_text() and path.stem != 'base'
)
SIZES = ('cpu', 'llama_1b', 'paper', 'tiny')
# Fields that other tools read: they keep their names.
CONTRACT = (
  'seed',
  'num_seeds',
  'batch_size',
  'num_steps',
  'log_every',
  'eval_every',
  'save_every',
  'teacher.width',
  'teacher.num_steps',
  'teacher.stop_at',
  'teacher.folder',
  'student.width',
  'optimizer.name',
  'optimizer.learning_rate',
  'extracted.steps',
  'extracted.share',
  'extracted.layers',
  'extracted.ending',
  'keep_best',
  'trainable',
)
PARITY = ('data.d', 'data.k', 'data.support')


def module_of(name):
  return importlib.import_module(f'experiments.{name}')


def sizes_of(name):
  return [size for size in SIZES if hasattr(module_of(name), size)]


class ConfigTest(parameterized.TestCase):
  """The configs of experiments/."""

  def test_finds_them(self):
    parity = ('parity_mlp', 'parity_transformer')
    masked = ('pcfg_bert', 'text_bert', 'wikipedia_bert')
    self.assertSameElements((*parity, *masked, 'causal_text'), CONFIGS)

  @parameterized.parameters(
    *((name, size) for name in CONFIGS for size in sizes_of(name))
  )
  def test_fields_that_other_tools_read(self, name, size):
    config = getattr(module_of(name), size)('extracted')
    flat = config.to_dict()
    fields = (*CONTRACT, *(PARITY if 'parity' in name else ()))
    for field in fields:
      block = flat
      for part in field.split('.'):
        self.assertIn(part, block, field)
        block = block[part]

  @pytest.mark.slow
  def test_the_smallest_size_can_be_planned(self):
    self.check_smallest('parity_mlp')

  @parameterized.parameters(*(n for n in CONFIGS if n != 'parity_mlp'))
  @pytest.mark.slow
  def test_so_can_that_of_sequences(self, name):
    self.check_smallest(name)

  def check_smallest(self, name):
    found = plans(module_of(name).tiny('extracted'), 'extracted')
    self.assertEqual(found.keys(), {'teacher', 'extracted'})
    self.assertEqual([s.stage.name for s in found['teacher']], ['labels'])
    self.assertEqual(found['extracted'][-1].stage.name, 'output')

  @pytest.mark.slow
  def test_every_method_can_be_planned(self):
    self.check_methods('parity_mlp', 'hidden0', tuple(registry.METHODS))

  @pytest.mark.slow
  def test_every_method_can_be_planned_for_sequences(self):
    # Those whose stages or terms have another form.
    methods = 'progressive', 'extracted', 'late_to_early', 'joint', 'custom'
    self.check_methods('parity_transformer', 'block0', methods)

  def check_methods(self, name, layer, methods):
    config = module_of(name).tiny('extracted')
    hidden = dict(student=layer, target=layer, projection='gaussian')
    config.custom.stages = (dict(terms=(hidden, dict(target='labels'))),)
    config.data.depth = 2  # The hierarchical variant: four classes.
    found = plans(config, *methods)
    self.assertEqual(found.keys(), {'teacher', *methods})
    (custom,) = found['custom']
    self.assertEqual(list(custom.terms), [layer, 'labels'])
    for name in methods:
      steps = sum(planned.stage.steps for planned in found[name])
      self.assertEqual(steps, config.num_steps)

  @parameterized.parameters(
    *((n, size) for n in CONFIGS for size in sizes_of(n) if size != 'tiny')
  )
  @pytest.mark.slow
  def test_every_size_can_be_planned(self, name, size):
    config = module_of(name).get_config(f'extracted,{size}')
    self.assertIn('extracted', plans(config, 'extracted'))
