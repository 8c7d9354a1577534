"""Writing a model as a Hugging Face folder."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import files
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import sentence_files
from cxjax.interop.huggingface import tensors as tensors_lib
from cxjax.interop.huggingface import tokenizer_files
from cxjax.models import decoder
from cxjax.models import sentence
from cxjax.models import transformer
from cxjax.parallel import multihost
from cxjax.parallel import reception

# As in transformers.
MAX_SHARD_BYTES = 5_000_000_000


def write(
  folder: pathlib.Path | str,
  module: transformer.Transformer | decoder.Decoder | sentence.SentenceEncoder,
  variables: Mapping[str, Any],
  tokenizer: tokenizers.Tokenizer | None = None,
  model_type: str = '',
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes a model to a folder that transformers' `from_pretrained` reads.

  A module that `read` gave is written as the family it came from, any other as
  the first family that can hold it.

  An encoder of BERT without a head is written as a `BertModel`, one with a head
  as a `BertForMaskedLM`. Both have a table of sentence types and the first has
  a pooler; the module has neither, so that these are zeros, and `pooler_output`
  means nothing. A `SentenceEncoder` is written as its encoder plus the files
  that sentence-transformers reads: the mean and the linear layer. `read` gives
  its encoder back.

  Makes one tensor after another: beside the parameters one of them is in the
  memory of the host. Of several processes the first one writes.

  Args:
    folder: created if it does not exist; files of the same names are replaced,
      and shards of an earlier model removed. `config.json` is written last: a
      folder without it is incomplete.
    module: a model without a head, or with one of `vocab_size` classes.
    variables: its `{'params': ...}`, which are written in their dtypes.
    tokenizer: written as `tokenizer.json` and `tokenizer_config.json`. Of a
      causal model the usual tokens that begin and end a text are named there
      and in `config.json`, so that transformers stops at the end.
    model_type: family to write, as in 'mistral'; '' for the above.
    max_shard_bytes: bytes of tensors in one file; more are written to several,
      'model-00001-of-00002.safetensors' and so on, with an index.

  Raises:
    UserError: no family can hold the module, as with another head; the
      variables do not fit the module, or are not finite; the tokenizer has
      another size; the folder cannot be written.
  """
  folder = checks.path('folder', folder)
  if tokenizer is not None:
    checks.instance(tokenizers.Tokenizer, 'huggingface.tokenizer')(
      'tokenizer', tokenizer
    )
  variables = arguments.mapping('variables', variables, "{'params': ...}")
  variables = reception.with_values('variables', variables)
  most = arguments.integer('max_shard_bytes', max_shard_bytes, 1)
  encoder = _encoder(module)
  family = base.family_of(encoder, model_type)
  tensors_lib.require_same(
    'The variables do not fit the module',
    tensors_lib.shapes(variables),
    tensors_lib.shapes(tensors_lib.variables_of(module)),
    ('given', 'in the module'),
    'Give the variables of this module.',
  )
  _require_finite(variables)
  if tokenizer is not None:
    tokenizer_files.require_size(tokenizer, encoder.vocab_size)
    tokenizer_files.require_rows(tokenizer, encoder.vocab_size, encoder.causal)
    pad = getattr(encoder, 'pad_token', -1)
    tokenizer_files.require_padding(tokenizer, pad)
  if not multihost.is_first():
    return
  with files.written(folder, 'folder'):
    # Files of an earlier model, which would describe the new tensors wrongly.
    for name in ('config.json', sentence_files.FILE):
      (folder / name).unlink(missing_ok=True)
  _write(folder, family, module, variables['params'], tokenizer, most)


def _require_finite(variables: Mapping[str, Any]) -> None:
  """Raises UserError for values that `read` would refuse."""
  for path, leaf in jax.tree.leaves_with_path(variables):
    if isinstance(leaf, jax.Array):  # NumPy would keep a copy on the host.
      finite = jnp.isfinite(reception.computable(leaf)).all()
    else:
      finite = np.isfinite(np.asarray(leaf)).all()
    errors.require(
      bool(finite),
      f'{jax.tree_util.keystr(path, simple=True, separator="/")} has values '
      'that are not finite: the model diverged. Write earlier parameters, as '
      'of its last good checkpoint.',
    )


def _encoder(module: Any) -> Any:
  """The encoder of a sentence encoder, or the module itself."""
  if isinstance(module, sentence.SentenceEncoder):
    return module.encoder
  return module


def _write(
  folder: pathlib.Path,
  family: base.Family,
  module: Any,
  params: Mapping[str, Any],
  tokenizer: tokenizers.Tokenizer | None,
  max_shard_bytes: int,
) -> None:
  """Writes the files of a model; `params` are those of the module."""
  encoder = _encoder(module)
  config = family.config(encoder)
  inner = params if module is encoder else params['encoder']
  tensors = base.to_tensors(family.parameters(encoder), inner)
  tensors = family.complete({**tensors, **family.constants(config)}, encoder)
  tensors_lib.write_folder(folder, tensors, max_shard_bytes)
  config['dtype'] = str(tensors_lib.most_common_dtype(tensors))
  if tokenizer is not None:
    causal = encoder.causal
    tokenizer_files.write(folder, tokenizer, encoder.max_length, causal)
    config |= tokenizer_files.special_ids(tokenizer, causal)
  if isinstance(module, sentence.SentenceEncoder):
    sentence_files.write(folder, module, params)
  files.write_json(folder / 'config.json', config, place='folder')
