"""Serves the rows and stored targets of a run, one chunk ahead of it."""

import bisect
from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import TypeAlias

import jax
import numpy as np

from cxjax import types
from cxjax.data import loader
from cxjax.methods import stored_output
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import output_memory
from cxjax.training import run_spec
from cxjax.training.target_cache import head_cost
from cxjax.training.target_cache import heads
from cxjax.training.target_cache import reader

# `(number, rows)`, rows of `[streams, B, ...]`; raises UserError.
Check: TypeAlias = Callable[[int, loader.Rows], None]


class CachedTargetLoader(loader.Prefetch):
  """Loads rows and targets of a run from a cache.

  A chunk has the steps of one stage. Where another stage has some of the same
  `T` steps, the chunk holds zeros that nobody reads.
  """

  def __init__(
    self,
    cache: reader.CachedTargets,
    spec: run_spec.RunSpec,
    check: Check | None = None,
  ) -> None:
    """Reads nothing yet.

    Args:
      cache: holds all batches that the stages read.
      spec: the run.
      check: called with each batch as it is read.
    """
    super().__init__(spec.loop.log_every, spec.layout.mesh)
    self._cache, self._period = cache, spec.host.period
    self._check = check
    self._begins = (0, *spec.ends[:-1])
    every = range(0, spec.ends[-1], spec.loop.log_every)
    self._cuts = sorted({*every, *spec.ends})

  def rows(self, step: int) -> loader.Rows:
    """The rows of the chunk that holds `step`, or None."""
    return super().rows(step).get('rows')

  def targets(self, step: int) -> dict[str, types.Target]:
    """The targets of the chunk that holds `step`, by term."""
    return super().rows(step).get('targets', {})

  def _chunk(self, step: int) -> int:
    return bisect.bisect_right(self._cuts, step) - 1

  def _set(self, read: Callable[[str], Any]) -> None:
    """Needs no state: the step determines the next chunk."""

  def _read(self) -> tuple[loader.State, loader.Rows]:
    ahead = self._number + 1
    if ahead + 1 == len(self._cuts):  # The end of the run.
      return {}, {}
    begin, end = self._cuts[ahead : ahead + 2]
    stage = bisect.bisect_right(self._begins, begin) - 1
    steps = np.arange(begin, end)
    numbers = (steps % self._period).tolist()
    found = [self._cache.read(stage, n)[0] for n in numbers]
    if self._check is not None:
      for number, stored in zip(numbers, found, strict=True):
        self._check(number, stored.get('rows'))

    def stack(*leaves: np.ndarray) -> np.ndarray:
      out = np.zeros((self._steps, *leaves[0].shape), leaves[0].dtype)
      out[steps % self._steps] = leaves
      return out

    chunk = jax.tree.map(stack, *found)  # `[T, streams or S, B, ...]`.
    return {}, mesh_lib.place_batch(chunk, self._mesh, axis=2, seeds=1)


def served(
  cache: reader.CachedTargets,
  spec: run_spec.RunSpec,
  check: Check | None = None,
) -> run_spec.RunSpec:
  """The run of a specification, on stored targets.

  Args:
    cache: holds all batches that the stages read.
    spec: the run; its teacher is not run.
    check: called with the number and the rows of each batch as it is read.

  Returns:
    Its specification. With stored hidden states its teacher has the heads.

  Raises:
    UserError: a head is damaged, or is not the one of this teacher.
  """
  read = functools.partial(CachedTargetLoader, cache, spec, check)
  spec = dataclasses.replace(
    spec, host=dataclasses.replace(spec.host, loader=read)
  )
  needed = heads.checkpoints(spec)
  if cache.kind != stored_output.HIDDEN or not needed:
    return spec
  assert spec.teacher is not None
  _, shapes = output_memory.teacher_ending(spec)
  for checkpoint in needed:
    found = cache.head(checkpoint)
    heads.require_fit(shapes, found, cache.folder, cache.again)
  teacher = dataclasses.replace(spec.teacher, heads=cache.head)
  return dataclasses.replace(
    spec, teacher=teacher, plan_costs=head_cost.plan_with_costs
  )
