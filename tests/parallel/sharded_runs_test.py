"""Eight devices compute what one does, however students and batches lie."""

import functools
import pathlib
import tempfile
from unittest import mock

from absl import logging
from absl.testing import parameterized
import chex
import jax
from jax.sharding import PartitionSpec as P
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import identity
from cxjax.parallel import joint_gradients
from cxjax.training import abstract
from cxjax.training import compiled_steps
from cxjax.training import metric_log
from cxjax.training import teacher as teacher_lib
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


def opened(config):
  """The experiment of a config; these tasks keep nothing in the workdir."""
  return builders.open_experiment(config, pathlib.Path(tempfile.gettempdir()))


def random_teacher(opened):
  spec = builders.teacher_spec(opened)
  x = jax.device_get(spec.held_out['x'])
  params = jax.jit(spec.student.init)(jax.random.key(1), x)
  return teacher_lib.Teacher(
    spec.student.apply, jax.device_get(params), spec.student.layers
  )


@functools.cache
def train(model, method, mesh):
  """The students after a few steps of every stage, and their metrics."""
  config = config_of(model, method, MESHES[mesh] if mesh else {'data': 1})
  experiment_ = opened(config)
  teacher = random_teacher(experiment_)
  spec = builders.student_spec(experiment_, teacher)
  steps = compiled_steps.CompiledSteps(spec)
  with jax.set_mesh(spec.layout.mesh):
    params = steps.init(spec.keys.init)
    losses = []
    for i, planned in enumerate(spec.plan()):
      matrices = steps.matrices(planned, i)
      states = steps.init_stage(planned, spec.keys.stage, params)
      seen = None
      if planned.stage.needs_teacher:
        seen = steps.place_teacher(teacher.params)
      states, out = steps.train_many_steps(
        planned,
        (10, 0),
        (0, STEPS),
        states,
        0,
        STEPS,
        seen,
        matrices,
        spec.keys.data,
        None,
        None,
      )
      params = states.params
      losses.append(jax.device_get(out))
    metrics = jax.device_get(steps.evaluate(params))
  return states, losses, metrics


@pytest.mark.slow
class ShardedRunTest(parameterized.TestCase):
  @parameterized.parameters(
    *(('mlp', 'extracted', mesh) for mesh in MESHES),
    ('mlp', 'supervised', 'tensor'),
    ('transformer', 'one_shot', 'all'),
  )
  def test_is_that_of_one_device(self, model, method, mesh):
    """One-shot and progressive run the output stage of `extracted`."""
    one, many = train(model, method, ''), train(model, method, mesh)
    chex.assert_trees_all_close(
      *jax.device_get((one, many)), rtol=1e-4, atol=1e-5
    )

  @parameterized.parameters(
    ('data', P(None)),
    ('fsdp', P(None, 'fsdp')),
    ('tensor', P(None, 'fsdp', 'model')),
    ('seeds', P('seed', None, 'model')),
    ('each its own', P(None)),
  )
  def test_parameters_and_moments_are_sharded(self, mesh, expected):
    states, _, _ = train('mlp', 'extracted', mesh)
    kernel = lambda tree: tree['params']['hidden0']['kernel']
    (adam, *_), _ = jax.tree.flatten(
      states.opt_state, is_leaf=lambda leaf: hasattr(leaf, 'mu')
    )
    moments = adam.mu[0] if isinstance(adam.mu, tuple) else adam.mu
    for leaf in (kernel(states.params), kernel(moments)):
      self.assertTrue(
        leaf.sharding.is_equivalent_to(
          jax.NamedSharding(leaf.sharding.mesh, expected), leaf.ndim
        ),
        leaf.sharding,
      )

  @parameterized.parameters(('data', True), ('tensor', False), ('seeds', False))
  def test_whole_parameters_exchange_gradients_at_once(self, mesh, expected):
    experiment_ = opened(config_of('mlp', 'extracted', MESHES[mesh]))
    spec = builders.student_spec(experiment_, random_teacher(experiment_))
    planned = spec.plan()[0]
    _, program = compiled_steps.CompiledSteps(spec)._many_steps(planned)
    with (
      jax.set_mesh(spec.layout.mesh),
      mock.patch.object(
        joint_gradients, 'by_example', wraps=joint_gradients.by_example
      ) as exchange,
    ):
      jax.eval_shape(program, *abstract.arguments(spec, planned))
    self.assertEqual(exchange.called, expected)

  def test_goes_on_where_it_was_killed(self):
    config = config_of('mlp', 'extracted', MESHES['tensor'])
    for block in (config, config.teacher):
      block.num_steps, block.save_every = 12, 4
      block.log_every = block.eval_every = 2
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


@pytest.mark.devices(8)
class MeshOfAConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'data': 16}, 'take 16 devices: this machine has 8'),
    ({'data': 3}, 'batch_size=8 is not a multiple'),
    ({'fsdp': 0}, 'mesh.fsdp=0 must be at least 1'),
    ({'student': 'tensors'}, "'tensors'.*mean 'tensor'"),
  )
  def test_mistake_is_one_line(self, mesh, message):
    config = config_of('mlp', 'one_shot', mesh)
    with self.assertRaisesRegex(errors.UserError, message):
      builders.check(opened(config))

  def test_cpu_devices_do_not_make_another_run(self):
    one, two = (
      config_of('mlp', 'one_shot', {'cpu_devices': n}) for n in (1, 2)
    )
    self.assertEqual(identity.student_config(one), identity.student_config(two))

  @parameterized.parameters('mlp', 'transformer')
  def test_models_of_the_package_declare_every_parameter(self, model):
    """So that tensor parallelism warns of none."""
    config = config_of(model, 'one_shot', {'model': 2, 'data': 1})
    with self.assertNoLogs(logging.get_absl_logger(), 'WARNING'):
      builders.teacher_spec(opened(config))
