"""Runs of several processes, each with its own devices.

All processes execute the same program and share a folder. The first process
writes the files of a run; all of them write and read the arrays of checkpoints.
"""

from collections.abc import Callable
import os
import re
import socket
import sys
import threading
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from cxjax import errors
from cxjax import streams
from cxjax.parallel import connections

# Environment variables of the clusters that jax.distributed detects.
_SLURM, _TPU = 'SLURM_NTASKS', 'TPU_WORKER_HOSTNAMES'
# Those of a process that `srun` started; the script of a job has some of them.
_SLURM_STEP = (
  'SLURM_JOB_ID',
  'SLURM_STEP_NODELIST',
  'SLURM_PROCID',
  'SLURM_LOCALID',
)
_DONE = b'done'  # Message of a process that ends because the run is done.
_LONGEST = 10_000  # Bytes of a message of another process that are kept.
_ADDRESS = 64  # Bytes of the longest numeric address, and more.
_TOKEN = 16  # Bytes of the secret that a process of the run sends first.
# A name, or an IPv6 address in brackets.
_HOST = re.compile(r'\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:/\[\]]+')
_LAST_PORT = 65_535
_MOST = 100_000  # Processes of a run.
# Connections for the death watch: to every other process in the first one, to
# the first process in the others.
_peers: list[socket.socket] = []


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of the run, if there are any.

  Missing arguments are read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID. Without any of them, a SLURM job of several tasks and a TPU
  pod are detected. Must be called before any computation.

  Args:
    coordinator: `HOST:PORT` of the first process, the same in all processes.
    num_processes: number of processes.
    process_id: number of this process, from 0.

  Raises:
    UserError: one of the arguments is missing or malformed, or the coordinator
      cannot be reached.
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
  # The preemption service would catch the signals that stop a run.
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


def _number(name: str) -> int | None:
  """Reads a whole number from an environment variable, if it is set."""
  text = os.environ.get(name)
  if text is None:
    return None
  errors.require(_is_number(text), f'{name}={text} must be a number.')
  return int(text)


def _is_number(text: str) -> bool:
  """Returns whether a text is ASCII digits; `isdigit` also accepts '²'."""
  return bool(re.fullmatch('[0-9]{1,9}', text))


def _cluster() -> bool:
  """Returns whether a SLURM job or a TPU pod started several processes."""
  tasks = os.environ.get(_SLURM, '1')
  step = all(name in os.environ for name in _SLURM_STEP)
  slurm = step and _is_number(tasks) and int(tasks) > 1
  return slurm or ',' in os.environ.get(_TPU, '')


def _check(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Raises UserError if an argument of `join` is missing or malformed."""
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
  assert coordinator is not None
  assert num_processes is not None
  assert process_id is not None
  host, _, port = coordinator.rpartition(':')
  errors.require(
    bool(_HOST.fullmatch(host))
    and host.isprintable()
    and _is_number(port)
    and 1 <= int(port) <= _LAST_PORT,
    f'--coordinator={coordinator} must be HOST:PORT, with a port from 1 to '
    f'{_LAST_PORT}, as 10.0.0.1:1234; an IPv6 address is put in brackets.',
  )
  errors.require(
    1 <= num_processes <= _MOST,
    f'--num_processes={num_processes} must be from 1 to {_MOST}.',
  )
  errors.require(
    0 <= process_id < num_processes,
    f'--process_id={process_id} must be from 0 to --num_processes='
    f'{num_processes} less 1.',
  )


def count() -> int:
  """Returns the number of processes."""
  return jax.process_count()


def is_first() -> bool:
  """Returns whether this is the first process, the one that writes files."""
  return jax.process_index() == 0


def barrier() -> None:
  """Waits until every process calls this function."""
  if count() > 1:
    multihost_utils.sync_global_devices('barrier')


def from_first(find: Callable[[], int]) -> int:
  """Broadcasts a number from the first process to all.

  Args:
    find: returns the number; called only in the first process.

  Returns:
    The number that `find` returned there.
  """
  if count() == 1:
    return find()
  value = np.int32(find() if is_first() else 0)
  return int(multihost_utils.broadcast_one_to_all(value))


def any_of(flag: bool) -> bool:
  """Returns whether the flag is set in any process."""
  if count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def leave(said: str = '') -> bool:
  """Tells the other processes that this one is about to end.

  Args:
    said: the reason, if the run is not done; the other processes then print it
      and end as well.

  Returns:
    Whether there are other processes. If so, a process that failed must end
    with `os._exit`: the exit handlers of JAX wait for all processes.
  """
  for peer in _peers:
    try:
      peer.sendall(said.encode() or _DONE)
      peer.shutdown(socket.SHUT_WR)
    except OSError:
      pass  # The other process has ended already.
  return bool(_peers)


def _watch(host: str | None) -> None:
  """Ends this process with an error message when another one dies.

  JAX would wait for the dead process for a minute or forever, and then abort.
  Every process keeps a connection to the first one, which breaks when either
  end dies.

  Args:
    host: address of the first process; None resolves its host name.
  """
  # The address, a text; the port; and the token.
  sent = np.zeros(_ADDRESS + 1 + _TOKEN, np.int32)
  if is_first():
    server = connections.serve(connections.address(host))
    name, port = server.getsockname()[:2]
    # A server on all interfaces is reached by the name of the host.
    name = connections.address(host) if name in connections.ANY else name
    text = name.encode().ljust(_ADDRESS, b'\0')
    sent[:] = (*text, port, *os.urandom(_TOKEN))
  received = multihost_utils.broadcast_one_to_all(sent).tolist()
  text, token = bytes(received[:_ADDRESS]), bytes(received[_ADDRESS + 1 :])
  try:
    if is_first():
      peers = connections.admit(server, token, count() - 1)
    else:
      address = text.rstrip(b'\0').decode(), received[_ADDRESS]
      peers = {0: connections.reach(address, token, jax.process_index())}
  except OSError as error:
    connections.warn(error)
    return
  finally:
    if is_first():
      server.close()
  _peers.extend(peers.values())
  for who, peer in peers.items():
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    threading.Thread(target=_listen, args=(peer, who), daemon=True).start()


def _listen(peer: socket.socket, who: int) -> None:
  """Waits until the process at the other end leaves or dies.

  Ends this process, unless the other one left because the run is done.

  Args:
    peer: the connection to the other process.
    who: its number.
  """
  said = b''
  try:
    while part := peer.recv(4096):
      said = (said + part)[:_LONGEST]
  except OSError:
    pass  # A broken connection means that the process died.
  if said == _DONE:
    return
  text = said.decode(errors='replace')
  # Codes that control a terminal are not printed.
  reason = ''.join(
    c if c.isprintable() or c == '\n' else '?' for c in text
  ) or (
    f'Process {who} of this run ended abruptly. Start all of them again: they '
    'go on from the last checkpoint.'
  )
  # The process must end although nobody may read why.
  stream: Any = streams.Tolerant(sys.stderr)
  print(f'Error: {reason}', file=stream, flush=True)
  leave(reason)
  os._exit(1)
