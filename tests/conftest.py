"""Settings of every test, made before anything is computed."""

import atexit
import functools
import gc
import os
import pathlib
import shutil
import signal
import tempfile

from absl import flags
import jax
import pytest

import scripts

# Pytest reads the command line; without this absl, hence chex.variants, raises
# UnparsedFlagAccessError.
flags.FLAGS.mark_as_parsed()

# A script's background jobs, and nohup, ignore it, and their processes too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Sharding is tested on any machine; no effect on an accelerator.
jax.config.update('jax_num_cpu_devices', 8)
# A loss that broadcasts [B] against [B, 1] is wrong by a factor and silent.
jax.config.update('jax_numpy_rank_promotion', 'raise')

# The rest is for speed: test shapes are tiny, so that compiling costs more than
# running. Tracing makes many objects, few of which are garbage.
gc.set_threshold(200_000, 20, 100)
# In the environment, for the processes that tests start as well.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # Else pytest-xdist's worker.
  _cache = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
  _flags = ['--xla_cpu_parallel_codegen_split_count=1']
  if jax.__version_info__ < (0, 11):  # Unknown later, which ends the process.
    # More than half of XLA's time to compile for a CPU.
    _flags.append('--xla_cpu_use_fusion_emitters=false')
  _flags.append(os.environ.get('XLA_FLAGS', ''))
  os.environ['XLA_FLAGS'] = ' '.join(_flags)
for _name, _value in {
  'jax_compilation_cache_dir': os.environ['JAX_COMPILATION_CACHE_DIR'],
  'jax_persistent_cache_min_compile_time_secs': 0,
  'jax_persistent_cache_min_entry_size_bytes': -1,
  'jax_disable_most_optimizations': True,
  'jax_traceback_in_locations_limit': 0,
}.items():
  jax.config.update(_name, _value)
  os.environ[_name.upper()] = str(_value)


TESTS = pathlib.Path(__file__).parent


@functools.cache
def subject(path):
  """The module of cxjax that a file tests, or the file itself."""
  parts = path.removeprefix('tests/').removesuffix('_test.py').split('_')
  for number in range(len(parts), 0, -1):
    name = '_'.join(parts[:number])
    if (TESTS.parent / 'cxjax' / f'{name}.py').exists():
      return name
  return path


def pytest_collectstart(collector):
  """A module imports its scripts without the flags of those of others."""
  if isinstance(collector, pytest.Module):
    scripts.take_out()


@pytest.fixture(autouse=True, scope='module')
def flags_of_scripts(request):
  """The flags of the scripts that a module tests, for it alone."""
  with scripts.in_force(request.module):
    yield


@pytest.hookimpl(optionalhook=True)  # Not without xdist.
def pytest_xdist_make_scheduler(config, log):
  """All tests of a module in one process: they share what they compiled."""
  from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415

  class Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid):
      return subject(nodeid.partition('::')[0])

  return Scheduling(config, log)


def pytest_ignore_collect(collection_path, config):
  """Modules of slow tests alone are not imported for the others."""
  if config.option.markexpr != 'not slow' or collection_path.suffix != '.py':
    return None
  text = collection_path.read_text()
  return True if '\npytestmark = pytest.mark.slow\n' in text else None


def pytest_collection_modifyitems(items):
  """Slow ones begin, so that processes end together."""
  of = lambda item: subject(item.nodeid.partition('::')[0])
  slow = {of(item) for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: of(item) not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Skips what this machine cannot test, before its class is set up."""
  for mark in item.iter_markers('devices'):
    if jax.device_count() < mark.args[0]:
      pytest.skip(f'needs {mark.args[0]} devices, not {jax.device_count()}')
  if item.get_closest_marker('cpu') and jax.default_backend() != 'cpu':
    pytest.skip(f'needs a CPU, not a {jax.default_backend()}')


def pytest_collection_finish(session):
  """Shares what runs of one config compile."""
  del session
  if jax.default_backend() != 'cpu':
    # Products of float32 have 10 bits on a GPU, unless this is said.
    jax.config.update('jax_default_matmul_precision', 'highest')
    os.environ['JAX_DEFAULT_MATMUL_PRECISION'] = 'highest'
  # These import JAX's users, after the settings above.
  import compiled_once
  import one_context

  compiled_once.install()
  one_context.install()
  gc.collect()
  gc.freeze()  # What was imported stays: no collection need look at it.
