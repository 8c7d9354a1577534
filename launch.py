"""Trains a teacher, and students by one method or by several.

  python launch.py --config=experiments/parity_mlp.py:extracted --workdir=DIR
  python launch.py --config=experiments/parity_mlp.py --workdir=DIR \
    --compare=supervised,one_shot,progressive,extracted

Any field of the config can be set: --config.data.d=30.
"""

import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from cxjax import errors
from cxjax import experiment
from cxjax import summary

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File of the experiment, :method after it.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the files go.')
_COMPARE = flags.DEFINE_list(
  'compare', [], 'Methods to run on the same teacher, instead of one.'
)


def parse(argv: list[str]) -> list[str]:
  """Parses flags; a mistake in them ends the program with one line."""
  try:
    rest = flags.FLAGS(argv)
  # ml_collections answers a mistake in an override with any of these.
  except (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    fail(error)
  for name in ('config', 'workdir'):
    if flags.FLAGS[name].value is None:
      fail(f'--{name} is missing. See launch.py --help.')
  return rest


def fail(error: Exception | str) -> None:
  """Ends the program with the message in one line and exit code 2."""
  lines = str(error).strip('\'"').split('\n')
  print(f'Error: {" ".join(line.strip() for line in lines)}', file=sys.stderr)
  sys.exit(2)


def main(argv: list[str]) -> None:
  """Runs what the flags ask for, and prints the table."""
  if argv[1:]:
    fail(f'Unknown argument {argv[1]!r}: flags begin with --.')
  logging.set_verbosity(logging.INFO)
  # Orbax reports every save in twenty lines.
  logging.get_absl_handler().addFilter(
    lambda record: record.levelno > 20 or 'orbax' not in record.pathname
  )
  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  try:
    if _COMPARE.value:
      summaries = experiment.compare(config, _COMPARE.value, workdir)
    else:
      summaries = [experiment.run(config, workdir)]
  except errors.UserError as error:
    fail(error)
  print(summary.compare_table(summaries))


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
