"""Safetensors files: reading, writing, and comparing shapes."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from cxjax import errors
from cxjax import files
from cxjax.interop.huggingface import base

FILE = 'model.safetensors'


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a model, in the dtype of the file.

  Args:
    folder: holds `model.safetensors`, or `model.safetensors.index.json` and the
      shards that it lists.

  Returns:
    Arrays by name.

  Raises:
    UserError: a file is missing or damaged.
  """
  index = folder / f'{FILE}.index.json'
  names = [FILE]
  if index.exists() and not (folder / FILE).exists():
    shards = errors.lookup('entry', 'weight_map', files.read_json(index))
    names = sorted(set(shards.values()))
  tensors = {}
  for name in names:
    path = folder / name
    errors.require(
      path.exists(),
      f'{folder} has no {name}; a pytorch_model.bin, which can run code, is '
      'not read. Save the model again with save_pretrained of transformers.',
    )
    try:
      tensors.update(safetensors.numpy.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
      raise errors.UserError(
        f'{path} cannot be read ({error}). Restore it, or save the model again.'
      ) from error
  return tensors


def write(path: pathlib.Path, tensors: base.Tensors) -> None:
  """Replaces a safetensors file in one move.

  Raises:
    UserError: the file cannot be written.
  """
  # The library writes the memory of an array as it lies; a transposed array
  # must be copied first.
  tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  data = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
  temporary = path.with_name(path.name + '.tmp')
  with files.written(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    temporary.replace(path)


def variables_of(module: Any) -> dict[str, Any]:
  """The variables of a module of token ids as shapes, without values."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return jax.eval_shape(module.init, jax.random.key(0), tokens)


def shapes(tree: Mapping[str, Any]) -> base.Shapes:
  """The shapes of a tree of arrays, by path."""
  flat = traverse_util.flatten_dict(tree, sep='/')
  return {name: np.shape(leaf) for name, leaf in flat.items()}


def require_same(
  problem: str,
  found: base.Shapes,
  want: base.Shapes,
  sides: tuple[str, str],
  remedy: str,
) -> None:
  """Checks that two sets of shapes are the same.

  Args:
    problem: begin of the message.
    found: shapes that are there.
    want: shapes that must be there.
    sides: names of `found` and `want` in the message.
    remedy: what to do about a difference.

  Raises:
    UserError: they differ; lists the first three differences.
  """
  names = [n for n in {**want, **found} if want.get(n) != found.get(n)]
  here, there = sides
  listed = '; '.join(
    f'{n}: {found.get(n, "none")} {here}, {want.get(n, "none")} {there}'
    for n in names[:3]
  )
  more = f'; and {len(names) - 3} more' if len(names) > 3 else ''
  errors.require(not names, f'{problem}: {listed}{more}. {remedy}')
