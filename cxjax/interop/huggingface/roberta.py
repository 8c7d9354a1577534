"""RoBERTa, XLM-R and MPNet: BERT with positions that begin after the padding.

MPNet has no sentence types, and biases of relative positions.
"""

import dataclasses

from cxjax.interop.huggingface import encoders

FIELDS = {
  'vocab_size': 'vocab_size',
  'max_length': 'max_position_embeddings',
  'width': 'hidden_size',
  'heads': 'num_attention_heads',
  'depth': 'num_hidden_layers',
  'mlp_width': 'intermediate_size',
  'dropout': 'hidden_dropout_prob',
  'norm_eps': 'layer_norm_eps',
}
ROBERTA = encoders.Spec(
  model_type='roberta',
  prefix='Roberta',
  names=encoders.Names(trunk='roberta.'),
  fields=FIELDS,
  fixed={
    'hidden_act': 'gelu',
    'position_embedding_type': 'absolute',
    'is_decoder': False,
  },
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
  fields=FIELDS,
  # transformers computes 32 buckets, whatever the config says.
  fixed={'hidden_act': 'gelu', 'relative_attention_num_buckets': 32},
  known=('attention_probs_dropout_prob',),
  buckets=32,
)
encoders.register(ROBERTA)
encoders.register(
  dataclasses.replace(ROBERTA, model_type='xlm-roberta', prefix='XLMRoberta')
)
encoders.register(MPNET)
