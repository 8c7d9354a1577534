"""The job of a peer, and its trainer.

Needs NumPy alone: it runs in the virtual environment of every peer.
"""

from collections.abc import Iterator
import dataclasses
import functools
import json
import pathlib
from typing import Any
from typing import Protocol

import numpy as np

from experiments.benchmarks.peers import cases as cases_lib


class Cannot(Exception):
  """The peer cannot do a case; the message says why."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A case with its arrays, in a folder.

  Attributes:
    folder: holds job.json, arrays.npz and, for stored targets, targets.npy.
    case: the case.
    variant: name of the peer's variant.
  """

  folder: pathlib.Path
  case: cases_lib.Case
  variant: str

  @classmethod
  def read(cls, folder: pathlib.Path, variant: str) -> 'Job':
    """Reads the case of a folder."""
    fields = json.loads((folder / 'job.json').read_text())
    for role in ('teacher', 'student'):
      fields[role] = cases_lib.Model(**fields[role])
    return cls(folder, cases_lib.Case(**fields), variant)

  @functools.cached_property
  def arrays(self) -> dict[str, np.ndarray]:
    """All arrays by name."""
    with np.load(self.folder / 'arrays.npz') as found:
      return dict(found)

  def params(self, role: str) -> dict[str, np.ndarray]:
    """Initial parameters of a role, by their flax paths with slashes."""
    begin = f'{role}/'
    return {
      name.removeprefix(begin): leaf
      for name, leaf in self.arrays.items()
      if name.startswith(begin)
    }

  @property
  def matrix(self) -> np.ndarray | None:
    """`[d_T, d_S]`, the projection of a hidden stage."""
    return self.arrays.get('matrix')

  @functools.cached_property
  def targets(self) -> np.ndarray:
    """`[N, B, ..., C]`, the stored logits; read as they are needed."""
    return np.load(self.folder / 'targets.npy', mmap_mode='r')

  def batches(self, wide: bool = False) -> list[dict[str, np.ndarray]]:
    """Returns the batches.

    Args:
      wide: whether integers are int64.

    Returns:
      `{'x': [B, d]}`, or `{'tokens': [B, L]}` and, for an encoder,
      `{'target_positions': [B, P]}`.
    """
    names = ('x', 'tokens', 'target_positions')
    found = {name: self.arrays[name] for name in names if name in self.arrays}
    if wide:
      found = {
        name: leaf.astype(np.int64) if leaf.dtype.kind == 'i' else leaf
        for name, leaf in found.items()
      }
    return [
      {name: leaf[i] for name, leaf in found.items()}
      for i in range(self.case.drawn)
    ]


class Trainer(Protocol):
  """One way to train the student of a job.

  Attributes:
    seeds: number of students at once.
    unit: number of steps of which a round is a multiple.
  """

  seeds: int
  unit: int

  def losses(self, num_steps: int) -> list[float]:
    """Trains; returns the losses of the first student."""

  def run(self, num_steps: int) -> None:
    """Trains as a user of the library would, to be timed."""


class Loop:
  """A trainer of one step at a time; the batches come again and again."""

  seeds = unit = 1

  def __init__(self, job: Job) -> None:
    """Begins at the first batch."""
    self.job, self._number = job, job.case.drawn
    self._at = 0

  def step(self, number: int) -> Any:
    """Trains on a batch; returns its loss, which `float` can read."""
    raise NotImplementedError

  def _steps(self, num_steps: int) -> Iterator[Any]:
    for _ in range(num_steps):
      yield self.step(self._at % self._number)
      self._at += 1

  def losses(self, num_steps: int) -> list[float]:
    """Trains; returns the losses."""
    return [float(loss) for loss in self._steps(num_steps)]

  def run(self, num_steps: int) -> None:
    """Trains, and waits for the last step alone."""
    for loss in self._steps(num_steps):
      last = loss
    float(last)
