"""The layers of a model: runs of numbered siblings, or by depth."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from cxjax.models import adapters
from cxjax.models import linen_adapter
from cxjax.models import taps

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
EYE = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def chain(names):
  """A model whose activations are computed one after another."""

  def apply(params, x):
    found = {}
    for name in names:
      x = found[name] = jnp.tanh(x @ params)
    return x @ params, found

  return taps.taps(adapters.from_fn(apply, EYE), X)


class Block(nn.Module):
  """A block that returns a cache, its output and an auxiliary value."""

  @nn.compact
  def __call__(self, h):
    keys = nn.Dense(8, name='keys')(nn.LayerNorm(name='norm')(h))
    h = h + nn.Dense(8, name='mlp')(keys)
    return {'keys': keys}, h, h.sum(-1, keepdims=True)


class Stack(nn.Module):
  """Blocks; the output is capped softly."""

  block: type = Block

  @nn.compact
  def __call__(self, x):
    for i in range(3):
      _, x, _ = self.block(name=f'h_{i}')(x)
    logits = nn.Dense(8, name='head', dtype='bfloat16')(nn.LayerNorm()(x))
    return 30 * jnp.tanh(logits.astype(jnp.float32) / 30)


def of_module(module):
  shapes = jax.eval_shape(module.init, jax.random.key(0), X)
  return taps.taps(linen_adapter.from_linen(module, shapes), X)


class RunTest(parameterized.TestCase):
  @parameterized.parameters('blocks/{}', 'layer_{}', 'h{}', 'model/h/{}/out')
  def test_names(self, form):
    run = [form.format(i) for i in range(11)]  # 10 is after 9.
    found = chain(['stem', *run, 'neck'])
    self.assertEqual(found.layers, tuple(run))
    self.assertEqual(list(found.runs), [form.format('*').removesuffix('/out')])

  def test_stages_of_blocks(self):
    run = [f'stages/{i}/blocks/{j}' for i in range(2) for j in range(2)]
    self.assertEqual(chain(['stem', *run]).layers, tuple(run))

  @parameterized.parameters(
    'stage{}_block{}', 's{}_b{}/conv', 'c{}_block{}_out'
  )
  def test_stages_of_blocks_in_flat_names(self, form):
    """Names of ConvNeXt, Swin and the applications of Keras."""
    run = [form.format(i, j) for i in range(2) for j in range(2)]
    inside = [run[0].replace('out', '1_conv')] if 'out' in form else []
    found = chain(['stem', *inside, *run, 'neck_norm'])
    self.assertEqual(found.layers, tuple(run))
    pattern = form.format('*', '*').removesuffix('/conv')
    self.assertEqual(list(found.runs), [pattern])

  def test_norms_end_the_blocks_of_two_stacks(self):
    """Blocks of a DETR: the residual sums lie outside of the modules."""

    def apply(params, x):
      found = {}
      for stack in ('encoder', 'decoder'):
        for i in range(3):
          x += found.setdefault(f'{stack}_{i}', jnp.tanh(x @ params))
          x = found[f'{stack}_norm_{i}'] = x / 2
      return x @ params, found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    want = [f'{stack}_norm_*' for stack in ('encoder', 'decoder')]
    self.assertEqual(list(found.runs), want)

  def test_the_head_of_another_output_is_none(self):
    def apply(params, x):
      h = jnp.tanh(x @ params)
      head = h @ params
      found = {'h': h, 'head': head, 'output:scores': 4 * head}
      return (h @ params)[:, :3], found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    self.assertEqual(found.layers, ('h',))

  def test_heads_inside_of_a_block_are_none(self):
    run = [f'block{i}' for i in range(2)]
    names = [*(f'block0/mlp{i}' for i in range(6)), *run]
    self.assertEqual(chain(names).layers, tuple(run))

  def test_runs_that_are_taken_in_turns_are_one(self):
    names = [f'{kind}_{i}' for i in range(3) for kind in ('attn', 'mlp')]
    self.assertEqual(chain(names).layers, tuple(names))

  def test_parallel_parts_of_layers_are_none(self):
    """Both directions of recurrent layers, beside the layers, in one module."""

    def apply(params, x):
      found = {}
      for i in range(4):
        a = found[f'rnn_{2 * i}'] = jnp.tanh(x @ params)[..., :4]
        b = found[f'rnn_{2 * i + 1}'] = jnp.sin(x @ params)[..., :4]
        x = found[f'layer_{i}'] = jnp.concatenate([a, b], -1)
      return x @ params, found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    self.assertEqual(found.layers, tuple(f'layer_{i}' for i in range(4)))

  def test_products_in_parallel_are_not_the_ends_of_blocks(self):
    """Products of attention, in a model without modules for its blocks."""

    def apply(params, x):
      found = {}
      for i in range(3):
        h = found[f'norm_{i}'] = x - x.mean(-1, keepdims=True)
        a, b = (jnp.tanh(h @ (params + j)) for j in range(2))
        found[f'dense_{3 * i}'], found[f'dense_{3 * i + 1}'] = a, b
        x = found[f'dense_{3 * i + 2}'] = (a * b) @ params
      return x @ params, found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    # The norms of what the first two blocks return, and the last block.
    self.assertEqual(found.layers, ('norm_1', 'norm_2', 'dense_8'))

  def test_an_encoder_and_a_decoder(self):
    names = [*(f'enc/{i}' for i in range(3)), *(f'dec/{i}' for i in range(2))]
    found = chain(['stem_0', 'stem_1', 'neck', *names])
    self.assertEqual(list(found.runs), ['stem_*', 'enc/*', 'dec/*'])
    found = chain([*(f'dec/{i}' for i in range(5)), *names[:2]])
    self.assertEqual(found.layers, tuple(f'dec/{i}' for i in range(5)))
    self.assertEqual(found.other_runs, {'enc/*': ('enc/0', 'enc/1')})

  def test_calls_of_one_module(self):
    names = ['layer', 'layer#2', 'layer#3']
    self.assertEqual(chain(['stem', *names]).layers, tuple(names))

  def test_parts_of_a_module_that_is_called_again_are_none(self):
    parts = ('layer/fc_0', 'layer/fc_1', 'layer')
    names = [part + call for call in ('', '#2', '#3') for part in parts]
    self.assertEqual(chain(names).layers, ('layer', 'layer#2', 'layer#3'))

  def test_norms_are_no_layers_of_blocks_without_numbers(self):
    def apply(params, x):
      found = {}
      for name in ('low', 'middle', 'top'):
        for i, part in enumerate(('attention', 'mlp')):
          h = found[f'{name}/norm_{i}'] = x - x.mean(-1, keepdims=True)
          h = found[f'{name}/{part}'] = jnp.tanh(h @ params)
          x = x + h
        found[name] = x
      return x @ params, found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    self.assertEqual(found.layers, ('low', 'middle', 'top'))

  def test_siblings_that_grow_are_whole(self):
    def apply(params, x):
      found = {}
      for i in range(3):
        h = found[f'layer_{i}/conv_0'] = jnp.tanh(x[..., -8:] @ params)[..., :4]
        x = found[f'layer_{i}'] = jnp.concatenate([x, h], -1)
      return x[..., :8] @ params + x[..., -8:] @ params, found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    self.assertEqual(found.layers, ('layer_0', 'layer_1', 'layer_2'))

  def test_nothing_may_read_what_the_last_block_passes_on(self):
    def apply(params, x):
      found, total = {}, 0.0
      for i in range(3):
        h = jnp.tanh(x @ params)
        x = found[f'h_{i}'] = x + h @ params
        found[f'h_{i}/1'] = jnp.sin(h) @ params
        total = total + found[f'h_{i}/1']
      return total @ params, found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    self.assertEqual(found.layers, ('h_0', 'h_1', 'h_2/1'))

  @parameterized.parameters(Block, nn.remat(Block))
  @pytest.mark.slow
  def test_the_array_that_goes_on_is_the_layer(self, block):
    found = of_module(Stack(block))
    self.assertEqual(found.layers, ('h_0/1', 'h_1/1', 'h_2/1'))
    self.assertEqual(found[-1].name, 'logits')

  def test_a_compute_dtype_changes_no_order(self):
    def apply(params, x):
      found = {}
      for i in range(11):
        x = found[f'h{i}'] = jnp.tanh(x @ params)
      return x @ params, found

    model = adapters.from_fn(apply, EYE)
    model = adapters.with_compute_dtype(model, jnp.bfloat16)
    found = taps.taps(model, X)
    self.assertEqual(found.layers, tuple(f'h{i}' for i in range(11)))

  def test_siblings_of_other_shapes_are_of_the_run(self):
    def apply(params, x):
      found = {}
      for i, width in enumerate((4, 4, 8, 8, 8)):
        x = found[f'block_{i}'] = x[..., :4] @ params[:4, :width]
      return x @ params, found

    found = taps.taps(adapters.from_fn(apply, EYE), X)
    self.assertLen(found.layers, 5)

  def test_a_sequence_is_a_layer_and_its_carry_is_none(self):
    class Recurrent(nn.Module):
      @nn.compact
      def __call__(self, x):
        rnn = nn.RNN(nn.LSTMCell(8), return_carry=True, name='rnn')
        return nn.Dense(3)(rnn(x[:, :, None])[1])

    self.assertEqual(of_module(Recurrent()).layers, ('rnn/1',))

  def test_one_block(self):
    class One(nn.Module):
      @nn.compact
      def __call__(self, x):
        x = nn.Dense(8, name='embed')(x)
        x = Block(name='layer_0')(x)[1]
        return nn.Dense(3, name='head')(nn.LayerNorm(name='norm')(x))

    self.assertEqual(of_module(One()).layers, ('layer_0/1',))


if __name__ == '__main__':
  absltest.main()
