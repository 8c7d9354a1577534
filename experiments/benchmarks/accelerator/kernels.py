"""Kernels of a step: what the time on the GPU goes to."""

import collections
from collections.abc import Iterator
import pathlib
import re
import tempfile
from typing import Any
from typing import TypeAlias

import jax

Row: TypeAlias = dict[str, Any]

SHOWN = 12
DISPATCHES = 2
# Name of an operation in XLA's text, and where it comes from in JAX.
_OPERATION = re.compile(
  r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.M
)


def rows(ours: Any, program: str, labels: Row) -> Iterator[Row]:
  """Profiles our steps.

  Args:
    ours: side of the comparison, `one_stage.Ours`; its program is compiled.
    program: XLA's text of the program.
    labels: columns of every row.

  Yields:
    The time on the GPU and the launches of a step, in all and of each of the
    kernels that take the most; nothing if the profiler sees no GPU.
  """
  num_steps = DISPATCHES * ours.unit
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      ours.seconds(num_steps)
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    found = _read(jax.profiler.ProfileData.from_file(str(path)))
  if not found:
    return
  sources = {
    re.sub(r'[.\-]', '_', name): source
    for name, source in _OPERATION.findall(program)
  }
  total = [sum(column) for column in zip(*found.values(), strict=True)]
  ordered = sorted(found.items(), key=lambda item: -item[1][0])
  for name, (us, launches) in [('all', total), *ordered[:SHOWN]]:
    yield {
      'table': 'kernels',
      **labels,
      'kernel': name[:40],
      'us': us / num_steps,
      'launches': launches / num_steps,
      'share': f'{us / total[0]:.1%}',
      'of': _short(sources.get(name, '')),
    }


def _read(profile: Any) -> dict[str, tuple[float, int]]:
  """Microseconds and launches of each kernel on the GPU."""
  found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
  for plane in profile.planes:
    if 'GPU' not in plane.name:
      continue
    for line in plane.lines:
      if line.name.startswith('Stream'):
        for event in line.events:
          found[event.name][0] += event.duration_ns / 1e3
          found[event.name][1] += 1
  return {name: (us, int(count)) for name, (us, count) in found.items()}


def _short(source: str) -> str:
  """The end of a name in JAX, without the loops around it."""
  parts = [
    part
    for part in source.split('/')
    if part not in ('while', 'body', 'jit(fun)', 'Transformer')
  ]
  return '/'.join(parts)[-60:]
