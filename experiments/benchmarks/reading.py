r"""Seconds and memory to read a Hugging Face folder of a gigabyte.

Run, on Linux, a minute:
  python -m experiments.benchmarks.reading

Writes a decoder like Llama of 500 million parameters in bfloat16, in shards of
256 MiB, into a temporary folder. Every row reads it in a process of its own,
several times, and gives the median: this project; transformers in PyTorch; and
the bytes of the files alone. The files were just written, so that they come
from the memory of the system and not from the disk. Peak is the memory of the
process beyond what it had before it read. Writes reading.{md,csv} into --out.
"""

from collections.abc import Callable
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

import cxjax
from cxjax import huggingface
from cxjax import tables
from cxjax.configs import cli
from experiments.benchmarks import machine
from experiments.benchmarks import memory
from experiments.benchmarks import rounds

SIZES = {
  'full': dict(width=1_024, heads=16, depth=28, mlp_width=4_096),
  'tiny': dict(width=16, heads=2, depth=2, mlp_width=32),
}
VOCABULARY = {'full': 32_000, 'tiny': 64}
SHARD = 2**28
_SIZE = flags.DEFINE_enum('size', 'full', list(SIZES), 'Size of the decoder.')
_WAY = flags.DEFINE_string('way', '', 'One of the rows; all without it.')
_FOLDER = flags.DEFINE_string('folder', '', 'Where the model is, of a row.')


def write(folder: pathlib.Path, size: str) -> None:
  """Writes a decoder of random numbers."""
  ids = VOCABULARY[size]
  module = cxjax.Decoder(
    vocab_size=ids, num_classes=ids, max_length=64, tied=True, **SIZES[size]
  )
  tokens = jnp.zeros((1, 2), jnp.int32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: random.random(leaf.shape, np.float32).astype(jnp.bfloat16),
    shapes,
  )
  huggingface.write(folder, module, variables, max_shard_bytes=SHARD)


def by_cxjax(folder: pathlib.Path) -> Any:
  """The module and its variables, on the device."""
  return jax.block_until_ready(huggingface.read(folder)[1])


def by_transformers(folder: pathlib.Path) -> Any:
  """The module of PyTorch, every parameter of which has been read once."""
  import torch  # noqa: PLC0415 It is no requirement.
  import transformers  # noqa: PLC0415

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.bfloat16
  )
  # Parameters are views of the files until somebody reads them.
  return model, [
    float(p.detach().view(-1)[::1_024].sum()) for p in model.parameters()
  ]


def by_bytes(folder: pathlib.Path) -> Any:
  """The content of the files."""
  return [path.read_bytes() for path in folder.glob('*.safetensors')]


WAYS: dict[str, Callable[[pathlib.Path], Any]] = {
  'cxjax': by_cxjax,
  'transformers': by_transformers,
  'bytes alone': by_bytes,
}


def measure(way: str, folder: pathlib.Path) -> dict[str, Any]:
  """Reads `model` in this process, after `tiny`; returns seconds and bytes."""
  WAYS[way](folder / 'tiny')  # Imports what it needs.
  before = memory.resident('VmRSS')
  (memory.PROCESS / 'clear_refs').write_text('5', 'utf-8')  # Resets the peak.
  begin = time.perf_counter()
  WAYS[way](folder / 'model')
  seconds = time.perf_counter() - begin
  return {'seconds': seconds, 'peak': memory.resident('VmHWM') - before}


def row(way: str, folder: pathlib.Path, times: int) -> dict[str, Any]:
  """A row of the table, from processes of its own."""
  command = [sys.executable, '-m', 'experiments.benchmarks.reading']
  command += [f'--way={way}', f'--folder={folder}']
  found = []
  for _ in range(times):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found.append(json.loads(done.stdout.decode().splitlines()[-1]))
  seconds = [one['seconds'] for one in found]
  files = (folder / 'model').glob('*.safetensors')
  size = sum(path.stat().st_size for path in files)
  return {
    'read by': way,
    'seconds': statistics.median(seconds),
    'min': min(seconds),
    'max': max(seconds),
    'peak over files': max(one['peak'] for one in found) / size,
    'files, MB': size / 1e6,
  }


def main(argv: list[str]) -> None:
  """Writes the table, or prints a row as JSON."""
  del argv
  if _WAY.value:
    print(json.dumps(measure(_WAY.value, pathlib.Path(_FOLDER.value))))
    return
  busy = machine.busy_cores()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    write(path / 'model', _SIZE.value)
    write(path / 'tiny', 'tiny')
    found = [row(way, path, rounds.ROUNDS.value) for way in WAYS]
  said = f'jax {jax.__version__}; others kept {busy:.1f} cores busy.\n\n'
  out = pathlib.Path(rounds.OUT.value) / 'reading'
  cli.write(out, said + tables.markdown(found), found)


if __name__ == '__main__':
  cli.run(main)
