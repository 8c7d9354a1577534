"""All models of the folder, by name."""

from experiments.real_models import base
from experiments.real_models import decoders
from experiments.real_models import flax_linen
from experiments.real_models import flax_nnx
from experiments.real_models import flax_sequences
from experiments.real_models import flax_vision
from experiments.real_models import other_libraries

CASES: base.Cases = {
  **flax_linen.CASES,
  **flax_sequences.CASES,
  **flax_vision.CASES,
  **flax_nnx.CASES,
  **other_libraries.CASES,
  **decoders.CASES,
}
