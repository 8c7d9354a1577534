"""Documents of made-up words, for tests of text."""

import numpy as np

WORDS = tuple(
  f'{a}{b}'
  for a in ('', 'un', 're', 'pre', 'over', 'under')
  for b in ('layer', 'match', 'of', 'draw', 'stack')
)


def make_documents(number, seed=0):
  """Makes documents of 3 to 40 words."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(3, 40, number)
  return [' '.join(rng.choice(WORDS, size)) for size in sizes]


DOCUMENTS = make_documents(200)
