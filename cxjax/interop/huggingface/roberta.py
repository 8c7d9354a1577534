"""RoBERTa, XLM-R and MPNet: BERT with positions that begin after the padding.

MPNet has no sentence types, and biases of relative positions.
"""

import dataclasses

from cxjax.interop.huggingface import encoders

ROBERTA = encoders.Spec(
  model_type='roberta',
  prefix='Roberta',
  names=encoders.Names(trunk='roberta.'),
  fields=encoders.FIELDS,
  fixed=encoders.FIXED,
  known=('attention_probs_dropout_prob', 'output_past'),
)
MPNET = encoders.Spec(
  model_type='mpnet',
  prefix='MPNet',
  names=encoders.Names(
    trunk='mpnet.',
    linear={
      **encoders.LINEAR,
      'query': 'attention.attn.q',
      'key': 'attention.attn.k',
      'value': 'attention.attn.v',
      'attention_out': 'attention.attn.o',
    },
    norms={**encoders.NORMS, 'attention_norm': 'attention.LayerNorm'},
    types=False,
    relative='encoder.relative_attention_bias.weight',
  ),
  fields=encoders.FIELDS,
  # transformers computes 32 buckets, whatever the config says.
  fixed={'hidden_act': 'gelu', 'relative_attention_num_buckets': 32},
  known=('attention_probs_dropout_prob',),
  # transformers begins positions after 1, whatever the config says.
  fixed_padding=True,
  buckets=32,
)
encoders.register(ROBERTA)
encoders.register(
  dataclasses.replace(ROBERTA, model_type='xlm-roberta', prefix='XLMRoberta')
)
encoders.register(MPNET)
