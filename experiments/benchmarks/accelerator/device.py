"""Cases of one device: its speed, and attention on it."""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cxjax.models import attention as attention_lib
from experiments.benchmarks.accelerator import pipe as pipe

Row: TypeAlias = dict[str, Any]

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'torch',
  'nvidia-cudnn-cu13',
)
# Matrix products: the dtype, and the precision of JAX.
PRODUCTS = {
  'bfloat16': (jnp.bfloat16, 'default'),
  'tf32': (jnp.float32, 'tensorfloat32'),
  'float32': (jnp.float32, 'highest'),
}
LENGTHS = (128, 512, 2048)
TOKENS = 16_384  # Tokens of a batch of attention, at every length.
HEADS, HEAD_WIDTH = 12, 64
TOLERANCE = 0.02  # Of outputs and gradients in bfloat16, relative in norm.
REPEATS = 5


def seconds_of(fun: Callable[..., Any], *args: Any, tiny: bool) -> list[float]:
  """Times a compiled function.

  Args:
    fun: the function.
    *args: its arguments.
    tiny: whether repetitions are short.

  Returns:
    Seconds of one call, for each repetition.
  """
  jax.block_until_ready(fun(*args))  # Compiles.
  calls, times = 1, []
  for i in range(REPEATS + 1):
    begin = time.perf_counter()
    for _ in range(calls):
      out = fun(*args)
    jax.block_until_ready(out)
    spent = (time.perf_counter() - begin) / calls
    times.append(spent)
    if not i:
      enough = 0.002 if tiny else 0.2
      calls = max(min(int(enough / spent), 1_000), 1)
  return times[1:]


def card() -> str:
  """Returns name, driver, memory and clocks of the GPU, '-' without one."""
  fields = (
    'name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit'
  )
  command = ['nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader']
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=20)
  except (OSError, subprocess.TimeoutExpired):
    return '-'
  return pipe.one_line(found.stdout) or '-'


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return '-'


def environment(*, tiny: bool) -> Iterator[Row]:
  """Yields the machine, the versions, and the peaks that are measured.

  Args:
    tiny: sizes for a CPU.

  Yields:
    Rows of 'measure' and 'value'. `share` reads 'peak bfloat16' and the like.
  """
  line = lambda measure, value: {
    'table': 'environment',
    'measure': measure,
    'value': value,
  }
  device = jax.devices()[0]
  yield line('device', f'{device.platform}: {device.device_kind}')
  yield line('card', card())
  cores = len(os.sched_getaffinity(0))
  yield line('CPU', f'{cores} cores, Python {platform.python_version()}')
  versions = ', '.join(f'{name} {_version(name)}' for name in PACKAGES)
  yield line('versions', versions)
  for name in PRODUCTS:
    yield line(f'peak {name}, TFLOP/s', _product(name, tiny))
  yield line('memory, GB/s', _bandwidth(tiny))


def _product(name: str, tiny: bool) -> float:
  """TFLOP per second of a square matrix product."""
  size = 256 if tiny else 8_192
  dtype, precision = PRODUCTS[name]
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
  times = seconds_of(
    jax.jit(functools.partial(jnp.matmul, precision=precision)), a, b, tiny=tiny
  )
  return 2 * size**3 / float(np.median(times)) / 1e12


def _bandwidth(tiny: bool) -> float:
  """GB per second of a pass over an array, bytes read and written."""
  size = 2**20 if tiny else 2**29
  x = jax.random.normal(jax.random.key(0), (size,), jnp.float32)
  times = seconds_of(jax.jit(lambda x: x + 1), x, tiny=tiny)
  return 2 * x.nbytes / float(np.median(times)) / 1e9


def _implementations() -> dict[str, Callable[..., jax.Array]]:
  """Attention of `(query, key, value, lengths)`, by name.

  `lengths` is `[B]`, the number of visible keys, or None if all are visible.
  """

  def ours(q: Any, k: Any, v: Any, lengths: Any) -> jax.Array:
    visible = None
    if lengths is not None:
      at = jnp.arange(k.shape[1])[None, None]
      visible = at < lengths[:, None, None]
    return attention_lib.dot_product_attention(q, k, v, visible)

  def theirs(q: Any, k: Any, v: Any, lengths: Any, *, name: Any) -> jax.Array:
    return jax.nn.dot_product_attention(
      q, k, v, key_value_seq_lengths=lengths, implementation=name
    )

  return {
    'ours': ours,
    **{n: functools.partial(theirs, name=n) for n in ('cudnn', 'xla')},
  }


def attention(*, tiny: bool) -> Iterator[Row]:
  """Times attention forward and backward, in bfloat16.

  Args:
    tiny: sizes for a CPU.

  Yields:
    A row for each length, mask and implementation, with the relative difference
    in norm from ours in float32; or with an error.
  """
  cases = [(length, False) for length in LENGTHS] + [(LENGTHS[1], True)]
  if tiny:
    cases = [(16, False), (16, True)]
  for length, masked in cases:
    batch = max((256 if tiny else TOKENS) // length, 1)
    shape = (batch, length, 2 if tiny else HEADS, HEAD_WIDTH)
    arrays = _arrays(shape)
    lengths = None
    if masked:  # From half the length to all of it.
      lengths = length - jnp.arange(batch) * (length // 2) // batch
    want = None
    for name, fun in _implementations().items():
      row = {
        'table': 'attention',
        'length': length,
        'batch': batch,
        'masked': masked,
        'implementation': name,
      }
      try:
        if want is None:
          want = _reference(fun, arrays, lengths)
        yield {**row, **_timed(fun, arrays, lengths, want, tiny)}
      except Exception as error:  # cuDNN: not this device, or not this shape.
        yield {**row, 'error': pipe.one_line(error)}


def _arrays(shape: tuple[int, ...]) -> list[jax.Array]:
  """Query, key, value, and the gradient of the output."""
  keys = jax.random.split(jax.random.key(0), 4)
  return [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]


def _both_ways(fun: Callable[..., jax.Array]) -> Callable[..., Any]:
  """Makes a function of the output and of the three gradients."""

  def both(arrays: list[jax.Array], lengths: jax.Array | None) -> Any:
    *inputs, gradient = arrays
    out, pull = jax.vjp(lambda *inputs: fun(*inputs, lengths), *inputs)
    return out, *pull(gradient)

  return jax.jit(both)


def _reference(
  fun: Callable[..., jax.Array],
  arrays: list[jax.Array],
  lengths: jax.Array | None,
) -> list[np.ndarray]:
  wide = [array.astype(jnp.float32) for array in arrays]
  with jax.default_matmul_precision('highest'):
    return [np.asarray(leaf) for leaf in _both_ways(fun)(wide, lengths)]


def _timed(
  fun: Callable[..., jax.Array],
  arrays: list[jax.Array],
  lengths: jax.Array | None,
  want: list[np.ndarray],
  tiny: bool,
) -> Row:
  both = _both_ways(fun)
  differences = [
    np.linalg.norm(np.asarray(got, np.float32) - leaf) / np.linalg.norm(leaf)
    for got, leaf in zip(both(arrays, lengths), want, strict=True)
  ]
  us = 1e6 * np.array(seconds_of(both, arrays, lengths, tiny=tiny))
  return {
    'us': float(np.median(us)),
    'low': float(us.min()),
    'high': float(us.max()),
    'difference of the output': float(differences[0]),
    'of the gradients': float(max(differences[1:])),
    'agrees': bool(np.max(differences) < TOLERANCE),  # False for NaN.
  }
