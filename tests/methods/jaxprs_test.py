"""Tests of what is read from jaxprs."""

import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax.methods import jaxprs


def _scan(scale, carry, rows):
  step = lambda carry, row: (carry * scale + row, carry.sum())
  return jax.lax.scan(step, carry, rows)


class Trees:
  """Operands of a scan, which jax keeps in place of counts from 0.11 on."""

  def __init__(self, *sizes):
    self._sizes = sizes

  def unpack(self):
    return tuple((None,) * size for size in self._sizes)


class ScanCountsTest(parameterized.TestCase):
  def test_of_the_jax_that_is_installed(self):
    closed = jax.make_jaxpr(_scan)(*map(np.ones, ((), 3, (5, 3))))
    (scan,) = (e for e in closed.eqns if e.primitive.name == 'scan')
    self.assertEqual(jaxprs.scan_counts(scan), (1, 1))

  @parameterized.parameters(
    {'num_consts': 2, 'num_carry': 3}, {'ft_in': Trees(2, 3, 1)}
  )
  def test_of_every_jax(self, **params):
    scan = types.SimpleNamespace(params=params)
    self.assertEqual(jaxprs.scan_counts(scan), (2, 3))


class HashTest(absltest.TestCase):
  def test_rows_that_a_scan_returns_unread_do_not_matter(self):
    def last(step):
      fun = lambda rows: jax.lax.scan(step, jnp.zeros(3), rows)[0]
      return jaxprs.hash_jaxpr(jax.make_jaxpr(fun)(jnp.ones((5, 3))))

    alone = last(lambda carry, row: (carry + row, ()))
    self.assertEqual(alone, last(lambda carry, row: (carry + row, row)))
    self.assertNotEqual(alone, last(lambda carry, row: (carry - row, row)))


if __name__ == '__main__':
  absltest.main()
