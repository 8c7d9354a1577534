"""Several processes that are one run, each with devices of its own.

All of them execute the same program; only the first writes what a run leaves,
but for the arrays of checkpoints, which are written and read by all. They share
a folder.
"""

from collections.abc import Callable
import os
import socket
import sys
import threading

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from cxjax import errors

# What jax.distributed knows by itself, if there is more than one of them.
_SLURM, _TPU = 'SLURM_NTASKS', 'TPU_WORKER_HOSTNAMES'
_DONE = b'done'
_peers: list[socket.socket] = []


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of the run, if there are any.

  What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID; without those, a SLURM job of several tasks and a TPU pod are
  noticed. To be called before anything is computed.

  Args:
    coordinator: `HOST:PORT` of the first process, the same for all.
    num_processes: how many there are.
    process_id: which one this is, from 0.

  Raises:
    UserError: half of that, or an address where nobody can be met.
  """
  env = os.environ
  coordinator = coordinator or env.get('JAX_COORDINATOR_ADDRESS')
  if num_processes is None:
    num_processes = _number('JAX_NUM_PROCESSES')
  if process_id is None:
    process_id = _number('JAX_PROCESS_ID')
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    _check(*given)
  elif not _cluster():
    return
  # It would take the signals that stop a run.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(*given)
  except (RuntimeError, ValueError) as error:
    raise errors.UserError(
      f'Cannot join the processes at {coordinator or "the cluster"}: {error}'
    ) from error
  if not is_first():
    logging.set_verbosity(logging.WARNING)
  _watch(coordinator and coordinator.rpartition(':')[0])


def _number(name):
  text = os.environ.get(name)
  if text is None:
    return None
  errors.require(text.isdigit(), f'{name}={text} must be a number.')
  return int(text)


def _cluster():
  """Whether the environment is of several processes."""
  tasks = os.environ.get(_SLURM, '1')
  started = 'SLURM_PROCID' in os.environ and tasks.isdigit() and int(tasks) > 1
  return started or ',' in os.environ.get(_TPU, '')


def _check(coordinator, num_processes, process_id):
  for name, value in (
    ('coordinator', coordinator),
    ('num_processes', num_processes),
    ('process_id', process_id),
  ):
    errors.require(
      value is not None,
      f'--{name} is missing: several processes need --coordinator=HOST:PORT of '
      'the first, --num_processes, and each its own --process_id.',
    )
  host, _, port = coordinator.rpartition(':')
  errors.require(
    bool(host) and port.isdigit(),
    f'--coordinator={coordinator} must be HOST:PORT.',
  )
  errors.require(
    0 <= process_id < num_processes,
    f'--process_id={process_id} must be from 0 to --num_processes='
    f'{num_processes} less 1.',
  )


def count() -> int:
  """How many processes there are."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def barrier() -> None:
  """Waits until all processes are here."""
  if count() > 1:
    multihost_utils.sync_global_devices('barrier')


def from_first(find: Callable[[], int]) -> int:
  """What the first process finds; for all, even if they would find another.

  Args:
    find: called in the first process alone.

  Returns:
    The number.
  """
  if count() == 1:
    return find()
  value = np.int32(find() if is_first() else 0)
  return int(multihost_utils.broadcast_one_to_all(value))


def any_of(flag: bool) -> bool:
  """Whether any process has the flag set."""
  if count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def leave(said: str = '') -> bool:
  """Tells the other processes that this one is about to end.

  Args:
    said: why, if the run is not done; they end then as well.

  Returns:
    Whether there are others. A process that ends before its time should then do
    so at once: JAX's own end waits for all of them.
  """
  for peer in _peers:
    try:
      peer.sendall(said.encode() or _DONE)
      peer.shutdown(socket.SHUT_WR)
    except OSError:
      pass  # That one is gone already.
  return bool(_peers)


def _watch(host: str | None) -> None:
  """Ends this process when another one is gone, with a sentence.

  JAX would wait for it, for a minute or for ever, and then abort. Every process
  keeps a connection to the first, which breaks when either end dies.

  Args:
    host: of the first process; None is where its name leads to.
  """
  address = np.zeros(5, np.int32)
  if is_first():
    server = socket.create_server(('', 0), backlog=count())
    address[:] = (*_address(host), server.getsockname()[1])
  address = multihost_utils.broadcast_one_to_all(address).tolist()
  try:
    if is_first():
      server.settimeout(60)  # Seconds.
      _peers.extend(server.accept()[0] for _ in range(count() - 1))
    else:
      name = '.'.join(map(str, address[:4]))
      _peers.append(socket.create_connection((name, address[4]), timeout=60))
      _peers[0].sendall(jax.process_index().to_bytes(4))
  except OSError as error:
    logging.warning(
      'Processes do not watch each other (%s): one that dies is noticed after '
      'a minute or two.',
      error,
    )
    return
  finally:
    if is_first():
      server.close()
  for peer in _peers:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    threading.Thread(target=_listen, args=(peer,), daemon=True).start()


def _address(host):
  """Four numbers; without a name that leads anywhere, of this machine."""
  try:
    name = socket.gethostbyname(host or socket.gethostname())
  except OSError:
    name = '0.0.0.0'
  return map(int, name.split('.'))


def _listen(peer: socket.socket) -> None:
  """Waits for what the process at the other end has to say, or its end."""
  who, said = 0, b''
  try:
    if is_first():
      who = int.from_bytes(peer.recv(4, socket.MSG_WAITALL))
    while part := peer.recv(4096):
      said += part
  except OSError:
    pass  # A connection that broke is one that ended.
  if said == _DONE:
    return
  reason = said.decode(errors='replace') or (
    f'Process {who} of this run ended abruptly. Start all of them again: they '
    'go on from the last checkpoint.'
  )
  print(f'Error: {reason}', file=sys.stderr, flush=True)
  leave(reason)
  os._exit(1)
