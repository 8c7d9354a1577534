r"""Trains a teacher and then its students, by one method or by several.

One method:
python launch.py --config=experiments/parity_mlp.py:extracted --workdir=DIR

A comparison of methods:
python launch.py --config=experiments/parity_mlp.py --workdir=DIR \
  --compare=supervised,one_shot,progressive,extracted

The same with a search: every method gets the same learning rates to try, by
successive halving, and the best one with all seeds, at equal FLOPs:
python launch.py --config=experiments/parity_mlp.py --workdir=DIR \
  --compare=supervised,one_shot,extracted_labels --rates=1e-3,3e-3,1e-2

Students that are cut out of the teacher, in place of a random start:
python launch.py --config=experiments/causal_text.py --workdir=DIR \
  --config.student.start=teacher

The cost of a run, without running it:
python launch.py --config=experiments/parity_mlp.py:extracted --dry_run=cpu

The teacher's targets, stored for later runs:
python launch.py --config=experiments/text_bert.py --workdir=DIR \
  --cache_targets=CACHE

The same command, started again, resumes from the last checkpoint.

Experiments, one file each in experiments/: parity_mlp, parity_transformer,
pcfg_bert, text_bert, causal_text, wikipedia_bert.

Methods: supervised, one_shot, one_shot_labels, progressive, extracted,
extracted_labels, extracted_centered, extracted_centered_labels, extracted_pca,
extracted_pca_rotated, extracted_pca_rotated_labels, extracted_directions,
fitnets, late_to_early, joint, joint_fading, custom.
docs/concepts.md explains them.

Sizes: cpu (the default), paper, tiny; causal_text also has llama_1b. text_bert
and causal_text have no paper, wikipedia_bert no cpu: its default is paper.

Every field of the config is a flag: --config.data.d=30. The fields, with
comments: cxjax/configs/defaults.py, cxjax/methods/registry.py (of each method),
and the file of the experiment.

Several processes, each with its own devices, can train one run: start the same
command in each, with --coordinator, --num_processes and --process_id. SLURM
jobs, and TPU pods that set TPU_WORKER_HOSTNAMES, need none of these flags.
"""

import experiments  # noqa: F401, I001  Hears signals during the slow imports.

import pathlib

from absl import flags
import ml_collections
from ml_collections import config_flags

from cxjax import arguments
from cxjax import errors
from cxjax import folders
from cxjax.analysis import dry_run
from cxjax.api import budgets
from cxjax.api import compare
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import contest
from cxjax.configs import experiment
from cxjax.configs import ranges
from cxjax.configs import stored_targets
from cxjax.configs import teachers
from cxjax.methods import registry
from cxjax.parallel import devices as devices_lib
from cxjax.parallel import multihost
from cxjax.training import summary as summary_lib
from cxjax.training import target_cache

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'File of the experiment; after a colon a method, a size or both, as '
  'FILE:extracted,tiny. The defaults are extracted and cpu.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Folder of the run: checkpoints, metrics and results.'
)
_COMPARE = flags.DEFINE_list(
  'compare',
  [],
  'Methods, with commas between them: trains students by each, on one teacher.',
)
_RATES = flags.DEFINE_list(
  'rates',
  [],
  'Learning rates, with commas between them: --compare searches the best one '
  'of each method, all at the same budget.',
)
_EQUAL = flags.DEFINE_string(
  'equal',
  'flops',
  'With --rates: the quantity that is equal for all methods, one of '
  f'{", ".join(budgets.EQUAL)}.',
)
_NUM_STEPS = flags.DEFINE_integer(
  'num_steps',
  None,
  'With --rates: steps of one_shot, or else of the first method, whose cost is '
  "the budget; without it the config's num_steps.",
)
_BUDGET = flags.DEFINE_float(
  'budget',
  1.0,
  'With --rates: the part of the budget to run; 0.1 predicts the result of '
  'the whole budget from a tenth.',
)
_DRY_RUN = flags.DEFINE_string(
  'dry_run',
  None,
  'Compile every stage for cpu, or for a TPU topology such as v5e:4x4, and '
  'print its memory and cost; train nothing and write nothing.',
)
_CACHE = flags.DEFINE_string(
  'cache_targets',
  '',
  "Folder: run the teacher once over the students' batches and store its "
  'targets there; train no student. Later runs read them by '
  '--config.cache.folder.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of the first of several processes.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes that train the run.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Number of this process, from 0.'
)


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; a mistake ends the program with one line."""
  return cli.parse(argv, _check_flags)


def main(argv: list[str]) -> None:
  """Runs what the flags ask for, and prints its table."""
  del argv
  config = _CONFIG.value
  ranges.check(config.to_dict())
  _check_teacher(config.teacher.folder)
  if _DRY_RUN.value is not None:
    _plan(config, _DRY_RUN.value)
    return
  _check_folders()
  workdir = pathlib.Path(_WORKDIR.value or '')
  multihost.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  devices_lib.split_cpu(config.mesh.get('cpu_devices', 1))
  if _CACHE.value:
    folder = pathlib.Path(_CACHE.value)
    stored = stored_targets.cache_targets(config, workdir, folder)
    cli.show(target_cache.format_summary(stored))
    return
  if _RATES.value:
    _search(config, workdir)
    return
  if _COMPARE.value:
    experiment.compare(config, _COMPARE.value, workdir)
    if multihost.is_first():
      cli.show((workdir / 'comparison.md').read_text())
      print(f'The curves: {workdir / "comparison.png"}')
    return
  summary = experiment.run(config, workdir)
  if multihost.is_first():
    cli.show(summary_lib.compare_table([summary]))


def _search(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Compares the methods, each at its best rate, and prints the results."""
  if _NUM_STEPS.value is not None:
    config.num_steps = _NUM_STEPS.value
  found = contest.search(
    config,
    _COMPARE.value,
    workdir,
    rates=cli.positive_numbers('rates', _RATES.value),
    equal=_EQUAL.value,
    budget=_BUDGET.value,
    report=cli.show,
  )
  cli.show(f'\n{found.markdown()}\n')
  print(f'The curves: {workdir / "comparison.png"}')


def _plan(config: ml_collections.ConfigDict, name: str) -> None:
  """Prints the report of a dry run."""
  errors.require(
    not config.cache.folder,
    '--dry_run plans a run with its teacher: leave --cache_targets and '
    'cache.folder out.',
  )
  teachers.check_folder(config)
  devices_lib.split_cpu(config.mesh.get('cpu_devices', 1))
  devices = devices_lib.topology(name)
  methods = _COMPARE.value or [config.method]
  specs = builders.abstract_specs(config, methods, devices)
  cli.show(dry_run.report(name, specs))


def _check_flags() -> None:
  """Raises UserError for flags that are missing, empty or do not agree."""
  planned = _DRY_RUN.value is not None
  for name in ['config'] if planned else ['config', 'workdir']:
    errors.require(
      bool(flags.FLAGS[name].value),
      f'--{name} is missing. See launch.py --help.',
    )
  # A variable of the shell that is not set must not train something else.
  for flag, example in (
    (_DRY_RUN, 'cpu, or a topology of TPUs, as v5e:4x4'),
    (_CACHE, 'a folder, or leave it out'),
    (_COMPARE, 'methods with commas between them, or leave it out'),
    (_RATES, 'learning rates, as 1e-3,3e-3,1e-2, or leave it out'),
  ):
    errors.require(
      not flag.present or bool(flag.value),
      f'--{flag.name}= is empty: give {example}.',
    )
  for flag in (_CACHE, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
    errors.require(
      not planned or not flag.present,
      '--dry_run plans a run with its teacher, in one process: leave '
      f'--{flag.name} out.',
    )
  methods = _COMPARE.value
  errors.require(
    not (_CACHE.value and methods),
    '--cache_targets is for one method: leave --compare out.',
  )
  for name in methods:
    errors.lookup('method', name, registry.METHODS)
  twice = sorted({name for name in methods if methods.count(name) > 1})
  errors.require(
    not twice,
    f'--compare names {", ".join(twice)} twice: give each method once.',
  )
  _check_search()


def _check_search() -> None:
  """Raises UserError for flags of a search that are wrong or do not agree."""
  if not _RATES.value:
    for flag in (_EQUAL, _NUM_STEPS, _BUDGET):
      errors.require(
        not flag.present,
        f'--{flag.name} is for a search over learning rates: give --rates, as '
        '--rates=1e-3,3e-3,1e-2, or leave it out.',
      )
    return
  errors.require(
    bool(_COMPARE.value),
    '--rates compares methods, each at its best rate: give --compare, or for '
    'one run --config.optimizer.learning_rate.',
  )
  errors.require(
    _DRY_RUN.value is None,
    '--rates prints its cost before it trains, with the teacher that it needs: '
    'leave --dry_run out.',
  )
  for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
    errors.require(
      not flag.present,
      f'--rates searches in one process: leave --{flag.name} out.',
    )
  cli.positive_numbers('rates', _RATES.value)
  errors.lookup('--equal', _EQUAL.value, dict.fromkeys(budgets.EQUAL))
  if _NUM_STEPS.value is not None:
    arguments.integer('--num_steps', _NUM_STEPS.value, 1, 2**31 - 1)
  arguments.number('--budget', _BUDGET.value, compare.SHARE)


def _check_folders() -> None:
  """Raises UserError for folders that cannot be used."""
  for what, given in (
    ('--workdir', _WORKDIR.value),
    ('--cache_targets', _CACHE.value),
  ):
    if given:
      folders.check(given, what)


def _check_teacher(folder: str) -> None:
  """Raises UserError for a `teacher.folder` that holds no teacher."""
  errors.require(
    not folder or pathlib.Path(folder).is_dir(),
    f'teacher.folder={folder} does not exist. Give the folder of a teacher, as '
    'WORKDIR/teacher of another run; without it one is trained.',
  )
  # Another folder, as the one above, would get a teacher of its own.
  errors.require(
    not folder or (pathlib.Path(folder) / 'config.json').exists(),
    f'teacher.folder={folder} holds no teacher: there is no config.json. Give '
    'the folder of one, as WORKDIR/teacher of another run, or of a model of '
    'Hugging Face; without it one is trained.',
  )


if __name__ == '__main__':
  cli.run(main, _check_flags)
