"""Connections between processes: who is admitted, and who is not."""

import socket
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from cxjax.parallel import connections
import processes


class AddressTest(parameterized.TestCase):
  @parameterized.parameters(
    ('127.0.0.1', '127.0.0.1'),
    ('[::1]', '::1'),
    ('[2001:DB8::5]', '2001:db8::5'),
    ('no.such.host.invalid', '0.0.0.0'),
  )
  def test_is_numeric(self, host, expected):
    self.assertEqual(connections.address(host), expected)

  def test_of_a_host_with_both_is_the_old_one(self):
    found = [(socket.AF_INET6, 1, 6, '', ('::5', 0, 0, 0))]
    found.append((socket.AF_INET, 1, 6, '', ('10.0.0.5', 0)))
    with mock.patch.object(socket, 'getaddrinfo', lambda *_, **__: found):
      self.assertEqual(connections.address('both'), '10.0.0.5')

  @parameterized.parameters(
    ('127.0.0.1', '127.0.0.1'),
    ('192.0.2.1', '0.0.0.0'),  # Of no interface here.
    ('::1', '::1'),
    ('2001:db8::5', '::'),
  )
  def test_a_server_listens_there_or_everywhere(self, name, expected):
    if ':' in name and not processes.has_ipv6():
      self.skipTest('This machine has no IPv6.')
    with connections.serve(name) as server:
      self.assertEqual(server.getsockname()[0], expected)


class AdmitTest(absltest.TestCase):
  def test_strangers_are_turned_away(self):
    token = b'k' * 16
    with (
      socket.create_server(('127.0.0.1', 0)) as server,
      mock.patch.object(connections, 'PENDING', 3),
    ):
      address = server.getsockname()
      # More than may be open, one of which sends what a process does not.
      strangers = [socket.create_connection(address) for _ in range(5)]
      strangers[4].sendall(bytes(16) + (1).to_bytes(4))

      def join():
        with socket.create_connection(address, timeout=5) as peer:
          peer.sendall(token[:5])
          peer.sendall(token[5:] + (1).to_bytes(4))
          peer.recv(16)

      thread = threading.Thread(target=join)
      thread.start()
      peers = connections.admit(server, token, 1, seconds=10)
      thread.join()
    self.assertEqual(list(peers), [1])
    peers[1].close()
    for one in strangers:
      one.settimeout(5)
      self.assertEqual(one.recv(1), b'')
      one.close()

  def test_keeps_those_that_came_in_time(self):
    token, peers = b'k' * 16, {}
    with (
      socket.create_server(('127.0.0.1', 0)) as server,
      self.assertLogs('absl', 'WARNING') as logs,
    ):
      address = server.getsockname()
      admit = lambda: peers.update(connections.admit(server, token, 2, 0.5))
      thread = threading.Thread(target=admit)
      thread.start()
      one = connections.reach(address, token, 1, 5)
      # The other one is silent; it must not take the end for that of a process.
      with socket.create_connection(address) as silent:
        thread.join()
        silent.settimeout(5)
        self.assertEqual(silent.recv(1), b'')
    self.assertIn('1 of 2 came in 0.5 s', logs.output[0])
    self.assertEqual(list(peers), [1])
    peers[1].sendall(b'done')
    self.assertEqual(one.recv(4), b'done')
    for each in (one, peers[1]):
      each.close()

  def test_one_that_is_not_admitted_does_not_watch(self):
    with socket.create_server(('127.0.0.1', 0)) as server:
      thread = threading.Thread(target=lambda: server.accept()[0].close())
      thread.start()
      with self.assertRaises(OSError):
        connections.reach(server.getsockname(), bytes(16), 1, 5)
      thread.join()


if __name__ == '__main__':
  absltest.main()
