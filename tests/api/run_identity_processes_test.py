"""Two processes of `distill` that do not run the same."""

from absl.testing import parameterized
import pytest

import processes

pytestmark = pytest.mark.slow

# Two processes of one run, with a difference.
PAIR = """
import sys
sys.path.append('tests')
from cxjax.parallel import multihost
address, me, differs = sys.argv[1], int(sys.argv[2]), sys.argv[3]
multihost.join(address, 2, me)
import cxjax
from small_networks import X, Y, parameters, two_layers
teacher, student = (cxjax.from_fn(two_layers, parameters(i)) for i in (0, 1))
more = lambda what: me if what == differs else 0
try:
  cxjax.distill(
    cxjax.plan(teacher, student, (X, Y), num_steps=4),
    [(X + more('batch'), Y)],
    learning_rate=0.1 + more('rate'),
    mesh={'model': 2},
    held_out=(X, Y),
  )
except ValueError as error:
  print(error, flush=True)
multihost.leave()
"""


class TwoProcessesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('rate', r'learning_rate \(0.1 in process 0, 1.1 in process 1\)'),
    ('batch', r'first batch \(another\)'),
  )
  def test_a_difference_ends_both(self, what, message):
    address = f'127.0.0.1:{processes.free_port()}'
    codes, said = processes.finished(
      processes.start_two('-c', PAIR, address, '{}', what)
    )
    self.assertEqual(codes, [0, 0], said)
    for out, _ in said:
      self.assertRegex(out, f'Processes 0 and 1 of this run differ: {message}')
