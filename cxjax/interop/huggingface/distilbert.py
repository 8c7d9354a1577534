"""DistilBERT: BERT without sentence types, under other names."""

from cxjax.interop.huggingface import encoders

encoders.register(
  encoders.Spec(
    model_type='distilbert',
    prefix='DistilBert',
    names=encoders.Names(
      trunk='distilbert.',
      layer='transformer.layer',
      linear={
        'query': 'attention.q_lin',
        'key': 'attention.k_lin',
        'value': 'attention.v_lin',
        'attention_out': 'attention.out_lin',
        'mlp_in': 'ffn.lin1',
        'mlp_out': 'ffn.lin2',
      },
      norms={
        'attention_norm': 'sa_layer_norm',
        'mlp_norm': 'output_layer_norm',
      },
      transform='vocab_transform',
      transform_norm='vocab_layer_norm',
      bias='vocab_projector.bias',
      kernel='vocab_projector.weight',
      copied_bias='',
      types=False,
      pooler=False,
    ),
    fields={
      'vocab_size': 'vocab_size',
      'max_length': 'max_position_embeddings',
      'width': 'dim',
      'heads': 'n_heads',
      'depth': 'n_layers',
      'mlp_width': 'hidden_dim',
      'dropout': 'dropout',
    },
    fixed={'activation': 'gelu'},
    # Sinusoids only are what positions start from.
    known=(
      'qa_dropout',
      'seq_classif_dropout',
      'sinusoidal_pos_embds',
      'tie_weights_',
    ),
    counts_padding=True,
    asked=True,
  )
)
