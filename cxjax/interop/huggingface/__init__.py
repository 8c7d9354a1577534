"""Hugging Face folders: read a pretrained model, write a trained one.

A folder holds `config.json`, `model.safetensors` and, optionally, a tokenizer,
as `save_pretrained` of the library transformers writes them; that library is
not needed here. The families that can be read are those of `base.FAMILIES`:
each is registered by its module, which is imported below.
"""

from cxjax.interop.huggingface import distilbert as distilbert
from cxjax.interop.huggingface import gemma as gemma
from cxjax.interop.huggingface import llama as llama
from cxjax.interop.huggingface import mistral as mistral
from cxjax.interop.huggingface import modernbert as modernbert
from cxjax.interop.huggingface import qwen as qwen
from cxjax.interop.huggingface import roberta as roberta
from cxjax.interop.huggingface.base import FAMILIES
from cxjax.interop.huggingface.base import Family
from cxjax.interop.huggingface.base import Parameter
from cxjax.interop.huggingface.base import Tensors
from cxjax.interop.huggingface.base import register
from cxjax.interop.huggingface.bert import from_bert
from cxjax.interop.huggingface.gpt2 import from_gpt2
from cxjax.interop.huggingface.reader import read
from cxjax.interop.huggingface.reader import tokenizer
from cxjax.interop.huggingface.vocabularies import shared_vocabulary
from cxjax.interop.huggingface.writer import write

__all__ = [
  'FAMILIES',
  'Family',
  'Parameter',
  'Tensors',
  'from_bert',
  'from_gpt2',
  'read',
  'register',
  'shared_vocabulary',
  'tokenizer',
  'write',
]
