"""Folders of the scripts, and the flags that name them."""

import itertools
import pathlib
import sys

from absl import flags

from cxjax import errors
from cxjax import folders

_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Folder of the runs; runs/SCRIPT if the script starts them.'
)
_RESULTS = flags.DEFINE_string(
  'results', 'experiments/results', 'Folder of the tables and pictures.'
)
for _flag in ('workdir', 'results'):  # --help of every script lists them.
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[_flag])


def workdir(name: str = '') -> pathlib.Path:
  """Returns the folder of the runs as an absolute path.

  Args:
    name: name of a script that starts runs; '' for a script that reads a run.

  Returns:
    The folder of --workdir, by default `runs/NAME`.

  Raises:
    UserError: a script that reads a run has no --workdir, or that cannot hold
      runs.
  """
  errors.require(
    bool(_WORKDIR.value or name),
    '--workdir is missing. Give the folder of a finished run, as '
    '--workdir=runs/demo.',
  )
  folder = _WORKDIR.value or f'runs/{name}'
  folders.check(folder, '--workdir')
  return pathlib.Path(folder).absolute()


def results() -> pathlib.Path:
  """Returns the folder of tables and pictures as an absolute path."""
  folders.check(_RESULTS.value, '--results')
  return pathlib.Path(_RESULTS.value).absolute()


def require_unset(flag: str) -> None:
  """Raises UserError for a flag of folders that a script does not read.

  Args:
    flag: 'workdir' or 'results'.
  """
  errors.require(
    flags.FLAGS[flag].using_default_value,
    f'--{flag} is not read by this script. Leave it out.',
  )


def fractions(flag: flags.FlagHolder[list[str]]) -> list[float]:
  """The numbers of a flag; raises UserError unless all are in (0, 1)."""
  try:
    found = list(map(float, flag.value))
  except ValueError:
    found = []
  errors.require(
    bool(found) and all(0 < number < 1 for number in found),
    f'--{flag.name}={",".join(flag.value)} must be numbers between 0 and 1, as '
    '0.001,0.01.',
  )
  return found


def command(script: str) -> str:
  """The command of a script as it was given, without its folders.

  Args:
    script: its name.
  """
  own = '--workdir', '--results'
  given = [
    argument
    for before, argument in itertools.pairwise(sys.argv)
    if before not in own and argument.partition('=')[0] not in own
  ]
  return ' '.join([f'python -m experiments.{script}', *given])
