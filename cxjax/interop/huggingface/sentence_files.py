"""Files that sentence-transformers reads beside an encoder."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from cxjax import files
from cxjax.interop.huggingface import tensors as tensors_lib
from cxjax.models import sentence

FILE = 'modules.json'


def write(
  folder: pathlib.Path,
  module: sentence.SentenceEncoder,
  params: Mapping[str, Any],
) -> None:
  """Writes the mean pooling, the linear layer and the list of modules.

  Args:
    folder: folder of the encoder.
    module: the sentence encoder.
    params: its parameters.

  Raises:
    UserError: a file cannot be written.
  """
  width = module.encoder.width
  parts = {'Transformer': '', 'Pooling': '1_Pooling'}
  pooling = {
    'word_embedding_dimension': width,
    'pooling_mode_cls_token': False,
    'pooling_mode_mean_tokens': True,
    'pooling_mode_max_tokens': False,
    'pooling_mode_mean_sqrt_len_tokens': False,
  }
  files.write_json(
    folder / '1_Pooling' / 'config.json', pooling, place='folder'
  )
  if module.features:
    parts['Dense'] = '2_Dense'
    _write_linear(folder / '2_Dense', width, module.features, params['linear'])
  modules = [
    {
      'idx': i,
      'name': str(i),
      'path': path,
      'type': f'sentence_transformers.models.{kind}',
    }
    for i, (kind, path) in enumerate(parts.items())
  ]
  files.write_json(folder / FILE, modules, place='folder')


def _write_linear(
  folder: pathlib.Path, width: int, features: int, params: Mapping[str, Any]
) -> None:
  """Writes a linear layer of `width` inputs and `features` outputs."""
  config = {
    'in_features': width,
    'out_features': features,
    'bias': True,
    'activation_function': 'torch.nn.modules.linear.Identity',
  }
  tensors = {
    'linear.weight': np.asarray(params['kernel'], np.float32).T,
    'linear.bias': np.asarray(params['bias'], np.float32),
  }
  tensors_lib.write(folder / tensors_lib.FILE, tensors)
  files.write_json(folder / 'config.json', config, place='folder')
