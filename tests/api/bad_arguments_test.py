"""Bad values for every argument: each works, or is one line."""

import contextlib
import functools

from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bad_values
import cxjax

X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


def apply(params, x):
  h = jnp.tanh(x @ params['in'])
  return h @ params['out'], {'h': h}


def parameters(width):
  draw = np.random.default_rng(width).normal
  return {'in': draw(size=(3, width)), 'out': draw(size=(width, 2))}


def single(tree):
  return jax.tree.map(np.float32, tree)


TEACHER = cxjax.from_fn(apply, single(parameters(4)))
STUDENT = cxjax.from_fn(apply, single(parameters(2)))
plan = functools.partial(cxjax.plan, TEACHER, STUDENT, X, num_steps=4)
PLAN = plan()
LINEN = nn.Dense(2)
VARIABLES = jax.jit(LINEN.init)(jax.random.key(0), X)
NNX = nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def adapted(make, *args, **kwargs):
  return cxjax.taps(make(*args, **kwargs), X)


TERM = (
  'student target loss weight projection regressor width shared_projection '
  'norm centered scale tokens pool top_k name'
)
HIDDEN = 'projection regressor width norm hidden_loss freeze scale centered'
DISTILL = (
  'held_out optimizer learning_rate seed workdir save_every log_every '
  'eval_every metrics microbatches mesh trainable keep_best last_batch '
  'restart_schedule'
)
# A call that works, and the arguments that get other values.
CALLS = {
  'plan': (
    cxjax.plan,
    dict(teacher=TEACHER, student=STUDENT, x=X, num_steps=4),
    'teacher student x num_steps layers share steps loss temperature pool '
    f'dtype stages alpha top_k tokens {HIDDEN}',
  ),
  'distill': (
    cxjax.distill,
    dict(plan=PLAN, batches=[X], log_every=2),
    f'plan batches {DISTILL}',
  ),
  'Term': (cxjax.Term, dict(student='h', target='h'), TERM),
  'Stage': (
    cxjax.Stage,
    dict(name='a', steps=2, terms=(cxjax.Term(),)),
    'name steps terms frozen checkpoint',
  ),
  'from_fn': (
    functools.partial(adapted, cxjax.from_fn),
    dict(apply=apply, params=parameters(2)),
    'apply params partition_rules training',
  ),
  'from_linen': (
    functools.partial(adapted, cxjax.from_linen),
    dict(module=LINEN, variables=VARIABLES),
    'module variables output partition_rules training call',
  ),
  'from_nnx': (
    functools.partial(adapted, cxjax.from_nnx),
    dict(model=NNX),
    'model output partition_rules training call',
  ),
  'taps': (cxjax.taps, dict(model=STUDENT, x=X), 'model x'),
  'match_layers': (
    cxjax.match_layers,
    dict(teacher=('a', 'b'), student=('c',)),
    'teacher student',
  ),
  'split_steps': (
    cxjax.split_steps,
    dict(num_steps=10, parts=1, share=0.5),
    'num_steps parts share steps',
  ),
  'weight_schedule': (cxjax.weight_schedule, {}, 'schedule start end until'),
  'random_projection': (
    cxjax.random_projection,
    dict(key=jax.random.key(0), projection='gaussian', shape=(3, 2)),
    'key projection shape',
  ),
  'project': (
    cxjax.project,
    dict(x=X, matrix=np.ones((3, 2), np.float32)),
    'x matrix',
  ),
  'supervised': (cxjax.supervised, dict(num_steps=3), 'num_steps'),
  'one_shot': (cxjax.one_shot, dict(num_steps=3), 'num_steps loss alpha top_k'),
  'extracted': (
    cxjax.extracted,
    dict(layers=[('h', 'h')], steps=(1, 2)),
    f'layers steps loss alpha top_k checkpoint {HIDDEN}',
  ),
  'progressive': (
    cxjax.progressive,
    dict(checkpoints=(1, None), steps=(1, 2)),
    'checkpoints steps loss alpha top_k',
  ),
  'MLP': (
    lambda **kwargs: jax.eval_shape(
      cxjax.MLP(**kwargs).init, jax.random.key(0), X
    ),
    dict(widths=(4,), num_classes=2),
    'widths num_classes',
  ),
  'Transformer': (
    cxjax.Transformer,
    dict(
      vocab_size=5,
      max_length=4,
      num_classes=2,
      width=4,
      heads=2,
      depth=1,
      causal=True,
    ),
    'vocab_size max_length num_classes width heads depth causal mlp_width tied '
    'dtype remat init_std dropout norm_eps',
  ),
  'cka': (cxjax.cka, dict(x=X, y=X), 'x y'),
  'cross_entropy': (
    cxjax.cross_entropy,
    dict(student=X, labels=np.array([0, 1, 2, 0])),
    'student labels',
  ),
  **{
    name: (getattr(cxjax, name), {'student': X, other: X}, f'student {other}')
    for name, other in {
      'kl': 'teacher',
      'reverse_kl': 'teacher',
      'jensen_shannon': 'teacher',
      'hard_kl': 'teacher',
      'mse': 'teacher',
      'l2': 'target',
      'cosine': 'target',
    }.items()
  },
}
SOME = {'distill': 4}


@pytest.mark.slow
class ArgumentsTest(parameterized.TestCase):
  @parameterized.parameters(*CALLS)
  def test_every_argument(self, name):
    folder = self.create_tempdir().full_path
    self.enter_context(contextlib.chdir(folder))
    function, given, names = CALLS[name]
    function(**given)
    for place, argument in enumerate(names.split()):
      values = bad_values.tried_at(place, SOME.get(name, 8))
      for kind, value in values.items():
        if argument == 'workdir' and isinstance(value, str):
          continue  # A folder of any name works.
        with (
          self.subTest(f'{argument}={kind}'),
          bad_values.works_or_one_line(self, folder),
        ):
          function(**{**given, argument: value})
