"""Safetensors files: reading, writing, and comparing shapes."""

from collections.abc import Mapping
from collections.abc import Set
import dataclasses
import json
import math
import os
import pathlib
import struct
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from cxjax import errors
from cxjax import files
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import opening

FILE = 'model.safetensors'
SHARDS = 'model-*-of-*.safetensors'
FLOATING = ('F64', 'F32', 'F16', 'BF16')
DTYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'BOOL': np.bool_,
}
# Buffers of any type, which no model reads.
INTEGERS = ('position_ids', 'token_type_ids')


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """A tensor of a file, which is read whenever its values are used.

  `np.asarray` and the attributes of an array read it; its shape does not.

  Attributes:
    path: the file.
    name: name of the tensor.
    offset: offset of its first byte in the file.
    shape: its shape.
    dtype: its dtype.
  """

  path: pathlib.Path
  name: str
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    """Reads the tensor; raises UserError for values that are not finite."""
    del copy  # It is always a new array.
    with self.path.open('rb') as file:
      file.seek(self.offset)
      array = np.fromfile(file, self.dtype, math.prod(self.shape))
    whole = array.size == math.prod(self.shape)
    finite = self.dtype.kind in 'iub' or bool(np.isfinite(array).all())
    errors.require(
      whole and finite,
      f'{self.path}: the tensor {self.name} '
      + ('has values that are not finite.' if whole else 'is cut off.')
      + ' The file is damaged, or the model diverged: take another.',
    )
    array = array.reshape(self.shape)
    return array if dtype is None else array.astype(dtype)

  def __getattr__(self, name: str) -> Any:
    """An attribute of the array."""
    if name.startswith('__'):
      raise AttributeError(name)
    return getattr(np.asarray(self), name)

  def __getitem__(self, index: Any) -> Any:
    """A part of the array."""
    return np.asarray(self)[index]


def read(folder: pathlib.Path) -> dict[str, StoredTensor]:
  """All tensors of a model; their values are read when they are used.

  Args:
    folder: holds `model.safetensors`, or `model.safetensors.index.json` and the
      shards that it lists.

  Returns:
    Tensors by name.

  Raises:
    UserError: a file is missing, damaged or out of the folder; a tensor is of
      no floating-point type, or of one with 8 bits, or is in two files, or in
      another one than the index says; the index does not name a shard.
  """
  index = folder / f'{FILE}.index.json'
  names, listed = [FILE], None
  if index.exists() and not (folder / FILE).exists():
    listed = _shards(index)
    names = sorted(set(listed.values()))
    for path in sorted(folder.glob(SHARDS)):
      errors.require(
        path.name in names,
        f'{index} does not name {path.name}, which is beside it. Restore the '
        'index, or remove the file if it is of another model.',
      )
  tensors: dict[str, StoredTensor] = {}
  for name in names:
    path = folder / name
    errors.require(
      os.path.lexists(path),
      f'{folder} lacks {name}, a part of the model that {index.name} lists. '
      'Restore it, as by finishing the download.'
      if listed is not None
      else f'{folder} has no {name}; a pytorch_model.bin, which can run code, '
      'is not read. Save the model again with save_pretrained of transformers.',
    )
    opening.require_regular(path)
    try:
      stored = _require_floating(path)
      found = _stored(path)
    except (OSError, safetensors.SafetensorError) as error:
      raise errors.UserError(
        f'{path} cannot be read ({error}). Restore it, or save the model again.'
      ) from error
    for twice in found.keys() & tensors.keys():
      raise errors.UserError(
        f'{path}: the tensor {twice} is in {tensors[twice].path.name} too. '
        'Files of two models are mixed: save the model again.'
      )
    if listed is not None:
      _require_listed(index, listed, path, stored)
    tensors |= found
  return tensors


def _stored(path: pathlib.Path) -> dict[str, StoredTensor]:
  """The tensors of a file whose header the library has checked."""
  with path.open('rb') as file:
    (size,) = struct.unpack('<Q', file.read(8))
    header = json.loads(file.read(size))
  header.pop('__metadata__', None)
  return {
    name: StoredTensor(
      path,
      name,
      8 + size + entry['data_offsets'][0],
      tuple(entry['shape']),
      np.dtype(DTYPES[entry['dtype']]),
    )
    for name, entry in header.items()
    if entry['dtype'] in DTYPES
  }


def _require_listed(
  index: pathlib.Path,
  listed: Mapping[str, str],
  path: pathlib.Path,
  stored: Set[str],
) -> None:
  """Raises UserError unless an index lists what is in one of its files."""
  named = {tensor for tensor, file in listed.items() if file == path.name}
  for tensor in sorted(named - stored):
    raise errors.UserError(
      f'{index}: the tensor {tensor} is not in {path.name}. Restore the files, '
      'or save the model again.'
    )
  for tensor in sorted(stored - named):
    raise errors.UserError(
      f'{index} does not say that the tensor {tensor} is in {path.name}. '
      'Restore the files, or save the model again.'
    )


def _shards(index: pathlib.Path) -> dict[str, str]:
  """Names of the files that an index lists, by tensor."""
  found = opening.read_object(index).get('weight_map')
  shards: dict[str, str] = found if isinstance(found, dict) else {}
  errors.require(
    bool(shards)
    and all(
      isinstance(name, str)
      and name not in ('', '..')
      and pathlib.PurePath(name).name == name
      for name in shards.values()
    ),
    f'{index} must have a weight_map of tensors to names of files in its '
    'folder. Restore it, or save the model again.',
  )
  return shards


def _require_floating(path: pathlib.Path) -> set[str]:
  """Names of the tensors of a file; raises UserError for other types."""
  with safetensors.safe_open(path, framework='numpy') as file:
    names = set(file.keys())
    for name in names:
      kind = file.get_slice(name).get_dtype()
      errors.require(
        kind in FLOATING or name.endswith(INTEGERS),
        f'{path}: the tensor {name} is of type {kind}; only '
        f'{", ".join(FLOATING)} can be read. A quantized model must be saved '
        'again in floating point.',
      )
  return names


def require_sizes(
  folder: pathlib.Path, family: base.Family, config: base.Config, found: Any
) -> None:
  """Compares a config with tensors, before memory is taken for its sizes.

  Args:
    folder: folder of the model.
    family: family of the model.
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
  """Replaces a safetensors file in one move; writes tensor after tensor.

  Args:
    path: the file.
    tensors: arrays by name, or objects that numpy makes arrays of.

  Raises:
    UserError: the file cannot be written.
  """
  # Wide types first, so that each tensor is aligned.
  order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
  names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name in order:
    tensor = tensors[name]
    begin, end = end, end + num_bytes(tensor)
    header[name] = {
      'dtype': errors.lookup('dtype', tensor.dtype, names),
      'shape': list(tensor.shape),
      'data_offsets': [begin, end],
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with files.replaced(path, 'folder') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for name in order:
      data = np.ascontiguousarray(np.asarray(tensors[name])).reshape(-1)
      file.write(data.view(np.uint8).data)


def num_bytes(tensor: Any) -> int:
  """Bytes of the values of a tensor."""
  return math.prod(tensor.shape) * tensor.dtype.itemsize


def write_folder(
  folder: pathlib.Path, tensors: base.Tensors, max_shard_bytes: int
) -> None:
  """Writes the tensors of a model to one file, or to several and an index.

  Those of an earlier model are removed first.

  Args:
    folder: folder of the model.
    tensors: tensors by name, as for `write`.
    max_shard_bytes: bytes of the tensors of one file, unless it has only one.

  Raises:
    UserError: a file cannot be written.
  """
  index, size = folder / f'{FILE}.index.json', 0
  shards: list[list[str]] = [[]]
  for name, tensor in tensors.items():
    more = num_bytes(tensor)
    if shards[-1] and size + more > max_shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += more
  with files.written(folder, 'folder'):
    folder.mkdir(parents=True, exist_ok=True)
    for old in [index, *folder.glob(SHARDS)]:
      old.unlink(missing_ok=True)
    if len(shards) > 1:
      (folder / FILE).unlink(missing_ok=True)
  if len(shards) == 1:
    write(folder / FILE, tensors)
    return
  where: dict[str, str] = {}
  for i, names in enumerate(shards, start=1):
    file = f'model-{i:05}-of-{len(shards):05}.safetensors'
    write(folder / file, {name: tensors[name] for name in names})
    where |= dict.fromkeys(names, file)
  metadata = {'total_size': sum(map(num_bytes, tensors.values()))}
  found = {'metadata': metadata, 'weight_map': dict(sorted(where.items()))}
  files.write_json(index, found, place='folder')


def most_common_dtype(tensors: base.Tensors) -> np.dtype:
  """The dtype that holds the most values; float32 without tensors."""
  sizes: dict[np.dtype, int] = {}
  for tensor in tensors.values():
    size = math.prod(tensor.shape)
    sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + size
  return max(sizes, key=lambda d: sizes[d], default=np.dtype(np.float32))


def variables_of(module: Any) -> dict[str, Any]:
  """The variables of a module of token ids as shapes, without values."""
  return jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  )


def shapes(tree: Mapping[str, Any]) -> base.Shapes:
  """The shapes of a tree of arrays, by path."""
  flat = traverse_util.flatten_dict(tree, sep='/')
  return {name: tuple(np.shape(leaf)) for name, leaf in flat.items()}


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
    remedy: advice to the user, which ends the message.

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
