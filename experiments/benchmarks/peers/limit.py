r"""The least time of a step on this machine, measured product by product.

Each matrix product that a step needs (products.py) is timed alone, at its
shape, by XLA and by NumPy; the quicker counts. The optimizer adds one pass over
what it reads and writes. Softmax, norms and activations are left out: no step
is as quick.

`peers` starts it in a process of its own:
  python -m experiments.benchmarks.peers.limit SIZE CASE LOOKAHEAD
"""

from collections.abc import Callable
import functools
import json
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import tables
from experiments.benchmarks.accelerator import pipe as pipe
from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import products as products_lib

REPEATS = 5
ENOUGH = {'full': 0.05, 'tiny': 0.002}  # Seconds of a repetition.
PEAK = {'full': 2_048, 'tiny': 128}  # Side of the largest product.
STREAM = {'full': 2**27, 'tiny': 2**20}  # Numbers of the longest pass.
# Arrays of the size of the parameters that an update reads and writes: the
# parameters, the gradients and the moments.
ARRAYS = {'sgd': 3, 'adam': 7}


def _best(run: Callable[[int], Any], enough: float) -> float:
  """Returns the least seconds of one of `count` repetitions of `run(count)`."""
  count, times = 1, []
  while True:
    begin = time.perf_counter()
    run(count)
    spent = time.perf_counter() - begin
    if spent >= enough or count >= 2**20:
      break
    count *= 2
  for _ in range(REPEATS):
    begin = time.perf_counter()
    run(count)
    times.append((time.perf_counter() - begin) / count)
  return min(times)


def product_seconds(shape: tuple[int, int, int, int], enough: float) -> float:
  """Returns the seconds of one product of a shape, the best of XLA and NumPy.

  Args:
    shape: `(b, m, k, n)`.
    enough: seconds of a repetition.
  """
  b, m, k, n = shape
  rng = np.random.default_rng(0)
  left = rng.normal(size=(b, m, k)).astype(np.float32)
  right = rng.normal(size=(b, k, n)).astype(np.float32)

  @jax.jit
  def many(left: jax.Array, right: jax.Array, count: jax.Array) -> jax.Array:
    def body(_: Any, left: jax.Array) -> jax.Array:
      # The next product needs this one: none is left out.
      out = jnp.matmul(left, right)
      return left.at[0, 0, 0].set(out[0, 0, 0])

    return jax.lax.fori_loop(0, count, body, left)

  def by_numpy(count: int) -> None:
    for _ in range(count):
      np.matmul(left, right)

  by_xla = lambda count: jax.block_until_ready(many(left, right, count))
  by_xla(1)  # Compiles.
  return min(_best(by_xla, enough), _best(by_numpy, enough))


def pass_seconds(size: int, enough: float) -> float:
  """Returns the seconds of reading and writing an array of `size` numbers."""

  @jax.jit
  def many(x: jax.Array, count: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, count, lambda _, x: x * 1.0000001, x)

  x = jnp.ones(size, jnp.float32)
  run = lambda count: jax.block_until_ready(many(x, count))
  run(1)
  return _best(run, enough)


def of_case(size: str, name: str, lookahead: int) -> dict[str, Any]:
  """Measures the limit of a case.

  Args:
    size: key of `cases.SIZES`.
    name: name of the case.
    lookahead: number of batches that the teacher sees at once.

  Returns:
    'seconds' of a step, and 'note', the parts of it.
  """
  case, enough = cases_lib.SIZES[size][name], ENOUGH[size]
  products = products_lib.of_case(case, lookahead)
  shapes = {each[1:] for each in products}
  times = {shape: product_seconds(shape, enough) for shape in shapes}
  spent = sum(each.count * times[each[1:]] for each in products)
  flops = sum(each.flops for each in products)
  number = products_lib.parameters(case)
  arrays = ARRAYS[case.optimizer[0]]
  # A pass reads one array and writes one.
  update = pass_seconds(number, enough) * arrays / 2
  side, stream = PEAK[size], STREAM[size]
  peak = 2 * side**3 / product_seconds((1, side, side, side), enough)
  bandwidth = 8 * stream / pass_seconds(stream, enough)
  text = functools.partial(tables.number, digits=3)
  return {
    'seconds': spent + update,
    'note': (
      f'{text(flops / 1e6)} MFLOP of products, {text(1e6 * spent)} us at the '
      f'rates of their shapes ({text(flops / spent / 1e9)} GFLOP/s; a square '
      f'product {text(peak / 1e9)}); the update of {number:,} parameters '
      f'{text(1e6 * update)} us (memory {text(bandwidth / 1e9)} GB/s)'
    ),
  }


def measure(size: str, name: str, lookahead: int) -> dict[str, Any]:
  """Measures `of_case` in a process of its own."""
  module = 'experiments.benchmarks.peers.limit'
  found = subprocess.run(
    [sys.executable, '-m', module, size, name, str(lookahead)],
    cwd=pipe.ROOT,
    env=pipe.environment({'JAX_PLATFORMS': 'cpu'}),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(found.stdout.splitlines()[-1])


if __name__ == '__main__':
  _size, _name, _lookahead = sys.argv[1:]
  print(json.dumps(of_case(_size, _name, int(_lookahead))))
