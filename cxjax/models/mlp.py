"""Multilayer perceptron of any depth."""

from flax import linen as nn
import jax


class MLP(nn.Module):
  """Linear-ReLU layers and a linear head.

  Kernels start at variance 1/fan_in, biases at 0.

  Attributes:
    widths: one width per hidden layer.
    num_classes: `C`, the number of logits.
  """

  widths: tuple[int, ...]
  num_classes: int

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the hidden activations, lowest first."""
    return tuple(f'hidden{i}' for i in range(len(self.widths)))

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits `[..., C]` and activations `{'hidden0': [..., widths[0]], ...}`.

    Args:
      x: `[..., d]` inputs.

    Returns:
      The logits, and the activation after the ReLU of each hidden layer.
    """
    activations = {}
    for name, width in zip(self.layers, self.widths, strict=True):
      x = activations[name] = nn.relu(nn.Dense(width, name=name)(x))
    return nn.Dense(self.num_classes, name='logits')(x), activations
