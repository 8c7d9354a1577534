"""Agreement of the processes of a run on what they compute.

Each of them reads its own flags and files. Arrays that all of them make are
taken to be equal; where they are not, the result is that of no run.
"""

from collections.abc import Callable
from collections.abc import Mapping
import json
from typing import Any

from jax.experimental import multihost_utils
import numpy as np

from cxjax import errors
from cxjax import files
from cxjax.parallel import multihost


def require_same(find: Callable[[], Mapping[str, Any]]) -> None:
  """Compares values over the processes; all of them must call it.

  Args:
    find: returns JSON values by name; not called in a run of one process.

  Raises:
    UserError: the values differ; all processes raise it, with the fields.
  """
  if multihost.count() == 1:
    return
  text = json.dumps(find(), sort_keys=True)
  if len(set(_gathered(files.digest(text)))) == 1:
    return
  # A NaN, which is not equal to itself, is read as a text.
  first, *others = (
    json.loads(text, parse_constant=str) for text in _gathered(text)
  )
  for number, other in enumerate(others, 1):
    at = 'in process 0', f'in process {number}'
    differ = files.differences(first, other, at)
    errors.require(
      not differ,
      f'Processes 0 and {number} of this run differ: {differ}. Start the same '
      'command in all of them, on the same data.',
    )


def _gathered(text: str) -> list[str]:
  """The texts of all processes, in the order of their numbers."""
  data = text.encode()
  size = np.int32(len(data))
  sizes = multihost_utils.process_allgather(size).tolist()
  padded = np.frombuffer(data.ljust(max(sizes)), np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [
    row.tobytes()[:size].decode() for row, size in zip(rows, sizes, strict=True)
  ]
