"""JAX's global settings: those a run overrides, and those it records.

Random numbers are the same for the same seed whatever the caller's settings
are: keys have an explicit implementation, and every entry point runs under
`fixed`. Settings that change floating-point results cannot be overridden, as
they are the caller's choice; they are part of a run's identity.
"""

from collections.abc import Iterator
import contextlib
import enum
import os
import pathlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax import files
from cxjax import folders
from cxjax import streams

IMPLEMENTATION = 'threefry2x32'
# Settings that change results, and JAX's defaults, which are not recorded.
RECORDED = {
  'jax_allow_f16_reductions': True,
  'jax_default_matmul_precision': None,
  'jax_disable_most_optimizations': False,
  'jax_enable_x64': False,
  'jax_exec_time_optimization_effort': 0.0,
  'jax_explicit_x64_dtypes': 'WARN',
  'jax_optimization_level': 'UNKNOWN',
  'jax_softmax_custom_jvp': False,
}
ENVIRONMENT = 'environment.json'
TRACED = ('jax', 'jaxlib', 'device')  # May change the program of a function.


def key(seed: int) -> jax.Array:
  """PRNG key of a seed; no setting of JAX changes it.

  Args:
    seed: an integer, of which the lowest 32 bits count.

  Returns:
    A typed key, that of `jax.random.key(seed)` by JAX's default settings.
  """
  data = np.array([0, int(seed) % 2**32], np.uint32)
  return jax.random.wrap_key_data(jnp.asarray(data), impl=IMPLEMENTATION)


@contextlib.contextmanager
def fixed() -> Iterator[None]:
  """Overrides the settings of JAX that change random numbers or only raise.

  Also a decorator: `@fixed()`. It holds in the thread that enters it.

  Yields:
    Nothing.
  """
  with contextlib.ExitStack() as stack:
    for setting in (
      jax.default_prng_impl(IMPLEMENTATION),
      jax.threefry_partitionable(True),
      jax.numpy_dtype_promotion('standard'),
      jax.transfer_guard('allow'),
      jax.debug_nans(False),  # The run says which example is NaN.
      jax.debug_infs(False),
      jax.disable_jit(False),  # Programs are compiled before they run.
      jax.default_device(None),
    ):
      stack.enter_context(setting)
    yield


@contextlib.contextmanager
def own() -> Iterator[None]:
  """`fixed`, and no mesh of the caller in force; for what runs on its own mesh.

  Messages are dropped if the caller has no stderr to show them on. Not under
  `jax.jit`, which has the mesh that it was called with.

  Yields:
    Nothing.

  Raises:
    UserError: under `jax.jit`, `jax.grad` or `jax.vmap`.
  """
  none = jax.sharding.Mesh(np.empty((), dtype=object), ())
  with contextlib.ExitStack() as stack:
    stack.enter_context(streams.with_stderr())
    stack.enter_context(fixed())
    try:
      stack.enter_context(jax.set_mesh(none))
    except ValueError as error:
      raise errors.UserError(
        'Called under jax.jit, jax.grad or jax.vmap, where nothing can be '
        'trained or planned: it reads batches and writes files. Call it '
        'outside of them; it compiles what it runs.'
      ) from error
    yield


def recorded() -> dict[str, Any]:
  """Settings in force that change results and are not JAX's defaults."""
  found = {}
  for name, default in RECORDED.items():
    value = getattr(jax.config, name, default)
    value = value.name if isinstance(value, enum.Enum) else value
    if value != default:
      found[name] = value
  return found


def environment() -> dict[str, str]:
  """Versions, devices and compiler flags: what may change the rounding."""
  return {
    'jax': jax.__version__,
    'jaxlib': jax.lib.__version__,
    'device': jax.devices()[0].device_kind,
    'XLA_FLAGS': ' '.join(
      sorted(
        flag
        for flag in os.environ.get('XLA_FLAGS', '').split()
        if 'device_count' not in flag and 'dump' not in flag
      )
    ),
  }


def claim_workdir(
  folder: pathlib.Path,
  config: dict[str, Any],
  functions: dict[str, Any] | None = None,
) -> None:
  """Reserves a folder for a run with the settings in force.

  Another version, device or compiler flag than the run began with is warned of.

  Args:
    folder: the folder of the run; made if it is missing.
    config: everything else that the result of the run depends on.
    functions: digests of functions that it depends on too. They are compared in
      the version of JAX and on the kind of device that the run began with:
      others may trace the same function to another program.

  Raises:
    UserError: the folder belongs to another run, its config is damaged, or it
      cannot be written.
  """
  folders.check(folder)
  here, path = recorded(), folder / 'config.json'
  if path.exists():
    begun = files.read_json(path)
    errors.require(
      isinstance(begun, dict) and not config.keys().isdisjoint(begun),
      f'{path} is damaged. Restore it, or remove its folder to start afresh.',
    )
    # `files.claim_workdir` refuses a file that was edited.
    there = begun.get('settings')
    there = there if isinstance(there, dict) else {}
    differ = files.differences({**RECORDED, **there}, {**RECORDED, **here})
    errors.require(
      not differ,
      f'{folder} was begun with other settings of JAX. What differs: {differ}. '
      'Choose another workdir, or go back to the earlier settings.',
    )
  if functions is not None:
    config = {**config, 'functions': _comparable(folder, functions)}
  files.claim_workdir(folder, {**config, 'settings': here} if here else config)
  _compare_environment(folder)


def _comparable(
  folder: pathlib.Path, functions: dict[str, Any]
) -> dict[str, Any]:
  """Digests of functions; in another environment, those of the folder."""
  paths = [folder / name for name in (ENVIRONMENT, 'config.json')]
  if not all(path.exists() for path in paths):
    return functions
  there, config = _begun_in(folder), files.read_json(paths[1])
  here = environment()
  if not isinstance(there, dict) or not isinstance(config, dict):
    return functions  # What reads them next says which is damaged.
  if all(there.get(name) == here[name] for name in TRACED):
    return functions
  return config.get('functions', functions)


def _begun_in(folder: pathlib.Path) -> Any:
  """The environment that a run began in; no result is lost with its file."""
  advice = 'remove it: it has the versions that the run began with, no more'
  return files.read_json(folder / ENVIRONMENT, advice)


def _compare_environment(folder: pathlib.Path) -> None:
  """Warns of another environment than the run began in."""
  path, here = folder / ENVIRONMENT, environment()
  if not path.exists():
    files.write_json(path, here)
    return
  differ = files.differences(_begun_in(folder), here)
  if differ and jax.process_index() == 0:
    logging.warning(
      '%s was begun elsewhere: its result may differ in rounding from that of '
      'a run without interruption. What differs: %s.',
      folder,
      differ,
    )
