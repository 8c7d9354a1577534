r"""Executes the notebooks and fails if one of their cells fails.

Run:
  python -m experiments.notebooks.run --tiny             # as CI does
  python -m experiments.notebooks.run --in_place parity  # writes the outputs
"""

import base64
from collections.abc import Mapping
import io
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import jax
import nbclient
import nbformat
from PIL import Image
from traitlets import config as traitlets_config

from cxjax import errors
from cxjax import files
from cxjax.configs import cli

_TINY = flags.DEFINE_bool('tiny', False, 'Small and fast sizes, for tests.')
_IN_PLACE = flags.DEFINE_bool(
  'in_place', False, 'Writes the outputs to the files.'
)

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parent.parent
LARGEST = 300_000  # Maximum bytes of a notebook with its outputs.
TIMEOUT = 1_200  # Maximum seconds of a cell.
# Environment of tiny sizes; the settings of jax and XLA shorten compilation, as
# in tests/conftest.py.
FAST = {
  'CXJAX_NOTEBOOK_SIZE': 'tiny',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
if jax.__version_info__ < (0, 11):  # Unknown later, which ends the process.
  FAST['XLA_FLAGS'] = '--xla_cpu_use_fusion_emitters=false'


def execute(
  path: pathlib.Path, env: Mapping[str, str]
) -> nbformat.NotebookNode:
  """Executes a notebook in the root of the repository.

  Args:
    path: path of the notebook.
    env: environment variables of its process, added to those of this one.

  Returns:
    The notebook with its new outputs, without progress bars and warnings.

  Raises:
    UserError: a cell failed.
  """
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=TIMEOUT,
    kernel_name='python3',
    record_timing=False,
    resources={'metadata': {'path': str(ROOT)}},
    # Over TCP the kernel would warn that other users could listen.
    config=traitlets_config.Config({'KernelManager': {'transport': 'ipc'}}),
  )
  try:
    client.execute(env={**os.environ, **env})
  except nbclient.exceptions.CellExecutionError as error:
    print(error, file=sys.stderr)
    raise errors.UserError(
      f'A cell of {path.name} failed: {error.ename}. Its traceback is above.'
    ) from error
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      cell.outputs = [
        _smaller(output)
        for output in cell.outputs
        if output.get('name') != 'stderr'
      ]
  notebook.metadata.language_info = {'name': 'python'}
  return notebook


def _smaller(output: Any) -> Any:
  """Reduces the picture of an output to 128 colors: a third of the bytes."""
  data = output.get('data', {})
  if 'image/png' in data:
    picture = Image.open(io.BytesIO(base64.b64decode(data['image/png'])))
    found = io.BytesIO()
    picture.convert('RGB').quantize(128).save(found, 'PNG', optimize=True)
    data['image/png'] = base64.b64encode(found.getvalue()).decode()
  return output


def main(argv: list[str]) -> None:
  """Executes the notebooks that the arguments name, or all."""
  errors.require(
    not (_TINY.value and _IN_PLACE.value),
    '--tiny and --in_place exclude each other: tiny results mean nothing. '
    'Leave out one of them.',
  )
  paths = {path.stem: path for path in sorted(FOLDER.glob('*.ipynb'))}
  chosen = [errors.lookup('notebook', name, paths) for name in argv[1:]]
  with tempfile.TemporaryDirectory() as cache:
    env = {'JAX_COMPILATION_CACHE_DIR': cache, **FAST} if _TINY.value else {}
    for path in chosen or paths.values():
      begin = time.perf_counter()
      notebook = execute(path, env)
      print(f'{path.name}: {time.perf_counter() - begin:.0f} s', flush=True)
      if _IN_PLACE.value:
        text = nbformat.writes(notebook) + '\n'
        errors.require(
          len(text) <= LARGEST,
          f'{path.name} is {len(text):,} bytes, more than {LARGEST:,}: make '
          'its pictures smaller.',
        )
        files.write_text(path, text)


if __name__ == '__main__':
  app.run(cli.guarded(main))
