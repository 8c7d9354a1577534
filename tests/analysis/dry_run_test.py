"""Tests of dry runs, against arithmetic and against what a run holds."""

import functools
import importlib.util
import os
import pathlib
import tempfile
import unittest
from unittest import mock

from absl.testing import parameterized
import jax
import pytest

from cxjax import errors
from cxjax.analysis import dry_run
from cxjax.configs import builders
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import compiled_steps
from cxjax.training import multi_step
from cxjax.training import teacher as teacher_lib
from experiments import parity_mlp
from experiments import text_bert

# Products are nearly all of the work: 98% of it.
ROWS, BITS, WIDE, NARROW = 512, 64, 512, 256
HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None


def mlp(**mesh):
  config = parity_mlp.tiny('extracted')
  config.num_seeds = 1
  for block in (config, config.teacher):
    block.batch_size, block.optimizer.name = ROWS, 'sgd'
  config.data.d = BITS
  config.teacher.width, config.student.width = WIDE, NARROW
  config.mesh.update(mesh)
  return config


def joint(config):
  """The same by a stage of several terms, and one of the logits."""
  hidden = dict(student='hidden0', target='hidden0', projection='gaussian')
  config.method = 'custom'
  config.custom.stages = (
    dict(
      name='joint',
      steps=30,
      terms=(
        dict(**hidden, weight=dict(schedule='linear')),
        dict(target='labels', weight=0.5),
        dict(),
      ),
    ),
    dict(name='output', terms=({},)),
  )
  return config


def dry(config, topology='cpu'):
  """The estimates, by run and stage."""
  devices = devices_lib.topology(topology)
  specs = builders.abstract_specs(config, [config.method], devices)
  return {
    f'{run}/{one.stage}': one
    for run, spec in specs.items()
    for one in dry_run.estimate(run, spec)
  }


@functools.cache
def estimates(data, method='extracted'):
  config = mlp(data=data)
  return dry(joint(config) if method == 'custom' else config)


@pytest.mark.slow
class WorkTest(parameterized.TestCase):
  @parameterized.parameters(
    ('teacher/labels', 4 * BITS * WIDE + 6 * WIDE * 2),
    (
      'extracted/hidden0',
      2 * BITS * WIDE + 2 * WIDE * NARROW + 4 * BITS * NARROW,
    ),
    (
      'extracted/output',
      2 * (BITS * WIDE + WIDE * 2) + 4 * BITS * NARROW + 6 * NARROW * 2,
    ),
  )
  def test_flops_are_those_of_the_products(self, name, each):
    """Forward 2 mn, backward twice that; the input needs no gradient."""
    one, eight = estimates(1)[name], estimates(8)[name]
    self.assertBetween(one.cost.flops / (ROWS * each), 1, 1.05)
    self.assertBetween(eight.cost.flops * 8 / one.cost.flops, 0.99, 1.03)
    for found in (one, eight):
      self.assertBetween(found.over_written, 0.98, 1.04)

  def test_several_terms_cost_one_pass_of_each_network(self):
    """The passes to the logits, and a projection: no sum of stages."""
    data = 8
    found = estimates(data, 'custom')['custom/joint']
    teacher = 2 * (BITS * WIDE + WIDE * 2 + WIDE * NARROW)
    student = 4 * BITS * NARROW + 6 * NARROW * 2
    each = ROWS * (teacher + student) / data
    self.assertBetween(found.cost.flops / each, 1, 1.1)
    self.assertBetween(found.over_written, 0.97, 1.06)
    share = teacher / (teacher + student)
    self.assertAlmostEqual(found.teacher_share, share, delta=0.03)

  def test_loops_are_counted_as_often_as_they_turn(self):
    """Several batches looked ahead, each in two parts, of two seeds."""
    config = mlp(data=8)
    config.num_seeds, config.lookahead, config.microbatches = 2, 5, 2
    for name, one in dry(config).items():
      self.assertBetween(one.over_written, 0.97, 1.06, name)

  def test_data_parallelism_reduces_the_gradients_and_the_loss(self):
    found = estimates(8)['teacher/labels']
    size = 4 * (BITS * WIDE + WIDE + WIDE * 2 + 2) + 4
    self.assertEqual(found.cost.collectives, {'all-reduce': size})
    self.assertAlmostEqual(found.cost.sent, 2 * 7 / 8 * size)

  def test_memory_is_moved_at_least_once(self):
    found = estimates(1)['teacher/labels']
    batch = 4 * ROWS * (BITS + WIDE)
    self.assertBetween(found.cost.moved, batch, 20 * batch)

  def test_the_share_of_the_teacher(self):
    found = estimates(1)
    self.assertEqual(found['teacher/labels'].teacher_share, 0)
    teacher = 2 * BITS * WIDE + 2 * WIDE * NARROW
    share = teacher / (teacher + 4 * BITS * NARROW)
    self.assertAlmostEqual(
      found['extracted/hidden0'].teacher_share, share, delta=0.01
    )


@pytest.mark.slow
class RunTest(parameterized.TestCase):
  def test_memory_is_what_a_run_holds(self):
    """On two of three axes; and it is the same program."""
    config = joint(parity_mlp.tiny('custom'))
    config.mesh.update({'data': 2, 'fsdp': 2, 'model': 2})
    found = dry(config)
    workdir = pathlib.Path(tempfile.gettempdir())
    opened = builders.open_experiment(config, workdir)
    spec = builders.teacher_spec(opened)
    params = jax.jit(spec.student.init)(jax.random.key(1), spec.held_out['x'])
    teacher = teacher_lib.Teacher(
      spec.student.apply, params, spec.student.layers
    )
    spec = builders.student_spec(opened, teacher)
    steps, keys = compiled_steps.CompiledSteps(spec), spec.keys
    with jax.set_mesh(spec.layout.mesh):
      params = steps.init(keys.init)
      for index, planned in enumerate(spec.plan()):
        matrices = steps.matrices(planned, index)
        states = steps.init_stage(planned, keys.stage, params)
        seen = steps.place_teacher(teacher.params)
        args = seen, matrices, keys.data, None, None
        expected = found[f'custom/{planned.stage.name}'].memory
        # Start, stop and the span of the stage; the rate is constant. JAX 0.12
        # leaves the span out where no weight follows a schedule.
        scalars = expected.arguments - held((states, *args))
        self.assertIn(scalars, (4 * 4, 4 * 2))
        numbers = multi_step.int32_arguments((1, 0), (0, 1), 0, 10)
        program = steps.compile_train_many_steps(
          planned, states, *numbers, *args
        )
        used = program.memory_analysis()
        self.assertEqual(
          (expected.arguments, expected.temporaries),
          (used.argument_size_in_bytes, used.temp_size_in_bytes),
        )
        states, _ = steps.train_many_steps(
          planned, (1, 0), (0, 1), states, 0, 10, *args
        )
        params = states.params
        rest = expected.output - held(states) + used.alias_size_in_bytes
        self.assertBetween(rest, 0, 1_000)  # Losses, pointers of the tuple.

  def test_a_text_is_not_read(self):
    config = text_bert.tiny('one_shot')
    config.data.source = 'files:/nowhere/*.txt'
    config.data.tokenizer = '/nowhere/tokenizer.json'
    config.teacher.folder = '/nowhere'
    memory = dry(config)['one_shot/output'].memory
    data = config.data
    tokens = 4 * 3 * config.log_every * config.batch_size * data.length
    held_out = data.eval_size * data.length * (4 * 3 + 1)
    self.assertGreater(memory.arguments, tokens)
    self.assertGreater(memory.beside, tokens + held_out)

  def test_a_teacher_from_elsewhere_is_not_trained(self):
    config = parity_mlp.tiny('one_shot')
    config.teacher.folder = '/nowhere'
    devices = devices_lib.topology('cpu')
    names = ['supervised', 'progressive']
    specs = builders.abstract_specs(config, names, devices)
    self.assertCountEqual(specs, names)
    stages = [one.stage.name for one in specs['progressive'].plan()]
    self.assertLen(stages, 2)

  @parameterized.parameters(
    ({'data': 16}, 'take 16 devices: the topology has 8'),
    ({'data': 3}, 'batch_size=512 is not a multiple'),
  )
  def test_a_mesh_that_cannot_be_is_one_line(self, mesh, message):
    with self.assertRaisesRegex(errors.UserError, message):
      dry(mlp(**mesh))


class TopologyTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(os.environ))

  def test_without_libtpu(self):
    with (
      mock.patch.object(importlib.util, 'find_spec', return_value=None),
      self.assertRaisesRegex(errors.UserError, "v5e:4x4.*pip install 'libtpu"),
    ):
      devices_lib.topology('v5e:4x4')

  @unittest.skipUnless(HAS_LIBTPU, 'Needs libtpu.')
  @parameterized.parameters(
    ('v5e:3x3', 'is no topology'),
    ('gpu', 'is not a known topology'),
    ('h100:2x2', 'is not a known topology'),
  )
  def test_no_such_topology(self, name, message):
    with self.assertRaisesRegex(errors.UserError, f'{name}.* {message}'):
      devices_lib.topology(name)

  @unittest.skipUnless(HAS_LIBTPU, 'Needs libtpu.')
  def test_a_slice(self):
    on_cpu, found = estimates(4), dry(mlp(data=4), 'v5e:2x2')
    for name, one in found.items():
      self.assertEqual(one.chip, devices_lib.CHIPS['TPU v5 lite'])
      self.assertIn(one.bound, ('FLOPs', 'memory', 'collectives'))
      ratio = one.cost.flops / on_cpu[name].cost.flops
      self.assertBetween(ratio, 0.97, 1.03, name)
      self.assertEqual(
        one.cost.collectives['all-reduce'],
        on_cpu[name].cost.collectives['all-reduce'],
      )

  @unittest.skipUnless(HAS_LIBTPU, 'Needs libtpu.')
  def test_what_does_not_fit_is_said(self):
    config = parity_mlp.tiny('one_shot')
    config.teacher.width = 100_000_000
    found = dry(config, 'v5e:2x2')['teacher/labels']
    self.assertRegex(
      found.memory_problem, r'^does not fit: \d+\.\d+G of 15\.75G$'
    )

  @unittest.skipUnless(HAS_LIBTPU, 'Needs libtpu.')
  @parameterized.parameters('v4:2x2x1', 'v5p:2x2x1', 'v6e:2x2')
  def test_a_chip_is_a_device(self, name):
    mesh = mesh_lib.make({'data': -1}, 8, devices_lib.topology(name))
    self.assertEqual(mesh.size, 4)
    self.assertIsNotNone(devices_lib.chip(mesh).links)


class HumanTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, 'B', '0 B'),
    (999.4, 'B', '999 B'),
    (1.0617e12, '', '1.06 T'),
    (17_179_869_184, 'B', '17.2 GB'),
    (0.01806, 's', '18.1 ms'),
    (99.96e6, 'B', '100 MB'),
    (None, 'B', None),
  )
  def test_human(self, value, unit, expected):
    self.assertEqual(dry_run.human(value, unit), expected)


def held(tree):
  """Bytes on the first device, as arrays have them."""
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )
