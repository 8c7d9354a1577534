"""Connections between processes: who is admitted, and who is not."""

import socket
import threading
from unittest import mock

from absl.testing import absltest

from cxjax.parallel import connections


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
