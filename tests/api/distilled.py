"""Runs of `distill` on small networks that tests share. Not a test."""

import functools
import pathlib

from absl.testing import parameterized
import optax

import cxjax
from small_networks import ONE
from small_networks import PLAN
from small_networks import X
from small_networks import batches


class Ended(Exception):
  """Raised by a hook to end a run, which nothing of ours catches."""


def end_after(number, seen=None):
  """A hook that ends the run at its record `number`, from 1."""
  seen = [] if seen is None else seen

  def hook(record):
    seen.append(record)
    if len(seen) == number:
      raise Ended

  return hook


def distill(plan=ONE, data=None, **kwargs):
  return cxjax.distill(plan, batches() if data is None else data, **kwargs)


@functools.cache
def whole(stages=1):
  """A run that nothing interrupted, of `ONE` or of `PLAN`, for all tests."""
  plan = {1: ONE, 2: PLAN}[stages]
  return distill(plan, log_every=2, held_out=X)


class FolderTest(parameterized.TestCase):
  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)


FADING = optax.linear_schedule(1.0, 0.0, 0.5)  # In the first half.
