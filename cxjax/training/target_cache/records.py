"""The format of stored targets: which batches, and their bytes.

A record begins with a checksum of its bytes, its cache, its stage and the
number of its batch, and with a digest of the batch as it was drawn. The arrays
follow, in the order of the index, which has the keys, the shape and the dtype
of each. The keys of an array are a list, since the name of a term may contain
any character.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import math
import pathlib
import struct
from typing import Any
import zlib

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from cxjax.methods import stage_plan
from cxjax.methods import stored_output
from cxjax.training import run_spec

Index = dict[str, Any]
# `{'rows': [streams, ...], 'targets': {term: [streams or S, B, ...]}}` in every
# leaf; without rows where a batch needs none, and without targets where a stage
# learns labels alone.
Stored = dict[str, Any]

# Dtypes in which floats are stored, and the relative distance from the live
# targets that is allowed: the norm of the difference by the norm. Other devices
# differ by less, another teacher, batch or projection by more. Damage is found
# by the checksums.
TOLERANCES = {'float32': 0.01, 'bfloat16': 0.02}

_CHECKSUM = struct.Struct('<I')
_DIGEST_SIZE = 16


# The types of the index and its lists of entries.
_INDEX: dict[str, Any] = {
  'config': dict,
  'cache': {'batches': int, 'dtype': str, 'steps': [int]},
  'parameters': dict,
  'checkpoints': [[int | float]],
  'stages': [
    {
      'name': str,
      'steps': int,
      'arrays': [{'keys': [str], 'shape': [int], 'dtype': str}],
      'bytes': int,
      'checksum': int,
    }
  ],
}


# An index of hidden states also has these.
_HEADS: list[Any] = [
  {'checkpoint': str, 'arrays': _INDEX['stages'][0]['arrays'], 'bytes': int}
]


def is_index(record: Any) -> bool:
  """Returns whether a JSON value has the form of an index.

  Args:
    record: any value: the digest of a file proves no form.
  """
  return (
    _has_form(record, _INDEX)
    and record['cache']['batches'] > 0
    and record['cache']['dtype'] in TOLERANCES
    and kind(record) in stored_output.KINDS
    and _has_form(record.get('heads', []), _HEADS)
    and all(len(checkpoint) == 2 for checkpoint in record['checkpoints'])
    and all(stage['steps'] > 0 for stage in record['stages'])
  )


def kind(record: Index) -> Any:
  """Returns the kind of the stored outputs, one of `stored_output.KINDS`."""
  return record['cache'].get('output', stored_output.LOGITS)


def _has_form(value: Any, form: Any) -> bool:
  """Compares a value with types, in dicts and lists of one element."""
  if isinstance(form, dict):
    return isinstance(value, dict) and all(
      name in value and _has_form(value[name], one)
      for name, one in form.items()
    )
  if isinstance(form, list):
    return isinstance(value, list) and all(
      _has_form(one, form[0]) for one in value
    )
  return isinstance(value, form) and not isinstance(value, bool)


def batch_numbers(begin: int, steps: int, period: int) -> np.ndarray:
  """Returns the numbers of the batches that a stage reads, in order.

  Args:
    begin: first step of the stage.
    steps: number of its steps.
    period: number of different batches: step `n` reads `n % period`.

  Returns:
    `[min(steps, period)]` integers.
  """
  return np.sort((begin + np.arange(min(steps, period))) % period)


def stages_with_batches(
  spec: run_spec.RunSpec,
) -> Iterator[tuple[int, stage_plan.StagePlan, np.ndarray]]:
  """Yields the stages of a run: index, plan, and numbers of their batches."""
  begins = (0, *spec.ends)
  for i, planned in enumerate(spec.plan()):
    steps = planned.stage.steps
    yield i, planned, batch_numbers(begins[i], steps, spec.host.period)


def stage_path(folder: pathlib.Path, stage: int) -> pathlib.Path:
  """Returns the file of a stage."""
  return folder / f'stage{stage}.array_record'


def head_path(folder: pathlib.Path, checkpoint: str) -> pathlib.Path:
  """Returns the file of the teacher's head at a checkpoint, or of 'final'."""
  return folder / f'head_{checkpoint}.bin'


def checkpoint_name(checkpoint: int | None) -> str:
  """Returns the name of a checkpoint of the teacher; None is the final one."""
  return 'final' if checkpoint is None else str(checkpoint)


def describe_arrays(stored: Stored) -> list[dict[str, Any]]:
  """Returns the keys, the shape and the dtype of every array; JSON values."""
  return [
    {'keys': list(keys), 'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}
    for keys, leaf in traverse_util.flatten_dict(stored).items()
  ]


def raw_bytes(arrays: Sequence[dict[str, Any]]) -> int:
  """Returns the size of a batch before compression."""
  return sum(
    math.prod(array['shape']) * jnp.dtype(array['dtype']).itemsize
    for array in arrays
  )


def pack(stored: Stored, digest: str, record_id: str) -> bytes:
  """Packs the arrays of a batch.

  Args:
    stored: NumPy arrays.
    digest: the fingerprint of the batch.
    record_id: the cache, the stage and the number of the batch, as text.

  Returns:
    The record.
  """
  leaves = traverse_util.flatten_dict(stored).values()
  content = digest.encode() + b''.join(leaf.tobytes() for leaf in leaves)
  return _CHECKSUM.pack(_checksum(content, record_id)) + content


def unpack(
  record: bytes, arrays: Sequence[dict[str, Any]], record_id: str
) -> tuple[Stored, str] | None:
  """Unpacks a record.

  Args:
    record: returned by `pack`.
    arrays: returned by `describe_arrays` for the same arrays.
    record_id: cache, stage and number of the batch, as for `pack`.

  Returns:
    The arrays and the digest of the batch; None if the record is damaged, or
    belongs to another cache, stage or batch.
  """
  if len(record) != _CHECKSUM.size + _DIGEST_SIZE + raw_bytes(arrays):
    return None
  (checksum,) = _CHECKSUM.unpack_from(record)
  at = _CHECKSUM.size
  if checksum != _checksum(record[at:], record_id):
    return None
  digest, at = record[at : at + _DIGEST_SIZE].decode(), at + _DIGEST_SIZE
  found = {}
  for array in arrays:
    dtype, size = jnp.dtype(array['dtype']), math.prod(array['shape'])
    leaf = np.frombuffer(record, dtype, size, at).reshape(array['shape'])
    found[tuple(array['keys'])] = leaf
    at += leaf.nbytes
  return traverse_util.unflatten_dict(found), digest


def _checksum(content: bytes, record_id: str) -> int:
  return zlib.crc32(content, zlib.crc32(record_id.encode()))


def record_id(config_digest: str, stage: int, number: int) -> str:
  """Returns the text that identifies a record, for `pack` and `unpack`."""
  return f'{config_digest} {stage} {number}'
