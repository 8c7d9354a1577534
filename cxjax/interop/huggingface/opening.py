"""Opening files of a folder that may come from a stranger."""

import os
import pathlib
import stat
from typing import Any

from cxjax import arguments
from cxjax import errors
from cxjax import files

MOST = 2**28  # Bytes of a text file.


def require_regular(path: pathlib.Path, most: int | None = None) -> None:
  """Checks a file before it is opened.

  Args:
    path: a file of a model's folder that exists.
    most: the most bytes it may have; None is any number.

  Raises:
    UserError: it is no regular file, as a pipe that would never end, a link out
      of the folder, or too large.
  """
  folder = path.parent
  try:
    real, found = path.resolve(strict=True), path.stat()
  except (OSError, RuntimeError) as error:
    what = f'cannot be read ({error})'
    if path.is_symlink():
      what = f'is a link to {os.readlink(path)}, which is not there'
    raise errors.UserError(f'{path} {what}. Restore it.') from error
  # The cache of huggingface_hub links its snapshots to blobs of one model.
  allowed = (folder.resolve(), folder.resolve().parent.parent / 'blobs')
  errors.require(
    real.parent in allowed,
    f'{path} is a link to {real}, out of its folder. Copy the file there.',
  )
  errors.require(
    stat.S_ISREG(found.st_mode),
    f'{path} is no regular file. Put the file of the model there.',
  )
  errors.require(
    most is None or found.st_size <= most,
    f'{path} has {found.st_size:,} bytes; at most {most or 0:,} are read. Take '
    'the file of the model.',
  )


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that holds one object.

  Raises:
    UserError: the file cannot be read, is damaged, or holds something else.
  """
  require_regular(path, MOST)
  try:
    found = files.parse_json(files.read_text(path))
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error}). Restore it.'
    ) from error
  errors.require(
    isinstance(found, dict),
    f'{path} holds {arguments.json_kind(found)}; it must be a JSON object. '
    'Restore it.',
  )
  return found
