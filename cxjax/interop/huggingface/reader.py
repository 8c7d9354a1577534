"""Reading a model and its tokenizer from a Hugging Face folder."""

import pathlib
from typing import Any

import jax.numpy as jnp
import tokenizers

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import config as config_lib
from cxjax.interop.huggingface import tensors as tensors_lib
from cxjax.interop.huggingface import tokenizer_files


def read(
  folder: pathlib.Path | str, place: base.Place | None = None
) -> tuple[Any, dict[str, Any]]:
  """Reads a pretrained model.

  Reads one tensor after another: the peak of memory is the parameters and one
  tensor. No code of the folder is run, and no file out of it is read.

  Args:
    folder: holds `config.json` and `model.safetensors`, or the shards that
      `model.safetensors.index.json` lists, in any floating-point type. The
      families that can be read are those of `FAMILIES`.
    place: `(path, array) -> array`, called with each parameter as soon as it is
      read, to move it to a device; None keeps arrays of the host.

  Returns:
    The module and its variables, in the dtype of the file; float64 becomes
    float32. The module computes in bfloat16 if that is the dtype of the file,
    and in float32 otherwise; `module.clone(dtype=...)` changes that. It has a
    head if the file has one of a language model, tied if that is tied. The
    dropout rate of an encoder is the config's `hidden_dropout_prob`. BERT's
    poolers are left out; so are its other heads and sentence types, with a
    warning.

  Raises:
    UserError: a file is missing or damaged; the config is of another model, or
      has a field that is not known here (the message names it); tensors are
      missing, unexpected, or of other shapes than the config says (the message
      names the first three).
  """
  folder = checks.path('folder', folder)
  if place is not None:
    arguments.function('place', place, 'lambda path, array: array')
  family, config = config_lib.read(folder)
  tensors = family.select(tensors_lib.read(folder), config)
  tensors_lib.require_sizes(folder, family, config, tensors)
  try:
    module = family.module(config, tensors)
  except errors.UserError as error:
    raise errors.UserError(
      f'The config.json of {folder} describes no model: {error}'
    ) from error
  table = family.parameters(module)
  params = tensors_lib.variables_of(module)['params']
  want = {
    **base.tensor_shapes(table, params),
    **tensors_lib.shapes(family.constants(config)),
  }
  tensors_lib.require_same(
    f'The tensors of {folder} do not fit its config.json',
    tensors_lib.shapes(tensors),
    want,
    ('in the file', 'by the config'),
    'Take both from one model.',
  )
  if tensors_lib.most_common_dtype(tensors) == jnp.bfloat16:
    module = module.clone(dtype=jnp.bfloat16)
  if hasattr(module, 'family') and not _is_written_as(module, family):
    module = module.clone(family=family.model_type)
  return module, base.to_variables(table, tensors, None, place)


def _is_written_as(module: Any, family: base.Family) -> bool:
  """True for a module that, without a family named, is written as this one."""
  try:
    return base.family_of(module) is family
  except errors.UserError:  # What cannot be written can be read all the same.
    return False


def tokenizer(folder: pathlib.Path | str) -> tokenizers.Tokenizer:
  """Reads the tokenizer of a pretrained model.

  It neither truncates nor pads, whatever the file says, and encodes a '[MASK]'
  in a text as its six characters.

  Args:
    folder: holds `config.json`, and `tokenizer.json` or else `vocab.txt`, the
      vocabulary of BERT's WordPiece. For the latter `tokenizer_config.json`
      says whether text is lowercased; without that file it is.

  Returns:
    The tokenizer.

  Raises:
    UserError: the folder has neither file, or a damaged one; it has more
      tokens than the model, apart from added special tokens.
  """
  folder = checks.path('folder', folder)
  _, config = config_lib.read(folder)
  found = tokenizer_files.read(folder)
  tokenizer_files.require_size(found, config['vocab_size'])
  return found
