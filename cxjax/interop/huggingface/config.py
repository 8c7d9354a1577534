"""Reading `config.json`: the family of a model and its checked fields."""

from collections.abc import Mapping
import math
import os
import pathlib

from cxjax import errors
from cxjax.interop.huggingface import base
from cxjax.interop.huggingface import opening

# Fields of any model that change no output: names, special tokens, settings of
# training and of text generation.
HARMLESS = (
  '_attn_implementation_autoset',
  '_name_or_path',
  '_num_labels',
  'architectures',
  'attention_dropout',
  'bos_token_id',
  'cache_implementation',
  'chunk_size_feed_forward',
  'cls_token_id',
  'diversity_penalty',
  'do_sample',
  'dtype',
  'early_stopping',
  'encoder_no_repeat_ngram_size',
  'eos_token_id',
  'finetuning_task',
  'gradient_checkpointing',
  'id2label',
  'initializer_range',
  'label2id',
  'length_penalty',
  'loss_type',
  'mask_token_id',
  'max_length',
  'min_length',
  'model_type',
  'name_or_path',
  'no_repeat_ngram_size',
  'num_beam_groups',
  'num_beams',
  'num_labels',
  'num_return_sequences',
  'output_attentions',
  'output_hidden_states',
  'output_past',
  'output_scores',
  'pad_token_id',
  'problem_type',
  'remove_invalid_values',
  'repetition_penalty',
  'return_dict',
  'return_dict_in_generate',
  'sep_token_id',
  'task_specific_params',
  'temperature',
  'tokenizer_class',
  'top_k',
  'top_p',
  'tf_legacy_loss',
  'torch_dtype',
  'torchscript',
  'transformers.js_config',
  'transformers_version',
  'typical_p',
  'unk_token_id',
  'unsloth_fixed',
  'unsloth_version',
  'use_cache',
)
# Fields of any model that change no output while they are null, false or empty.
# A field of no list is refused even then: `is_causal`, which no class of
# transformers declares, makes a decoder bidirectional when it is false.
HARMLESS_OFF = (
  '_attn_implementation',
  '_attn_implementation_internal',
  '_auto_class',
  '_commit_hash',
  '_experts_implementation_internal',
  '_flash_attn_2_enabled',
  '_output_attentions',
  '_pre_quantization_dtype',
  'add_cross_attention',
  'attention_bias',
  'attn_implementation',
  'attn_logit_softcapping',
  'auto_map',
  'bad_words_ids',
  'begin_suppress_tokens',
  'compression_config',
  'cross_attention_hidden_size',
  'decoder_start_token_id',
  'exponential_decay_length_penalty',
  'final_logit_softcapping',
  'forced_bos_token_id',
  'forced_eos_token_id',
  'is_decoder',
  'is_encoder_decoder',
  'is_llama_config',
  'layer_types',
  'mlp_bias',
  'neftune_noise_alpha',
  'partial_rotary_factor',
  'prefix',
  'pretraining_tp',
  'pruned_heads',
  'quantization',
  'quantization_config',
  'rope_interleaved',
  'rope_parameters',
  'rope_scaling',
  'sliding_window',
  'suppress_tokens',
  'tie_encoder_decoder',
  'use_bfloat16',
  'use_bidirectional_attention',
  'use_flash_attn',
  'use_mrope',
  'use_qk_norm',
  'use_sliding_window',
  'xla_device',
)
# Files of adapters.
ADAPTERS = (
  'adapter_config.json',
  'adapter_model.safetensors',
  'adapter_model.bin',
)
KINDS: dict[type, str] = {str: 'a string', list: 'a list', dict: 'an object'}


def read(folder: pathlib.Path) -> tuple[base.Family, base.Config]:
  """The family and the config of a model.

  Args:
    folder: folder of the model.

  Returns:
    The family, and the config with its optional fields filled in.

  Raises:
    UserError: the file is missing or damaged, its family is not registered, or
      a field has a value that the family does not support.
  """
  path = folder / 'config.json'
  errors.require(
    os.path.lexists(folder),
    f'There is no folder {folder}. Nothing is downloaded: '
    'huggingface_hub.snapshot_download, with the name of a model, returns one.',
  )
  _require_no_adapter(folder)
  errors.require(
    os.path.lexists(path),
    f'{folder} has no config.json. It must be the folder of one model, as '
    'save_pretrained of transformers writes it.',
  )
  config = opening.read_object(path)
  kind = config.get('model_type')
  family = base.FAMILIES.get(kind) if isinstance(kind, str) else None
  if family is None:
    known = ', '.join(map(repr, base.FAMILIES))
    raise errors.UserError(
      f'{path} has model_type={kind!r}; only {known} can be read. Choose a '
      'model of that type.'
    )
  return family, checked(path, family, config)


def _require_no_adapter(folder: pathlib.Path) -> None:
  """Raises UserError for a folder of LoRA or another adapter, as of peft.

  With one beside a model, transformers runs another function than its files.
  """
  found = [name for name in ADAPTERS if os.path.lexists(folder / name)]
  alone = not (folder / 'config.json').exists() or not any(
    folder.glob('model*.safetensors*')
  )
  where = 'alone' if alone else 'beside a model'
  away = '' if alone else ', or move it away to read the model without it'
  errors.require(
    not found,
    f'{folder} has an adapter {where} ({"".join(found[:1])}), which is not '
    'read. Merge it into its base model first, as with merge_and_unload() of '
    f'peft and save_pretrained{away}.',
  )


def checked(
  path: pathlib.Path, family: base.Family, config: base.Config
) -> base.Config:
  """Checks the fields of a config.

  Args:
    path: the file, for messages.
    family: the family of the config.
    config: the config.

  Returns:
    The config with its optional fields filled in.

  Raises:
    UserError: a field has a value that the family does not support.
  """
  _require_architecture(path, family, config)
  for name, only in family.fixed.items():
    value = config.get(name, only)
    errors.require(
      value == only,
      f'{path} has {name}={value!r}; only {only!r} is supported. Choose '
      'another model.',
    )
  _require_known(path, family, config)
  optional = {name: value for name, (_, value) in family.optional.items()}
  config = {**family.defaults, **optional, **config}
  for name in family.sizes.values():
    _require_size(path, name, config.get(name))
  for name, default in family.defaults.items():
    _require_kind(path, name, config[name], type(default))
  for name, (kind, _) in family.optional.items():
    if config[name] is not None:
      _require_kind(path, name, config[name], kind)
  return config


def _require_architecture(
  path: pathlib.Path, family: base.Family, config: base.Config
) -> None:
  """Raises a UserError for a class of transformers that is not known."""
  named = config.get('architectures')
  if named is None or not family.architectures:
    return
  errors.require(
    isinstance(named, list)
    and bool(named)
    and all(name in family.architectures for name in named),
    f'{path} has architectures={named!r}; only '
    f'{", ".join(family.architectures)} can be read. Choose another model.',
  )


def _require_known(
  path: pathlib.Path, family: base.Family, config: base.Config
) -> None:
  """Raises a UserError for fields that may change what a model computes."""
  if family.known is None:
    return
  known = {*HARMLESS, *family.known, *family.fixed, *family.defaults}
  known |= {*family.optional, *family.sizes.values()}
  for name, value in config.items():
    off = value is None or value is False or value in ('', [], {})
    errors.require(
      name in known or (off and name in HARMLESS_OFF),
      f'{path} has {name}={_shown(value)}, which {family.model_type} does not '
      'have here: it may change what the model computes. Choose another model, '
      'or remove the field if it changes nothing.',
    )


def _shown(value: object) -> str:
  """A value in a message."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:60]}...'


def _require_kind(
  path: pathlib.Path, name: str, value: object, kind: type
) -> None:
  """Raises a UserError unless the value is of a kind."""
  if kind is int:
    _require_size(path, name, value)
  elif issubclass(kind, float):
    _require_number(path, name, value, kind is base.Positive)
  elif kind is bool:
    errors.require(
      isinstance(value, bool),
      f'{path} has {name}={value!r}; it must be true or false. Restore the '
      'file.',
    )
  else:
    errors.require(
      isinstance(value, kind),
      f'{path} has {name}={_shown(value)}; it must be {KINDS[kind]}. Restore '
      'the file.',
    )


def lookup(
  path: pathlib.Path | str, name: str, value: object, known: Mapping[str, str]
) -> str:
  """The name here of a value of a field; raises UserError if there is none."""
  errors.require(
    isinstance(value, str) and value in known,
    f'{path} has {name}={_shown(value)}; only {", ".join(map(repr, known))} '
    'can be read. Choose another model.',
  )
  return known[str(value)]


def _require_size(path: pathlib.Path, name: str, value: object) -> None:
  """Raises a UserError unless the value is a whole number of at least 1."""
  errors.require(
    type(value) is int and value >= 1,
    f'{path} has {name}={value!r}; it must be a whole number of at least 1. '
    'Restore the file.',
  )


def _require_number(
  path: pathlib.Path, name: str, value: object, positive: bool
) -> None:
  """Raises a UserError unless the value is a number from 0 on, or above it."""
  errors.require(
    type(value) in (int, float)
    and 0 <= value < math.inf  # type: ignore[operator]
    and not (positive and value == 0),
    f'{path} has {name}={value!r}; it must be a finite number '
    f'{"above" if positive else "of at least"} 0. Restore the file.',
  )
