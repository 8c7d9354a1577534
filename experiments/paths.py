"""Where the scripts read and write; the flags that they share."""

import pathlib

from absl import flags

from cxjax import errors

_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Of the runs; without it in runs/, by the name of the script.'
)
_RESULTS = flags.DEFINE_string('results', 'experiments/results', 'Of tables.')


def workdir(name: str = '') -> pathlib.Path:
  """Of the runs, absolute.

  Args:
    name: of a script that runs some; '' of one that reads a run.

  Returns:
    The folder.

  Raises:
    UserError: a script that reads a run was given none.
  """
  errors.require(
    bool(_WORKDIR.value or name), 'Say which run: --workdir=FOLDER.'
  )
  return pathlib.Path(_WORKDIR.value or f'runs/{name}').absolute()


def results() -> pathlib.Path:
  """Of tables and pictures, absolute."""
  return pathlib.Path(_RESULTS.value).absolute()
