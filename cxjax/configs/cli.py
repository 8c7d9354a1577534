"""What the scripts share: one line for a mistake, results as text and CSV."""

from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import logging

from cxjax import errors
from cxjax.configs import experiment
from cxjax import files
from cxjax.parallel import multihost


def guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """`main`, with a `UserError` as one line on stderr and exit code 2.

  A run that was asked to stop, and saved, is no error: exit code 0.
  """

  def run(argv):
    quiet()
    try:
      main(argv)
    except errors.UserError as error:
      fail(error)
    except errors.Stopped as stopped:
      if multihost.is_first():
        print(stopped, file=sys.stderr)
    except BaseException as error:
      if not multihost.leave(f'{type(error).__name__}: {error}'):
        raise
      traceback.print_exc()
      _end(1)
    multihost.leave()

  return run


def fail(error: Exception | str) -> None:
  """Ends the program with one line on stderr and exit code 2."""
  # A KeyError puts quotes around its message.
  text = error.args[0] if isinstance(error, KeyError) else error
  lines = str(text).split('\n')
  said = ' '.join(map(str.strip, lines))
  print(f'Error: {said}', file=sys.stderr)
  disk = isinstance(getattr(error, '__cause__', None), OSError)
  # Threads of orbax would wait for a disk that failed, JAX for the others.
  if multihost.leave(said) or disk:
    _end(2)
  sys.exit(2)


def _end(code):
  """Ends the process at once, whatever its threads wait for."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def quiet() -> None:
  """Logs what cxjax says, and of others their warnings only."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(
    # Orbax reports every save in twenty lines, and one that failed in hundreds
    # before it raises.
    lambda record: (
      'cxjax' in record.pathname
      or (record.levelno > 20 and 'orbax' not in record.pathname)
    )
  )


def write(
  stem: pathlib.Path, text: str, rows: Sequence[dict[str, Any]]
) -> None:
  """Prints a table, and writes it as `stem.md` and its rows as `stem.csv`."""
  print(text)
  files.write_text(stem.with_suffix('.md'), text)
  experiment.write_csv(stem.with_suffix('.csv'), rows)
