"""The input dict of models that read token ids."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors

INPUTS = (
  'tokens',
  'mask',
  'target_positions',
  'segments',
  'position_ids',
  'dropout',
)
# Earlier names of inputs. Without an error, a batch that still has them would
# be read as if it had not.
_RENAMED = {'positions': 'target_positions', 'places': 'position_ids'}


def checked(
  x: jax.Array | Mapping[str, jax.Array], max_length: int
) -> Mapping[str, jax.Array]:
  """Returns the input as a dict.

  Args:
    x: `[B, L]` token ids, or a dict with some of `INPUTS`.
    max_length: number of positions of the model.

  Returns:
    The dict.

  Raises:
    UserError: the model cannot read the input.
  """
  if not isinstance(x, Mapping):
    x = {'tokens': x}
  for name in x:
    errors.require(
      name not in _RENAMED,
      f'The input {name!r} is called {_RENAMED.get(name)!r} now. Rename it.',
    )
    errors.lookup('input', name, dict.fromkeys(INPUTS))
  errors.require('tokens' in x, "The input has no 'tokens': give [B, L] ids.")
  tokens = x['tokens']
  arguments.arrays(tokens=tokens)
  errors.require(
    tokens.ndim == 2 and jnp.issubdtype(tokens.dtype, jnp.integer),
    f"'tokens' are {tokens.dtype}{list(tokens.shape)}; they must be [B, L] "
    'integers.',
  )
  errors.require(
    tokens.shape[1] <= max_length,
    f'A sequence of {tokens.shape[1]} tokens is longer than the {max_length} '
    'positions of the model. Cut it, or set max_length.',
  )
  return x
