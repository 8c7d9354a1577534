"""The model registry, and what a model must declare."""

import types
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cxjax import errors
from cxjax.models import base

TASK = types.SimpleNamespace(num_classes=3, inputs=())
BLOCK = types.SimpleNamespace(width=4, depth=1, dropout=0.0)


class Linear:
  """A model from outside the package: a class with four members."""

  layers = ('hidden',)

  def __init__(self, num_classes, abilities=base.Abilities()):  # noqa: B008
    self.num_classes = num_classes
    self.abilities = abilities

  def init(self, key, x):
    return jax.random.normal(key, (x.shape[-1], self.num_classes))

  def apply(self, params, x):
    out = x @ params
    return out, {'hidden': out}


def build(block, task):
  del block
  return Linear(task.num_classes)


class RegistryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(base.MODELS))

  def test_holds_the_models_of_the_package(self):
    self.assertContainsSubset(('mlp', 'encoder', 'decoder'), base.MODELS)

  def test_makes_a_model_from_outside_the_package(self):
    base.register('linear', build)
    model = base.make('linear', BLOCK, TASK)
    self.assertIsInstance(model, base.Model)
    self.assertNotIsInstance(model, base.ModelWithHead)
    x = jnp.ones((2, 5))
    params = model.init(jax.random.key(0), x)
    self.assertEqual(model.apply(params, x)[0].shape, (2, 3))

  def test_unknown_name_offers_the_nearest(self):
    with self.assertRaisesRegex(
      errors.UserError, "Unknown model 'encodr'. Did you mean 'encoder'"
    ):
      base.make('encodr', BLOCK, TASK)

  def test_name_is_taken_by_one_builder(self):
    base.register('linear', build)
    base.register('linear', build)  # As when a config is imported twice.
    with self.assertRaisesRegex(
      errors.UserError, "model 'linear' already.*mlp, encoder"
    ):
      base.register('linear', lambda block, task: None)
    with self.assertRaisesRegex(errors.UserError, "'mlp' already"):
      base.register('mlp', build)

  def test_builder_must_be_a_function_that_returns_a_model(self):
    with self.assertRaisesRegex(errors.UserError, "'number' is a int"):
      base.register('number', 3)
    base.register('nothing', lambda block, task: None)
    with self.assertRaisesRegex(
      errors.UserError,
      "'nothing' returned a NoneType without layers, abilities, init, apply",
    ):
      base.make('nothing', BLOCK, TASK)

  @parameterized.parameters(
    (base.Abilities(), 'needs the dropout of Linear, which declares none'),
    (base.Abilities(dropout=0.0), 'dropout=0.1 needs a model with dropout'),
    (base.Abilities(dropout=0.1), None),
  )
  def test_dropout_of_a_config_must_be_declared(self, abilities, message):
    base.register('linear', lambda block, task: Linear(3, abilities))
    block = types.SimpleNamespace(dropout=0.1)
    if message is None:
      base.make('linear', block, TASK)
      return
    with self.assertRaisesRegex(errors.UserError, message):
      base.make('linear', block, TASK)
    base.make('linear', BLOCK, TASK)

  def test_a_task_is_not_written_out_unless_it_is_refused(self):
    # The repr of a corpus of 15,000 documents takes a minute.
    class Silent(types.SimpleNamespace):
      def __repr__(self):
        raise AssertionError('repr of a task')

    base.register('linear', lambda block, task: Linear(3, base.Abilities()))
    base.make('linear', BLOCK, Silent(num_classes=3, inputs=()))

  @parameterized.parameters(
    (base.Abilities(), 'SimpleNamespace needs the inputs of Linear, which'),
    (base.Abilities(inputs=()), "'tokens', 'mask', .*reads one array"),
    (base.Abilities(inputs=('tokens',)), "gives the input 'mask'.*only tokens"),
    (base.Abilities(inputs=('mask', 'tokens', 'segments')), None),
  )
  def test_inputs_of_a_task_must_be_read(self, abilities, message):
    base.register('linear', lambda block, task: Linear(3, abilities))
    task = types.SimpleNamespace(num_classes=3, inputs=('tokens', 'mask'))
    if message is None:
      base.make('linear', BLOCK, task)
      return
    with self.assertRaisesRegex(errors.UserError, message):
      base.make('linear', BLOCK, task)


class RequireTest(parameterized.TestCase):
  FULL = base.Abilities(inputs=(), dropout=0.1, partition_rules=(), head=True)

  @parameterized.parameters('inputs', 'dropout', 'partition_rules', 'head')
  def test_returns_a_declared_ability(self, ability):
    found = base.require(Linear(3, self.FULL), ability, 'test')
    self.assertEqual(found, getattr(self.FULL, ability))

  @parameterized.parameters('inputs', 'dropout', 'partition_rules')
  def test_undeclared_ability_is_an_error(self, ability):
    for model in (Linear(3), object()):
      with self.assertRaisesRegex(
        errors.UserError,
        f'mesh needs the {ability} of .*declares none.*Abilities.{ability}=',
      ):
        base.require(model, ability, 'mesh')

  def test_missing_ability_is_an_error(self):
    model = Linear(3, base.Abilities(dropout=0.0, head=False))
    for ability, value in (('dropout', '0.0'), ('head', 'False')):
      with self.assertRaisesRegex(
        errors.UserError, f'needs a model with {ability}; Linear has {value}'
      ):
        base.require(model, ability, 'chunks')

  def test_unknown_ability_is_an_error(self):
    with self.assertRaisesRegex(errors.UserError, "Unknown ability 'heads'"):
      base.require(Linear(3), 'heads', 'test')


class TransformerBuildTest(parameterized.TestCase):
  BLOCK = dict(
    width=16,
    heads=2,
    depth=3,
    mlp_width=0,
    tied=False,
    init_std=0.02,
    dtype='bfloat16',
    remat=True,
    dropout=0.1,
    max_length=0,
  )
  TASK = types.SimpleNamespace(
    num_classes=5, vocab_size=7, length=9, inputs=('tokens', 'mask')
  )

  @parameterized.named_parameters(('encoder', False), ('decoder', True))
  def test_builds_from_a_config_block(self, causal):
    name = 'decoder' if causal else 'encoder'
    block = types.SimpleNamespace(**self.BLOCK)
    model = base.make(name, block, self.TASK)
    self.assertEqual(model.causal, causal)
    self.assertEqual((model.max_length, model.vocab_size), (9, 7))
    self.assertEqual((model.num_classes, model.depth), (5, 3))
    self.assertEqual((model.dtype, model.dropout), (jnp.bfloat16, 0.1))
    block.max_length = 20
    self.assertEqual(base.make(name, block, self.TASK).max_length, 20)

  def test_errors(self):
    block = types.SimpleNamespace(**{**self.BLOCK, 'dtype': 'float64'})
    with self.assertRaisesRegex(errors.UserError, "Unknown dtype 'float64'"):
      base.make('encoder', block, self.TASK)
    task = types.SimpleNamespace(num_classes=5, inputs=())
    with self.assertRaisesRegex(errors.UserError, 'has no vocab_size'):
      base.make('encoder', block, task)
