"""What a dry run says, against arithmetic and against what a run holds."""

import functools
import importlib.util
import os
import unittest
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cxjax import dry_run
from cxjax import errors
from cxjax import experiment
from cxjax import hlo
from cxjax import mesh as mesh_lib
from cxjax import methods
from cxjax import programs as programs_lib
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


def dry(config, topology='cpu'):
  """The estimates, by run and stage."""
  devices = mesh_lib.topology(topology)
  recipes = experiment.abstract(config, [config.method], devices)
  return {
    f'{run}/{one.stage}': one
    for run, recipe in recipes.items()
    for one in dry_run.estimate(run, recipe)
  }


@functools.cache
def estimates(data):
  return dry(mlp(data=data))


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


class RunTest(parameterized.TestCase):
  def test_memory_is_what_a_run_holds(self):
    """On two of three axes; and it is the same program."""
    config = parity_mlp.tiny('extracted')
    config.mesh.update({'data': 2, 'fsdp': 2, 'model': 2})
    found = dry(config)
    recipe = experiment.teacher_recipe(config)
    params = jax.jit(recipe.student.init)(
      jax.random.key(1), recipe.held_out['x']
    )
    teacher = methods.Teacher(
      recipe.student.apply, params, recipe.student.layers
    )
    recipe = experiment.student_recipe(config, teacher)
    run = programs_lib.Programs(recipe)
    with jax.set_mesh(recipe.mesh):
      params = run.init(recipe.init_keys)
      for planned in recipe.planned():
        matrices = run.project(planned, recipe.stage_keys)
        states = run.enter(planned, recipe.stage_keys, params)
        seen = mesh_lib.place(teacher.params, recipe.mesh, recipe.rules[1])
        args = seen, matrices, recipe.data_keys, None
        expected = found[f'extracted/{planned.stage.name}'].memory
        scalars = 2 * 4  # Start and stop: the rate is constant.
        self.assertEqual(expected.arguments, held((states, *args)) + scalars)
        numbers = programs_lib.numbers((1, 0), 0, 10)
        program = run.compile_advance(planned, states, *numbers, *args)
        used = program.memory_analysis()
        self.assertEqual(
          (expected.arguments, expected.temporaries),
          (used.argument_size_in_bytes, used.temp_size_in_bytes),
        )
        states, _ = run.advance(planned, (1, 0), states, 0, 10, *args)
        params = states.params
        rest = expected.output - held(states) + used.alias_size_in_bytes
        self.assertBetween(rest, 0, 1_000)  # Loss, pointers of the tuple.

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
    devices = mesh_lib.topology('cpu')
    names = ['supervised', 'progressive']
    recipes = experiment.abstract(config, names, devices)
    self.assertCountEqual(recipes, names)
    stages = [one.stage.name for one in recipes['progressive'].planned()]
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
      mesh_lib.topology('v5e:4x4')

  @unittest.skipUnless(HAS_LIBTPU, 'Needs libtpu.')
  @parameterized.parameters('v5e:3x3', 'gpu', 'h100:2x2')
  def test_no_such_topology(self, name):
    with self.assertRaisesRegex(errors.UserError, f'{name}.* is no topology'):
      mesh_lib.topology(name)

  @unittest.skipUnless(HAS_LIBTPU, 'Needs libtpu.')
  def test_a_slice(self):
    on_cpu, found = estimates(4), dry(mlp(data=4), 'v5e:2x2')
    for name, one in found.items():
      self.assertEqual(one.chip, mesh_lib.CHIPS['TPU v5 lite'])
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
    self.assertRegex(found.misfit, r'^does not fit: 1\d\.\d+G of 15\.75G$')

  @unittest.skipUnless(HAS_LIBTPU, 'Needs libtpu.')
  @parameterized.parameters('v4:2x2x1', 'v5p:2x2x1', 'v6e:2x2')
  def test_a_chip_is_a_device(self, name):
    mesh = mesh_lib.make({'data': -1}, 8, mesh_lib.topology(name))
    self.assertEqual(mesh.size, 4)
    self.assertIsNotNone(mesh_lib.chip(mesh).links)


TPU = """\
HloModule m

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y), metadata={op_name="a{b" stack_frame_id=7}
}

%all-reduce-scatter.1 (p: f32[64]) -> f32[16] {
  %p = f32[64]{0:T(128)} parameter(0)
  %zero = s32[] constant(0)
  %all-reduce.1 = f32[64]{0:T(128)} all-reduce(%p), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[16]{0:T(128)} dynamic-slice(%all-reduce.1, %zero), \
dynamic_slice_sizes={16}
}

%fast.1 (p.1: f32[16]) -> f32[16] {
  %p.1 = f32[16]{0:T(128)S(1)} parameter(0)
  ROOT %double = f32[16]{0:T(128)S(1)} add(%p.1, %p.1)
}

%inner (state: (s32[], f32[16])) -> (s32[], f32[16]) {
  %state = (s32[], f32[16]{0:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %a = f32[16]{0:T(128)} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %all-gather.1 = f32[64]{0:T(128)} all-gather(%a), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %all-gather.2 = f32[64]{0:T(128)} all-gather(%a), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %fusion.1 = f32[16]{0:T(128)} fusion(%all-gather.1), kind=kCustom, \
calls=%all-reduce-scatter.1
  %near = f32[16]{0:T(128)S(1)} copy(%fusion.1)
  %nearer = f32[16]{0:T(128)S(1)} fusion(%near), kind=kLoop, calls=%fast.1
  %far = f32[16]{0:T(128)} copy(%nearer)
  ROOT %out = (s32[], f32[16]{0:T(128)}) tuple(%next, %far)
}

%under_four (state.1: (s32[], f32[16])) -> pred[] {
  %state.1 = (s32[], f32[16]{0:T(128)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %four = s32[] constant(4)
  ROOT %more = pred[] compare(%i.1, %four), direction=LT
}

%outer (state.2: (s32[], f32[16])) -> (s32[], f32[16]) {
  %state.2 = (s32[], f32[16]{0:T(128)}) parameter(0)
  ROOT %while.1 = (s32[], f32[16]{0:T(128)}) while(%state.2), \
condition=%under_four, body=%inner
}

%unknown (state.3: (s32[], f32[16])) -> pred[] {
  %state.3 = (s32[], f32[16]{0:T(128)}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a.1: f32[16]) -> (s32[], f32[16]) {
  %a.1 = f32[16]{0:T(128)} parameter(0)
  %none = s32[] constant(0)
  %first = (s32[], f32[16]{0:T(128)}) tuple(%none, %a.1)
  ROOT %while.2 = (s32[], f32[16]{0:T(128)}) while(%first), \
condition=%unknown, body=%outer
}
"""


class HloTest(parameterized.TestCase):
  @parameterized.parameters(1, 5)
  def test_a_program_of_a_tpu(self, turns):
    found, times = hlo.cost(TPU, [turns]), 4 * turns
    # The gather is in two parts, the reduction inside a fusion.
    self.assertEqual(
      found.collectives,
      {'all-gather': 4 * 64 * times, 'reduce-scatter': 4 * 64 * times},
    )
    self.assertEqual(found.sent, 3 / 4 * 2 * 4 * 64 * times)
    each = 3 * 4 + 2 * 4 * (64 + 16) + 4 * (64 + 16) + 2 * 4 * 16
    condition = 2 * 4 + 1  # Counted once in a turn of the loop around.
    self.assertEqual(found.moved, each * times + condition * turns)
    # Index; fusions: 64 of the reduction, 16.
    self.assertBetween(found.flops, (1 + 64 + 16) * times, 90 * times)

  def test_a_loop_of_jax(self):
    x = jnp.ones((32, 32))
    many = lambda n: jax.jit(
      lambda x: jax.lax.fori_loop(0, n, lambda i, x: x @ x + i, x)
    )
    text = many(7).lower(x).compile().as_text()
    self.assertBetween(hlo.cost(text).flops / (7 * 2 * 32**3), 1, 1.05)
    text = many(jnp.array(3)).lower(x).compile().as_text()
    # Not known to the compiler, were it an argument.
    self.assertGreater(hlo.cost(text, [3]).flops, 2 * 32**3)

  @parameterized.parameters(
    ('replica_groups=[4,2]<=[8]', 2),
    ('replica_groups=[4,2]<=[2,2,2]T(0,2,1), x', 2),
    ('replica_groups={{0,1,2},{3,4,5}}', 3),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 4),
    ('source_target_pairs={{0,1},{1,0}}', 2),
  )
  def test_group(self, attributes, expected):
    self.assertEqual(hlo._group(attributes), expected)

  def test_slices_and_updates_in_place_move_their_part(self):
    rows = jnp.zeros((1000, 64))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(rows, i):
      row = jax.lax.dynamic_index_in_dim(rows, i, keepdims=False)
      return rows.at[i].set(2 * row)

    text = update.lower(rows, 3).compile().as_text()
    self.assertLess(hlo.cost(text).moved, 10 * 4 * 64)


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
