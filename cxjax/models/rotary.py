"""Rotary position embeddings, and how they are scaled to long sequences.

In shapes, `B` is the batch, `L` the length, `H` the number of heads and `d` the
width of a head.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import errors

SCALINGS = ('none', 'linear', 'llama3', 'yarn')
THETA = arguments.Range(1, 1e30, ends=(False, True))  # As float32 holds.


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Frequencies of a rotary position embedding.

  Attributes:
    theta: base of the frequencies.
    scaling: 'none'; 'linear', all frequencies are divided by `factor`;
      'llama3', only the low ones, with a smooth transition; 'yarn', the same
      with another transition, and queries and keys times `attention_factor`.
    factor: divisor of the frequencies.
    original_length: length of the sequences before the scaling, in tokens.
    low_factor: Llama 3: frequencies of fewer turns over the original length are
      divided by the factor.
    high_factor: Llama 3: frequencies of more turns stay as they are.
    beta_fast: YaRN: frequencies of more turns stay as they are.
    beta_slow: YaRN: frequencies of fewer turns are divided by the factor.
    attention_factor: YaRN: factor of queries and keys.
    truncate: YaRN: whether the ends of the transition are whole numbers.

  References:
    Su et al. "RoFormer", 2021. https://arxiv.org/abs/2104.09864, section 3.2.
    Peng et al. "YaRN", 2023. https://arxiv.org/abs/2309.00071, section 3.
  """

  theta: float = 10_000.0
  scaling: str = 'none'
  factor: float = 1.0
  original_length: int = 0
  low_factor: float = 1.0
  high_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float = 1.0
  truncate: bool = True

  def __post_init__(self) -> None:
    """Raises UserError for values that give no frequencies."""
    errors.lookup('scaling', self.scaling, dict.fromkeys(SCALINGS))
    positive = arguments.Range(0, 1e30, ends=(False, True))
    arguments.number('theta', self.theta, THETA)
    names = ('factor', 'beta_fast', 'beta_slow', 'attention_factor')
    for name in (*names, 'low_factor', 'high_factor'):
      arguments.number(name, getattr(self, name), positive)
    arguments.integer('original_length', self.original_length, 0, 2**31 - 1)
    arguments.flag('truncate', self.truncate)
    errors.require(
      self.scaling not in ('llama3', 'yarn') or self.original_length > 0,
      f'scaling={self.scaling!r} needs an original_length of at least 1.',
    )
    errors.require(
      self.scaling != 'llama3' or self.low_factor < self.high_factor,
      f'low_factor={self.low_factor} must be below '
      f'high_factor={self.high_factor}.',
    )

  def frequencies(self, width: int) -> np.ndarray:
    """`[d / 2]` radians per token, float32, for heads of a width `d`."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    # In float32, as the models were trained.
    powers = np.float32(self.theta) ** exponents
    plain = (1 / powers).astype(np.float32)
    if self.scaling == 'linear':
      return plain / np.float32(self.factor)
    if self.scaling == 'llama3':
      return self._llama3(plain)
    if self.scaling == 'yarn':
      return self._yarn(plain, width)
    return plain

  def _llama3(self, plain: np.ndarray) -> np.ndarray:
    turns = self.original_length * plain / np.float32(2 * math.pi)
    share = (turns - self.low_factor) / (self.high_factor - self.low_factor)
    share = np.clip(share, 0, 1)
    scaled = (1 - share) * plain / self.factor + share * plain
    return scaled.astype(np.float32)

  def _yarn(self, plain: np.ndarray, width: int) -> np.ndarray:
    def dimension(turns: float) -> float:
      length = self.original_length / (turns * 2 * math.pi)
      return width * math.log(length) / (2 * math.log(self.theta))

    low, high = dimension(self.beta_fast), dimension(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
      high += 0.001  # Against a division by 0.
    ramp = (np.arange(width // 2, dtype=np.float32) - low) / (high - low)
    ramp = np.clip(ramp, 0, 1)
    scaled = plain / self.factor * ramp + plain * (1 - ramp)
    return scaled.astype(np.float32)

  def angles(
    self, positions: jax.Array, width: int
  ) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of positions.

    Args:
      positions: `[B or 1, L]` integers.
      width: `d`, an even number.

    Returns:
      Two arrays `[B or 1, L, d / 2]`, float32.
    """
    frequencies = self.frequencies(width)[None, None]
    turned = positions[..., None].astype(jnp.float32) * frequencies
    factor = self.attention_factor if self.scaling == 'yarn' else 1.0
    return jnp.cos(turned) * factor, jnp.sin(turned) * factor


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Turns pairs of features by their angles.

  A pair is a feature of the first half of a head and the one at the same index
  in the second half.

  Args:
    x: `[B, L, H, d]` queries or keys.
    angles: cosines and sines from `Rotary.angles`.

  Returns:
    `[B, L, H, d]`, in the dtype of `x`; computed in float32.
  """
  cos, sin = (part[:, :, None] for part in angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
