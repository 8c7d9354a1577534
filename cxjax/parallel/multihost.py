"""Runs of several processes, each with its own devices.

All processes execute the same program and share a folder. The first process
writes the files of a run; all of them write and read the arrays of checkpoints.
"""

from collections.abc import Callable
import hmac
import os
import re
import selectors
import socket
import sys
import threading
import time

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from cxjax import errors

# Environment variables of the clusters that jax.distributed detects.
_SLURM, _TPU = 'SLURM_NTASKS', 'TPU_WORKER_HOSTNAMES'
_DONE = b'done'  # Message of a process that ends because the run is done.
_LONGEST = 10_000  # Bytes of a message of another process that are kept.
_ANY = '0.0.0.0'  # Address of all interfaces.
_TOKEN = 16  # Bytes of the secret that a process of the run sends first.
# A name, or an IPv6 address in brackets.
_HOST = re.compile(r'\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:/\[\]]+')
_LAST_PORT = 65_535
_MOST = 100_000  # Processes of a run.
_PENDING = 64  # Connections that may be open without having sent it.
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
  slurm = 'SLURM_PROCID' in os.environ and _is_number(tasks) and int(tasks) > 1
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
  # Four numbers of the address, the port, and the token.
  sent = np.zeros(5 + _TOKEN, np.int32)
  if is_first():
    server = _serve(_address(host))
    name, port = server.getsockname()
    # A server on all interfaces is reached by the name of the host.
    name = _address(host) if name == _ANY else name
    sent[:] = (*map(int, name.split('.')), port, *os.urandom(_TOKEN))
  received = multihost_utils.broadcast_one_to_all(sent).tolist()
  token = bytes(received[5:])
  try:
    if is_first():
      peers = _admit(server, token, count() - 1)
    else:
      address = '.'.join(map(str, received[:4])), received[4]
      peers = {0: socket.create_connection(address, timeout=60)}
      peers[0].sendall(token + jax.process_index().to_bytes(4))
  except OSError as error:
    logging.warning(
      'The processes cannot connect to watch each other (%s): the death of one '
      'is noticed after a minute or two.',
      error,
    )
    return
  finally:
    if is_first():
      server.close()
  _peers.extend(peers.values())
  for who, peer in peers.items():
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    threading.Thread(target=_listen, args=(peer, who), daemon=True).start()


def _address(host: str | None) -> str:
  """The IPv4 address of a host, by default this one; `_ANY` if unknown."""
  try:
    return socket.gethostbyname(host or socket.gethostname())
  except OSError:
    return _ANY


def _serve(name: str) -> socket.socket:
  """Opens a server at an address; on all interfaces if that is not local."""
  try:
    return socket.create_server((name, 0), backlog=_PENDING)
  except OSError:  # The address belongs to a gateway, for example.
    return socket.create_server((_ANY, 0), backlog=_PENDING)


def _admit(
  server: socket.socket, token: bytes, number: int, seconds: float = 60
) -> dict[int, socket.socket]:
  """Accepts the other processes of the run; strangers are turned away.

  Args:
    server: where they connect.
    token: what each of them sends first, before its number as four bytes.
    number: how many there are: their numbers are 1 to `number`.
    seconds: how long to wait for all of them.

  Returns:
    The connection to each process, by its number.

  Raises:
    OSError: not all of them came in time.
  """
  until = time.monotonic() + seconds
  peers: dict[int, socket.socket] = {}
  heard: dict[socket.socket, bytes] = {}
  with selectors.DefaultSelector() as ready:
    server.setblocking(False)
    ready.register(server, selectors.EVENT_READ)
    while len(peers) < number and time.monotonic() < until:
      for key, _ in ready.select(until - time.monotonic()):
        if key.fileobj is server:
          _accept(server, heard, ready)
          continue
        one = key.fileobj
        # The oldest are closed to make room for others.
        if not isinstance(one, socket.socket) or one not in heard:
          continue
        part = _receive(one, len(token) + 4 - len(heard[one]))
        said = heard[one] + part
        if part and len(said) < len(token) + 4:
          heard[one] = said
          continue
        ready.unregister(one)
        del heard[one]
        who = int.from_bytes(said[len(token) :])
        known = part and hmac.compare_digest(said[: len(token)], token)
        if known and 1 <= who <= number and who not in peers:
          peers[who] = one
        else:
          one.close()
  for one in heard:
    one.close()
  if len(peers) < number:
    for one in peers.values():
      one.close()
    raise TimeoutError(f'{len(peers)} of {number} came in {seconds:g} s')
  return peers


def _accept(
  server: socket.socket,
  heard: dict[socket.socket, bytes],
  ready: selectors.BaseSelector,
) -> None:
  """Accepts a connection; closes the oldest one if too many are open."""
  try:
    one, _ = server.accept()
  except OSError:
    return  # It was closed meanwhile.
  one.setblocking(False)
  if len(heard) == _PENDING:
    oldest = next(iter(heard))
    ready.unregister(oldest)
    del heard[oldest]
    oldest.close()
  heard[one] = b''
  ready.register(one, selectors.EVENT_READ)


def _receive(one: socket.socket, size: int) -> bytes:
  """Reads what a connection has sent; nothing if it broke."""
  try:
    return one.recv(size)
  except OSError:
    return b''


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
  print(f'Error: {reason}', file=sys.stderr, flush=True)
  leave(reason)
  os._exit(1)
