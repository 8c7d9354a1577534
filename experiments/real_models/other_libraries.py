"""Models of equinox, haiku, Keras and jraph, if these are installed."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

import cxjax
from cxjax.models import optional
from experiments.real_models import base
from experiments.real_models import flax_linen


def equinox() -> base.Case:
  """Modules of one example, with batch norm, dropout and a jitted block."""
  eqx = optional.imported('equinox', 'equinox', 'equinox')

  class Block(eqx.Module):
    """A residual block."""

    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, width: int, key: Any) -> None:
      """Makes the layers."""
      self.linear = eqx.nn.Linear(width, width, key=key)
      self.dropout = eqx.nn.Dropout(0.1)

    @eqx.filter_jit
    def __call__(self, x: Any, *, key: Any = None) -> Any:
      """The output."""
      return x + self.dropout(jax.nn.tanh(self.linear(x)), key=key)

  class Net(eqx.Module):
    """A linear layer, a norm, blocks and a head."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, depth: int, width: int, key: Any) -> None:
      """Makes the layers."""
      keys = jax.random.split(key, depth + 2)
      self.first = eqx.nn.Linear(5, width, key=keys[0])
      self.norm = eqx.nn.BatchNorm(width, 'batch', mode='batch')
      self.blocks = [Block(width, key) for key in keys[2:]]
      self.head = eqx.nn.Linear(width, base.CLASSES, key=keys[1])

    def __call__(self, x: Any, state: Any, key: Any = None) -> Any:
      """The output."""
      x, state = self.norm(self.first(x), state)
      for i, block in enumerate(self.blocks):
        x = block(x, key=None if key is None else jax.random.fold_in(key, i))
      return self.head(x), state

  def make(depth: int, width: int) -> Any:
    both = lambda key: eqx.nn.make_with_state(Net)(depth, width, key)
    shapes = eqx.filter_eval_shape(both, jax.random.key(0))
    arrays, fields = eqx.partition(
      shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    return eqx.combine(base.weights(arrays), fields)

  x = base.floats(base.BATCH, 5)
  (big, big_state), (small, small_state) = make(4, 16), make(2, 8)
  teacher = cxjax.from_equinox(big, state=big_state)
  student = cxjax.from_equinox(small, state=small_state)
  return base.Case(teacher, student, x, base.pairs('blocks/*', 'blocks/*'))


def haiku() -> base.Case:
  """A transformed function with batch norm and dropout."""
  hk = optional.imported('haiku', 'dm-haiku', 'haiku')

  class Block(hk.Module):
    """A residual block."""

    def __call__(self, x: Any) -> Any:
      """The output."""
      return x + jnp.tanh(hk.Linear(x.shape[-1])(x))

  def network(depth: int, width: int) -> Any:
    def apply(x: Any, is_training: bool = False) -> Any:
      training = is_training or hk.running_init()
      x = hk.BatchNorm(True, True, 0.9)(hk.Linear(width)(x), training)
      for _ in range(depth):
        x = Block()(x)
      if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.1, x)
      return hk.Linear(base.CLASSES)(x)

    return hk.transform_with_state(apply)

  x = base.floats(base.BATCH, 5)
  big, small = network(4, 16), network(2, 8)
  shapes = (jax.eval_shape(n.init, jax.random.key(0), x) for n in (big, small))
  weights, more = map(base.weights, shapes)
  training = {'is_training': True}
  teacher = cxjax.from_haiku(big, *weights)
  student = cxjax.from_haiku(small, *more, training=training)
  return base.Case(teacher, student, x, base.pairs('block_*', 'block_*'))


def keras() -> base.Case:
  """Functional models; the student has batch norm and dropout."""
  # The adapter sets and checks the backend.
  optional.imported('keras', 'keras', 'keras')
  import keras as ks

  def network(depth: int, width: int) -> Any:
    x = inputs = ks.Input((5,))
    for i in range(depth):
      x = ks.layers.Dense(width, activation='tanh', name=f'block_{i}')(x)
    x = ks.layers.Dropout(0.1)(ks.layers.BatchNormalization()(x))
    return ks.Model(inputs, ks.layers.Dense(base.CLASSES, name='head')(x))

  x = base.floats(base.BATCH, 5)
  teacher = cxjax.from_keras(network(4, 16))
  student = cxjax.from_keras(network(2, 8))
  return base.Case(teacher, student, x, base.pairs('block_*', 'block_*'))


def jraph() -> base.Case:
  """Graph convolutions; every graph has as many nodes and edges."""
  jr = optional.imported('jraph', 'jraph', 'jraph')

  class Convolution(nn.Module):
    """A residual graph convolution."""

    width: int

    @nn.compact
    def __call__(self, graph: Any) -> Any:
      """The graph with new nodes."""
      update = nn.Dense(self.width)
      found = jr.GraphConvolution(update, add_self_edges=True)(graph)
      return graph._replace(nodes=graph.nodes + jnp.tanh(found.nodes))

  class Network(nn.Module):
    """A class of one graph."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, nodes: Any, senders: Any, receivers: Any) -> Any:
      """Logits."""
      graph = jr.GraphsTuple(
        nodes=nn.Dense(self.width, name='embed')(nodes),
        edges=None,
        senders=senders,
        receivers=receivers,
        n_node=jnp.array([len(nodes)]),
        n_edge=jnp.array([len(senders)]),
        globals=None,
      )
      for i in range(self.depth):
        graph = Convolution(self.width, name=f'layers_{i}')(graph)
      return nn.Dense(base.CLASSES, name='head')(graph.nodes.mean(0))

  return flax_linen.graph_network(Network, 'layers_*/nodes')


CASES: base.Cases = {
  'equinox': equinox,
  'haiku': haiku,
  'Keras': keras,
  'jraph': jraph,
}
