"""Connections over which the processes of a run watch each other.

Each process has one to the first. It begins with the token of the run, from
either side.
"""

import hmac
import selectors
import socket
import time

from absl import logging

ANY = ('0.0.0.0', '::')  # Addresses of all interfaces.
PENDING = 64  # Connections that may be open without having sent the token.


def address(host: str | None) -> str:
  """The numeric address of a host, IPv4 if it has one; `ANY[0]` if unknown.

  Args:
    host: its name or address, an IPv6 address in brackets or without; None is
      this host.
  """
  name = host.strip('[]') if host else socket.gethostname()
  try:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
  except OSError:
    return ANY[0]
  found.sort(key=lambda one: one[0] != socket.AF_INET)
  return str(found[0][4][0])


def serve(name: str) -> socket.socket:
  """Opens a server at an address; on all interfaces if that is not local."""
  family = socket.AF_INET6 if ':' in name else socket.AF_INET
  try:
    return socket.create_server((name, 0), family=family, backlog=PENDING)
  except OSError:  # The address belongs to a gateway, for example.
    return socket.create_server(('', 0), family=family, backlog=PENDING)


def warn(why: object) -> None:
  """Warns of processes that do not watch each other."""
  logging.warning(
    'Not all processes can connect to watch each other (%s): the death of one '
    'may be noticed only after a minute or two.',
    why,
  )


def reach(
  where: tuple[str, int], token: bytes, number: int, seconds: float = 60
) -> socket.socket:
  """Connects to the first process, and waits until it has admitted this one.

  Raises:
    OSError: it cannot be reached, or takes this process for a stranger.
  """
  one = socket.create_connection(where, timeout=seconds)
  try:
    one.sendall(token + number.to_bytes(4))
    said = b''
    while len(said) < len(token):
      part = one.recv(len(token) - len(said))
      if not part:
        raise ConnectionError('process 0 closed the connection')
      said += part
  except OSError:
    one.close()
    raise
  return one


def admit(
  server: socket.socket, token: bytes, number: int, seconds: float = 60
) -> dict[int, socket.socket]:
  """Accepts the other processes of the run; it refuses any others.

  Args:
    server: where they connect.
    token: bytes that each of them sends first, before its number as four bytes.
    number: number of the other processes, which are numbered 1 to `number`.
    seconds: how long to wait for all of them.

  Returns:
    The connection to each process that came in time, by its number. It has
    been sent the token, so that it knows.
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
        known = known and 1 <= who <= number and who not in peers
        if known and _send(one, token):
          peers[who] = one
        else:
          one.close()
  for one in heard:
    one.close()
  if len(peers) < number:
    warn(f'{len(peers)} of {number} came in {seconds:g} s')
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
  if len(heard) == PENDING:
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


def _send(one: socket.socket, what: bytes) -> bool:
  """Sends a few bytes; returns whether the connection still holds."""
  try:
    one.sendall(what)
  except OSError:
    return False
  return True
