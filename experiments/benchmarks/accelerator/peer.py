"""PyTorch's side of the accelerator benchmark, seen from JAX's process."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
import pickle
import tempfile
from typing import Any

from experiments.benchmarks.accelerator import pipe as pipe

MODULE = 'torch_steps'


@dataclasses.dataclass(frozen=True)
class Side:
  """One way of PyTorch to train the student.

  Attributes:
    process: where it runs.
    name: its name there.
    unit: steps of which a round is a multiple.
    limit: longest round.
    built: seconds that it took to build.
    seeds: number of students.
  """

  process: pipe.Process
  name: str
  unit: int
  limit: int
  built: float
  seeds: int = 1

  def _ask(self, order: str, num_steps: int) -> Any:
    self.process.send({'order': order, 'side': self.name, 'steps': num_steps})
    return _value(self.process.receive())

  def losses(self, num_steps: int) -> list[float]:
    """Trains on the first batches; returns the losses."""
    return self._ask('losses', num_steps)

  def seconds(self, num_steps: int) -> float:
    """Trains on the first batches; returns the seconds that it took."""
    return self._ask('seconds', num_steps)


@dataclasses.dataclass(frozen=True)
class Built:
  """The sides of a comparison that could be built.

  Attributes:
    sides: the sides that work, by name.
    failed: the error of each that does not, in one line.
  """

  sides: Mapping[str, Side]
  failed: Mapping[str, str]


class Peer:
  """A process that trains with PyTorch (accelerator/torch_steps.py)."""

  def __init__(self, job: Mapping[str, Any]) -> None:
    """Takes what the process needs to know; it does not run yet."""
    self._job = job
    self._names: tuple[str, ...] = ()

  def __enter__(self) -> 'Peer':
    """Starts the process."""
    self._folder = tempfile.TemporaryDirectory()
    path = pathlib.Path(self._folder.name) / 'job'
    with path.open('wb') as file:
      pickle.dump(dict(self._job), file)
    self._process = pipe.Process(
      MODULE, [str(path)], extra={'JAX_PLATFORMS': 'cpu'}, group=False
    )
    return self

  def __exit__(self, *error: Any) -> None:
    """Ends the process."""
    self._process.close()
    self._folder.cleanup()

  def build(self, names: Sequence[str]) -> None:
    """Has the sides built, one after the other; does not wait.

    Args:
      names: keys of `torch_steps.SIDES`.
    """
    self._names = tuple(names)
    for name in names:
      self._process.send({'order': 'build', 'side': name})

  def built(self) -> Built:
    """Waits for the sides that `build` began."""
    sides, failed = {}, {}
    for name in self._names:
      answer = self._process.receive()
      if 'error' in answer:
        failed[name] = answer['error']
      else:
        sides[name] = Side(self._process, name, **answer['value'])
    return Built(sides, failed)


def _value(answer: Mapping[str, Any]) -> Any:
  if 'error' in answer:
    raise RuntimeError(f'PyTorch: {answer["error"]}')
  return answer['value']
