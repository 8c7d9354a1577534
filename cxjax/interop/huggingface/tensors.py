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
from cxjax.interop.huggingface import opening

FILE = 'model.safetensors'
FLOATING = ('F64', 'F32', 'F16', 'BF16')
# Buffers of any type, which no model reads.
INTEGERS = ('position_ids', 'token_type_ids')


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a model, in the dtype of the file.

  Args:
    folder: holds `model.safetensors`, or `model.safetensors.index.json` and the
      shards that it lists.

  Returns:
    Arrays by name.

  Raises:
    UserError: a file is missing, damaged or out of the folder; a tensor is of
      no floating-point type, or of one with 8 bits.
  """
  index = folder / f'{FILE}.index.json'
  names = [FILE]
  if index.exists() and not (folder / FILE).exists():
    names = _shards(index)
  tensors = {}
  for name in names:
    path = folder / name
    errors.require(
      path.exists(),
      f'{folder} has no {name}; a pytorch_model.bin, which can run code, is '
      'not read. Save the model again with save_pretrained of transformers.',
    )
    opening.require_regular(path)
    try:
      _require_floating(path)
      tensors.update(safetensors.numpy.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
      raise errors.UserError(
        f'{path} cannot be read ({error}). Restore it, or save the model again.'
      ) from error
  return tensors


def _shards(index: pathlib.Path) -> list[str]:
  """Names of the files that an index lists."""
  shards = opening.read_object(index).get('weight_map')
  names = shards.values() if isinstance(shards, dict) else ()
  errors.require(
    bool(names)
    and all(
      isinstance(name, str) and pathlib.PurePath(name).name == name
      for name in names
    ),
    f'{index} must have a weight_map of tensors to names of files in its '
    'folder. Restore it, or save the model again.',
  )
  return sorted(set(names))


def _require_floating(path: pathlib.Path) -> None:
  """Raises UserError for tensors of other types; reads the header alone."""
  with safetensors.safe_open(path, framework='numpy') as file:
    for name in file.keys():  # noqa: SIM118  It is no dict.
      kind = file.get_slice(name).get_dtype()
      errors.require(
        kind in FLOATING or name.endswith(INTEGERS),
        f'{path}: the tensor {name} is of type {kind}; only '
        f'{", ".join(FLOATING)} can be read. A quantized model must be saved '
        'again in floating point.',
      )


def require_finite(folder: pathlib.Path, tensors: base.Tensors) -> None:
  """Raises a UserError that names a tensor with a value that is not finite."""
  for name, tensor in tensors.items():
    errors.require(
      bool(np.isfinite(tensor.astype(np.float32)).all()),
      f'{folder}: the tensor {name} has values that are not finite. The file '
      'is damaged, or the model diverged: take another.',
    )


def require_sizes(
  folder: pathlib.Path, family: base.Family, config: base.Config, found: Any
) -> None:
  """Compares a config with tensors, before memory is taken for its sizes.

  Args:
    folder: of the model.
    family: of the model.
    config: checked by `config.read`.
    found: tensors by name.

  Raises:
    UserError: there are fewer tensors than blocks, or none as long as a size.
  """
  most = max((n for t in found.values() for n in t.shape), default=0)
  limits = {theirs: most for theirs in family.sizes.values()}
  if 'depth' in family.sizes:
    limits[family.sizes['depth']] = len(found)
  for name, default in family.defaults.items():
    if type(default) is int:
      limits[name] = most
  for name, limit in limits.items():
    errors.require(
      config[name] <= limit,
      f'{folder}/config.json has {name}={config[name]}: the tensors allow '
      f'{limit} at most. They do not fit each other; take both from one model.',
    )


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
