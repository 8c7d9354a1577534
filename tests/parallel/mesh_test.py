"""Eight devices compute what one does, however students and batches lie."""

import functools
import pathlib
from unittest import mock

from absl.testing import parameterized
import chex
import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from cxjax.configs import builders
from cxjax import errors
from cxjax.configs import experiment
from cxjax.training import metric_log
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import curricula
from cxjax.training import compiled_steps
from experiments import parity_mlp
from experiments import parity_transformer
import faults

CONFIGS = {'mlp': parity_mlp.tiny, 'transformer': parity_transformer.tiny}
LAYERS = {'mlp': 'hidden0', 'transformer': 'block0'}
MESHES = {
  'data': {'data': 8},
  'fsdp': {'data': 2, 'fsdp': 4},
  'tensor': {'data': 2, 'fsdp': 2, 'model': 2},
  'seeds': {'seed': 2, 'data': 2, 'model': 2},
  'all': {'seed': 2, 'data': 1, 'fsdp': 2, 'model': 2},
  'each its own': {
    'data': 4,
    'model': 2,
    'student': 'replicated',
    'teacher': 'tensor',
  },
}
STEPS = 3


def config_of(model, method, mesh):
  config = CONFIGS[model](method)
  config.extracted.layers = ((LAYERS[model], LAYERS[model]),)
  if model == 'transformer':
    config.student.depth = config.teacher.depth = 1  # The second is alike.
  config.mesh.update(mesh)
  return config


def random_teacher(config):
  spec = builders.teacher_spec(config)
  params = jax.jit(spec.student.init)(jax.random.key(1), spec.held_out['x'])
  return curricula.Teacher(
    spec.student.apply, jax.device_get(params), spec.student.layers
  )


@functools.cache
def train(model, method, mesh):
  """The students after a few steps of every stage, and their metrics."""
  config = config_of(model, method, MESHES[mesh] if mesh else {'data': 1})
  teacher = random_teacher(config)
  spec = builders.student_spec(config, teacher)
  run = compiled_steps.CompiledSteps(spec)
  place = lambda params: mesh_lib.place(params, spec.mesh, spec.rules[1])
  with jax.set_mesh(spec.mesh):
    params = run.init(spec.init_keys)
    losses = []
    for one in spec.planned():
      matrices = run.project(one, spec.stage_keys)
      states = run.enter(one, spec.stage_keys, params)
      seen = place(teacher.params) if one.stage.needs_teacher else None
      states, out = run.advance(
        one, (10, 0), states, 0, STEPS, seen, matrices, spec.data_keys
      )
      params = states.params
      losses.append(jax.device_get(out['loss']))
    metrics = jax.device_get(run.evaluate(params))
  return states, losses, metrics


class MeshTest(parameterized.TestCase):
  def test_every_process_has_a_device(self):
    with (
      mock.patch.object(mesh_lib.processes, 'count', lambda: 2),
      self.assertRaisesRegex(errors.UserError, 'none of them of process 1'),
    ):
      mesh_lib.make({'data': 1}, 8)

  @parameterized.parameters(
    *(('mlp', 'extracted', mesh) for mesh in MESHES if mesh != 'all'),
    ('mlp', 'supervised', 'tensor'),
    ('transformer', 'extracted', 'all'),
  )
  def test_is_one_device(self, model, method, mesh):
    """One-shot and progressive run the output stage of `extracted`."""
    one, many = train(model, method, ''), train(model, method, mesh)
    chex.assert_trees_all_close(
      *jax.device_get((one, many)), rtol=1e-4, atol=1e-5
    )

  def test_a_run_goes_on_where_it_was_killed(self):
    config = config_of('mlp', 'extracted', MESHES['tensor'])
    whole, other = (
      pathlib.Path(self.create_tempdir().full_path) for _ in range(2)
    )
    experiment.run(config, whole)
    config.teacher.folder = str(whole / 'teacher')
    with faults.killed_after(5):
      experiment.run(config, other)
    experiment.run(config, other)
    folders = whole / 'extracted', other / 'extracted'
    self.assertEqual(*map(metric_log.read, folders))
    arrays = functools.partial(faults.arrays, config)
    chex.assert_trees_all_equal(*map(arrays, folders))

  @parameterized.parameters(
    ('data', P(None)),
    ('fsdp', P(None, 'fsdp')),
    ('tensor', P(None, 'fsdp', 'model')),
    ('seeds', P('seed', None, 'model')),
    ('each its own', P(None)),
  )
  def test_parameters_and_moments_are_parted(self, mesh, expected):
    states, _, _ = train('mlp', 'extracted', mesh)
    kernel = lambda tree: tree['params']['hidden0']['kernel']
    (adam, *_), _ = jax.tree.flatten(
      states.opt_state, is_leaf=lambda leaf: hasattr(leaf, 'mu')
    )
    for leaf in (kernel(states.params), kernel(adam.mu[0])):
      self.assertTrue(
        leaf.sharding.is_equivalent_to(
          jax.NamedSharding(leaf.sharding.mesh, expected), leaf.ndim
        ),
        leaf.sharding,
      )

  @parameterized.parameters(
    ('params/block0/query/kernel', (8, 8), P('fsdp', 'model')),
    ('params/block0/mlp_out/kernel', (32, 8), P('model', 'fsdp')),
    ('params/block0/mlp_in/bias', (32,), P('model')),
    ('params/block0/mlp_out/bias', (8,), P('fsdp')),
    ('params/tokens/embedding', (31, 8), P(None, 'fsdp')),
    ('opt_state/0/count', (), P()),
  )
  def test_spec(self, path, shape, expected):
    sizes = {'fsdp': 2, 'model': 4}
    self.assertEqual(mesh_lib.partition_spec(path, shape, 'tensor', sizes), expected)

  @parameterized.parameters(
    ({'data': 16}, 'take 16 devices: this machine has 8'),
    ({'data': 3}, 'batch_size=8 is not a multiple'),
    ({'fsdp': 0}, 'mesh.fsdp=0 must be at least 1'),
    ({'student': 'tensors'}, "rule 'tensors'.*mean 'tensor'"),
  )
  def test_what_cannot_be_is_one_line(self, mesh, message):
    config = config_of('mlp', 'one_shot', mesh)
    with self.assertRaisesRegex(errors.UserError, message):
      builders.check(config)

  def test_cpu_devices_do_not_make_another_run(self):
    one, two = (
      config_of('mlp', 'one_shot', {'cpu_devices': n}) for n in (1, 2)
    )
    self.assertEqual(builders.student_config(one), builders.student_config(two))

  @parameterized.parameters(
    (2, 8, -1, '', 2),
    (2, 1, -1, '', -1),
    (1, 8, -1, '', -1),
    (2, 8, 4, '', 4),
    (2, 8, -1, '--xla_force_host_platform_device_count=3', -1),
  )
  def test_a_cpu_is_parted_unless_told_otherwise(
    self, count, cores, told, flags, made
  ):
    config = mock.Mock(jax_num_cpu_devices=told)
    config.update = lambda name, value: setattr(config, name, value)
    with (
      mock.patch.object(devices_lib.jax, 'config', config),
      mock.patch.object(
        devices_lib.os, 'sched_getaffinity', lambda _: [0] * cores, create=True
      ),
      mock.patch.dict(devices_lib.os.environ, XLA_FLAGS=flags),
    ):
      devices_lib.part_cpu(count)
    self.assertEqual(config.jax_num_cpu_devices, made)

  @parameterized.parameters(
    ({}, 8), ({'fsdp': 2}, 4), ({'model': 4, 'seed': 2}, 1), ({'fsdp': 8}, 1)
  )
  def test_data_takes_what_is_left(self, mesh, data):
    made = mesh_lib.make({'data': -1, **mesh}, batch_size=8)
    self.assertEqual(made.shape['data'], data)
    self.assertEqual(made.size, data * np.prod(list(mesh.values()), dtype=int))
