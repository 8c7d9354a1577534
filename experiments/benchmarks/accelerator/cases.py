"""The cases of the accelerator benchmark, in order of importance."""

from collections.abc import Mapping
import dataclasses
from typing import Any

_DEVICE = 'experiments.benchmarks.accelerator.device'
_STEPS = 'experiments.benchmarks.accelerator.steps'


@dataclasses.dataclass(frozen=True)
class Case:
  """One case: a function that yields rows.

  Attributes:
    name: name of the case.
    module: module of the function.
    function: name of the function; it takes `tiny` and the options.
    seconds: time limit.
    options: keyword arguments.
    extra: environment variables of its process.
  """

  name: str
  module: str
  function: str
  seconds: float
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  extra: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _device(name: str, seconds: float) -> Case:
  return Case(name, _DEVICE, name, seconds)


def _parity(name: str, stage: str, flags: str = '') -> Case:
  extra = {'XLA_FLAGS': flags} if flags else {}
  options = {'name': name, 'stage': stage}
  return Case(name, _STEPS, 'parity', 100, options, extra)


def _transformer(size: str, stage: str, compute: str) -> Case:
  middle = '_hidden' if stage == 'hidden' else ''
  name = f'{size}{middle}_{compute}'
  options = {'name': name, 'size': size, 'stage': stage, 'compute': compute}
  return Case(name, _STEPS, 'transformer', 170, options)


# Timed: one after the other.
TIMED = {
  case.name: case
  for case in (
    _device('environment', 60),
    _parity('parity', 'output'),
    _transformer('base', 'output', 'bfloat16'),
    _transformer('small', 'output', 'bfloat16'),
    _device('attention', 90),
    _parity('parity_hidden', 'hidden'),
    _transformer('base', 'hidden', 'bfloat16'),
    _transformer('small', 'output', 'float32'),
    # XLA records a whole loop as one CUDA graph: no launch waits for the CPU.
    _parity(
      'parity_graphs',
      'output',
      '--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL',
    ),
    _transformer('base', 'output', 'float32'),
    _transformer('small', 'hidden', 'bfloat16'),
    _transformer('small', 'hidden', 'float32'),
    _transformer('base', 'hidden', 'float32'),
  )
}
# Not timed: all at once, after the others (accelerator/commands.py).
TOGETHER = ('agreement', 'tests', 'tests_cpu')
NAMES = (*TIMED, *TOGETHER)
