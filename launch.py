"""Trains a teacher and then its students, by one method or by several.

One method; a comparison; the cost of a run; targets stored for later runs:

python launch.py --config=experiments/parity_mlp.py:extracted --workdir=DIR
python launch.py --config=experiments/parity_mlp.py --workdir=DIR --compare=supervised,one_shot,progressive,extracted
python launch.py --config=experiments/parity_mlp.py:extracted --dry_run=cpu
python launch.py --config=experiments/text_bert.py --workdir=DIR --cache_targets=CACHE

Experiments, one file each in experiments/: parity_mlp, parity_transformer,
pcfg_bert, text_bert, wikipedia_bert. Methods: supervised, one_shot,
progressive, extracted, custom. Sizes: cpu (the default), paper, tiny.

Every field of the config is a flag: --config.data.d=30.

The same command, started again, goes on from the last checkpoint.

Several processes, each with its own devices, train one run: start the same
command in each, with --coordinator, --num_processes and --process_id. SLURM
jobs and TPU pods need none of these flags.
"""  # noqa: E501  Commands to copy.

import pathlib

from absl import app
from absl import flags
import ml_collections
from ml_collections import config_flags

from cxjax import errors
from cxjax.analysis import dry_run
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import experiment
from cxjax.configs import flags as flags_lib
from cxjax.configs import stored_targets
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import multihost
from cxjax.training import summary as summary_lib
from cxjax.training import target_cache

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'File of the experiment; after a colon, a method, a size or both: '
  'FILE:extracted,tiny.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Folder of the run.')
_COMPARE = flags.DEFINE_list(
  'compare', [], 'Methods to train by, one after the other, on one teacher.'
)
_DRY_RUN = flags.DEFINE_string(
  'dry_run',
  None,
  'Compile every stage for cpu or for a TPU topology, as v5e:4x4, and print '
  'what it needs; train nothing and write nothing.',
)
_CACHE = flags.DEFINE_string(
  'cache_targets',
  '',
  "Folder: run the teacher once over the students' batches, store its targets "
  'there, and train no student. --config.cache.folder reads them.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of the first of several processes.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Number of this process, from 0.'
)


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; a mistake ends the program with one line.

  Args:
    argv: the command line.

  Returns:
    The arguments that are no flags, after the name of the program.
  """
  try:
    flags_lib.check(argv)
    rest = flags.FLAGS(argv)
    needed = ['config'] if _DRY_RUN.value is not None else ['config', 'workdir']
    missing = [n for n in needed if not flags.FLAGS[n].value]
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
    cli.fail(error)
  if missing:
    cli.fail(f'--{missing[0]} is missing. See launch.py --help.')
  return rest


def main(argv: list[str]) -> None:
  """Runs what the flags ask for, and prints its table."""
  if argv[1:]:
    cli.fail(f'Unknown argument {argv[1]!r}: flags begin with --.')
  config = _CONFIG.value
  if _DRY_RUN.value is not None:
    _plan(config, _DRY_RUN.value)
    return
  _check(config)
  workdir = pathlib.Path(_WORKDIR.value or '')
  multihost.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  devices_lib.split_cpu(config.mesh.get('cpu_devices', 1))
  if _CACHE.value:
    folder = pathlib.Path(_CACHE.value)
    stored = stored_targets.cache_targets(config, workdir, folder)
    cli.show(target_cache.format_summary(stored))
    return
  if _COMPARE.value:
    summaries = experiment.compare(config, _COMPARE.value, workdir)
  else:
    summaries = [experiment.run(config, workdir)]
  if multihost.is_first():
    cli.show(summary_lib.compare_table(summaries))


def _plan(config: ml_collections.ConfigDict, name: str) -> None:
  """Prints the report of a dry run."""
  errors.require(
    bool(name),
    '--dry_run= is empty: give cpu, or a topology of TPUs, as v5e:4x4.',
  )
  errors.require(
    not (_CACHE.value or config.cache.folder),
    '--dry_run plans a run with its teacher: leave --cache_targets and '
    'cache.folder out.',
  )
  devices_lib.split_cpu(config.mesh.get('cpu_devices', 1))
  devices = devices_lib.topology(name)
  methods = _COMPARE.value or [config.method]
  specs = builders.abstract_specs(config, methods, devices)
  cli.show(dry_run.report(name, specs))


def _check(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for folders and methods that cannot be used."""
  folder = config.teacher.folder
  errors.require(
    not folder or pathlib.Path(folder).is_dir(),
    f'teacher.folder={folder} does not exist. Give the folder of a teacher, as '
    'WORKDIR/teacher of another run; without it one is trained.',
  )
  for flag in (_WORKDIR, _CACHE):
    errors.require(
      '://' not in (flag.value or ''),
      f'--{flag.name}={flag.value} is no local path. Mount the bucket (gcsfuse '
      'for gs://), and give the folder.',
    )
  methods = _COMPARE.value
  errors.require(
    not (_CACHE.value and methods),
    '--cache_targets is for one method: leave --compare out.',
  )
  twice = sorted({name for name in methods if methods.count(name) > 1})
  errors.require(
    not twice,
    f'--compare names {", ".join(twice)} twice: each method is run once.',
  )


if __name__ == '__main__':
  app.run(cli.guarded(main), flags_parser=parse)
