"""Several processes: how they join, agree, and notice that one dies."""

import os
import signal
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import pytest

from cxjax import errors
from cxjax.parallel import multihost
import processes

# Of a task that srun started.
SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_LOCALID': '0',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '2',
  'SLURM_STEP_NODELIST': 'node[1-4]',
}


class JoinTest(parameterized.TestCase):
  @parameterized.parameters(
    (('localhost:1', None, 0), 'num_processes is missing'),
    (('localhost:1', 2, None), 'process_id is missing'),
    ((None, 2, 0), 'coordinator is missing'),
    (('localhost', 2, 0), 'coordinator=localhost must be HOST:PORT'),
    (('localhost:1²', 2, 0), 'coordinator=localhost:1² must be HOST:PORT'),
    (('localhost:0', 2, 0), 'with a port from 1 to 65535'),
    (('localhost:65536', 2, 0), 'with a port from 1 to 65535'),
    (('localhost:' + '9' * 5_000, 2, 0), 'with a port from 1 to 65535'),
    (('http://localhost:1', 2, 0), 'must be HOST:PORT'),
    (('::1:2', 2, 0), 'is put in brackets'),
    ((' :1', 2, 0), 'must be HOST:PORT'),
    (('a\0b:1', 2, 0), 'must be HOST:PORT'),
    (('localhost:1', 10**11, 0), 'num_processes=10+ must be from 1 to 100000'),
    (('localhost:1', 0, 0), 'num_processes=0 must be from 1'),
    (('localhost:1', 2, 2), 'process_id=2 must be from 0'),
    (('localhost:1', 2, -1), 'process_id=-1 must be from 0'),
  )
  def test_half_of_it_is_one_line(self, given, message):
    with self.assertRaisesRegex(errors.UserError, message):
      multihost.join(*given)

  @parameterized.parameters('two', '²', '', '9' * 20)
  def test_environment_that_is_no_number(self, text):
    with (
      mock.patch.dict(os.environ, JAX_NUM_PROCESSES=text),
      self.assertRaisesRegex(errors.UserError, f'PROCESSES={text} must be a n'),
    ):
      multihost.join()

  @parameterized.parameters(
    ({}, None),
    ({**SLURM, 'SLURM_NTASKS': '1'}, None),
    (SLURM, (None, None, None)),
    # In the script of a job, outside srun.
    ({**SLURM, 'SLURM_STEP_NODELIST': None}, None),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, (None, None, None)),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'a:1',
        'JAX_NUM_PROCESSES': '3',
        'JAX_PROCESS_ID': '2',
      },
      ('a:1', 3, 2),
    ),
  )
  def test_looks_at_the_environment(self, env, expected):
    env = {name: value for name, value in env.items() if value is not None}
    with (
      mock.patch.dict(os.environ, env),
      mock.patch.object(jax.distributed, 'initialize') as initialize,
      mock.patch.object(multihost, '_watch'),
      mock.patch.object(jax.config, 'update'),
    ):
      multihost.join()
    if expected is None:
      initialize.assert_not_called()
    else:
      initialize.assert_called_once_with(*expected)

  def test_a_coordinator_that_cannot_be_reached(self):
    with (
      mock.patch.object(
        jax.distributed, 'initialize', side_effect=RuntimeError('timed out')
      ),
      mock.patch.object(jax.config, 'update'),
      self.assertRaisesRegex(
        errors.UserError, 'Cannot join the processes at a:1: timed out'
      ),
    ):
      multihost.join('a:1', 2, 0)


class OneProcessTest(absltest.TestCase):
  def test_agrees_with_itself(self):
    self.assertEqual(multihost.count(), 1)
    self.assertTrue(multihost.is_first())
    self.assertEqual(multihost.from_first(lambda: 3), 3)
    self.assertTrue(multihost.any_of(True))
    self.assertFalse(multihost.any_of(False))
    multihost.barrier()
    self.assertFalse(multihost.leave('wrong'))


# Two processes that agree, and put arrays on the devices of both.
AGREE = """
import sys
import jax
import numpy as np
from cxjax.parallel import mesh as mesh_lib
from cxjax.parallel import multihost

me = int(sys.argv[2])
multihost.join(sys.argv[1], 2, me)
assert multihost.count() == 2
assert multihost.is_first() == (me == 0)
assert multihost.from_first(lambda: 7 + me) == 7
assert multihost.any_of(me == 1) and not multihost.any_of(False)
multihost.barrier()

mesh = mesh_lib.make({'data': 2, 'fsdp': 2}, 8)
rows = mesh_lib.own_rows(mesh, 8)
assert rows == list(range(4 * me, 4 * me + 4)), rows
sharding = mesh_lib.ParameterSharding('fsdp')
params = {'w': np.arange(12.0).reshape(4, 3), 'key': jax.random.key(3)}
batch = np.arange(16.0).reshape(8, 2)
placed = mesh_lib.replicate(params, mesh)
sharded = mesh_lib.place({'w': params['w']}, mesh, sharding)
examples = mesh_lib.place_batch(batch, mesh, axis=0)
assert sharded['w'].sharding.spec == jax.P('fsdp', None)
with jax.set_mesh(mesh):
  both = lambda tree: mesh_lib.constrain_replicated((tree, tree['x'].sum()))
  found, total = jax.jit(both)({'w': sharded['w'], 'x': examples})
np.testing.assert_array_equal(jax.device_get(found['w']), params['w'])
np.testing.assert_array_equal(jax.device_get(found['x']), batch)
assert total == batch.sum()
np.testing.assert_array_equal(
  jax.random.key_data(placed['key']), jax.random.key_data(params['key'])
)
try:
  mesh_lib.make({'data': 2}, 8)
except ValueError as error:
  assert 'none of them of process 1' in str(error), error
else:
  raise AssertionError
print('agreed')
multihost.leave()
"""
# Two processes, one of which dies while both wait for each other.
DIE = """
import os, signal, sys
from cxjax.parallel import multihost
coordinator, who, process_id = sys.argv[1:]
multihost.join(coordinator, 2, int(process_id))
for i in range(10**6):
  multihost.any_of(False)
  if i == 10 and who == process_id:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
class TwoProcessesTest(parameterized.TestCase):
  def start(self, program, *args, devices=1, host='127.0.0.1'):
    address = f'{host}:{processes.free_port()}'
    return processes.finished(
      processes.start_two('-c', program, address, *args, devices=devices)
    )

  def test_they_agree(self):
    codes, said = self.start(AGREE, '{}', devices=2)
    self.assertEqual(codes, [0, 0], said)
    for out, _ in said:
      self.assertIn('agreed', out)

  @parameterized.parameters((0, '127.0.0.1'), (1, '127.0.0.1'), (1, '[::1]'))
  def test_one_is_killed_and_the_other_stops(self, who, host):
    if ':' in host and not processes.has_ipv6():
      self.skipTest('This machine has no IPv6.')
    codes, said = self.start(DIE, str(who), '{}', host=host)
    self.assertEqual(codes[who], -signal.SIGKILL, said)
    self.assertEqual(codes[1 - who], 1, said)
    self.assertIn(
      f'Error: Process {who} of this run ended abruptly. Start all',
      said[1 - who][1],
    )


if __name__ == '__main__':
  absltest.main()
