"""Calls of all public functions that work, for tests of bad arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from safetensors import numpy

from argument_examples import BATCH
from argument_examples import DECODER
from argument_examples import ENCODER
from argument_examples import FOLDER
from argument_examples import GRAMMAR
from argument_examples import INIT
from argument_examples import KEY
from argument_examples import LINEN
from argument_examples import MANY
from argument_examples import MASK
from argument_examples import MATRICES
from argument_examples import NNX
from argument_examples import PLAN
from argument_examples import PLANNED
from argument_examples import SIZES
from argument_examples import STAGE
from argument_examples import STATE
from argument_examples import STATES
from argument_examples import STUDENT
from argument_examples import TARGETS
from argument_examples import TEACHER
from argument_examples import TOKENS
from argument_examples import TRAINED
from argument_examples import TX
from argument_examples import VARIABLES
from argument_examples import WEIGHTS
from argument_examples import X
from argument_examples import Y
from argument_examples import apply
from argument_examples import parameters
from argument_examples import stop_here
from argument_examples import up_to_training
import bad_values
import cxjax
from cxjax.interop import huggingface
from cxjax.methods import relational
from cxjax.models import base as model_base
from cxjax.tasks import base as task_base
from cxjax.training import metrics

Case = bad_values.Case
REGISTRIES = (
  huggingface.FAMILIES,
  metrics.METRICS,
  model_base.MODELS,
  task_base.TASKS,
)


def tensors(name):
  """The tensors of a folder."""
  return dict(numpy.load_file(FOLDER / name / 'model.safetensors'))


def shapes_of(module, x=X):
  """Shapes of the parameters of a module."""
  return jax.eval_shape(module.init, KEY, x)


def pairs(*names, other='teacher'):
  """Cases of losses of two arrays."""
  return {
    name: Case(getattr(cxjax, name), {'student': X, other: X}) for name in names
  }


HIDDEN = 'projection regressor width norm scale centered tokens pool'
EXAMPLE = dict(teacher=TEACHER, student=STUDENT, x=X, num_steps=4)
BERT = huggingface.FAMILIES['bert']
FIELDS = {name: getattr(BERT, name) for name in BERT.__dataclass_fields__}
API = {
  'plan': Case(
    cxjax.plan,
    EXAMPLE,
    options=f'alpha top_k freeze hidden_loss ending {HIDDEN}',
  ),
  'distill': Case(
    cxjax.distill,
    dict(plan=PLAN, batches=[X], held_out=X, log_every=2),
    texts='workdir',  # A folder of any name.
    own='on_record',
    some=1,
    stride=3,
  ),
  'compare': Case(
    up_to_training(cxjax.compare),
    dict(
      teacher=TEACHER,
      student=STUDENT,
      batches=[(X, Y)],
      held_out=(X, Y),
      num_steps=8,
      methods='one_shot',
      rates=(0.1,),
      seeds=1,
      costs='counted',
      report=stop_here,
    ),
    options='last_batch microbatches mesh trainable',
    own='report',
    some=1,
    stride=4,
  ),
  'every': Case(cxjax.every, dict(step=2)),
  'taps': Case(cxjax.taps, dict(model=STUDENT, x=X)),
  'generate': Case(
    cxjax.generate,
    dict(model=DECODER, params=WEIGHTS, tokens=TOKENS, num_tokens=1),
  ),
  'shrink': Case(
    cxjax.shrink,
    dict(teacher=(DECODER, WEIGHTS), batches=[TOKENS], depth=1),
  ),
  'export': Case(cxjax.export, dict(fun=jnp.tanh, x=X)),
  'evaluate': Case(
    cxjax.evaluate, dict(params=STUDENT.params, batch=BATCH, apply=apply)
  ),
  'agreement': Case(
    cxjax.agreement,
    dict(
      params=STUDENT.params,
      teacher_params=TEACHER.params,
      batch=BATCH,
      apply=apply,
      teacher=apply,
    ),
  ),
}
API['advise'] = Case(up_to_training(cxjax.advise), API['compare'].given, some=1)


def adapted(model):
  """The layers of a model, for which it runs."""
  cxjax.taps(model, X)


MODELS = {
  'from_fn': Case(
    cxjax.from_fn, dict(apply=apply, params=parameters(2)), adapted
  ),
  'from_linen': Case(
    cxjax.from_linen, dict(module=LINEN, variables=VARIABLES), adapted
  ),
  'from_nnx': Case(cxjax.from_nnx, dict(model=NNX), adapted),
  'ModelAdapter': Case(
    cxjax.ModelAdapter, dict(apply=apply, params=parameters(2)), adapted
  ),
  'Abilities': Case(cxjax.Abilities, {}),
  'with_compute_dtype': Case(
    cxjax.with_compute_dtype, dict(model=STUDENT, dtype=jnp.bfloat16), adapted
  ),
  'MLP': Case(cxjax.MLP, dict(widths=(4,), num_classes=2), shapes_of),
  'Transformer': Case(
    cxjax.Transformer,
    dict(**SIZES, causal=True),
    lambda module: shapes_of(module, TOKENS),
  ),
  'Decoder': Case(
    cxjax.Decoder,
    dict(**SIZES, mlp_width=4),
    lambda module: shapes_of(module, TOKENS),
  ),
  'Rotary': Case(
    cxjax.Rotary,
    {},
    lambda rotary: shapes_of(DECODER.clone(rotary=rotary), TOKENS),
  ),
  'SentenceEncoder': Case(
    cxjax.SentenceEncoder, dict(encoder=ENCODER), lambda m: shapes_of(m, TOKENS)
  ),
  'models.base.register': Case(
    model_base.register, dict(name='mine', build=lambda block, task: LINEN)
  ),
  'models.base.make': Case(
    model_base.make,
    dict(
      name='mlp',
      block=ml_collections.ConfigDict(dict(width=2, depth=1)),
      task=task_base.make('parity', GRAMMAR, KEY),
    ),
  ),
  'models.base.require': Case(
    model_base.require,
    dict(model=DECODER, ability='inputs', purpose='text'),
  ),
}
STAGES = {
  'Term': Case(cxjax.Term, dict(student='h', target='h')),
  'Stage': Case(cxjax.Stage, dict(name='a', steps=2, terms=(cxjax.Term(),))),
  'match_layers': Case(
    cxjax.match_layers, dict(teacher=('a', 'b'), student=('c',))
  ),
  'split_steps': Case(
    cxjax.split_steps, dict(num_steps=10, parts=1, share=0.5)
  ),
  'weight_schedule': Case(cxjax.weight_schedule, {}),
  'supervised': Case(cxjax.supervised, dict(num_steps=3)),
  'one_shot': Case(cxjax.one_shot, dict(num_steps=3)),
  'one_shot_labels': Case(cxjax.one_shot_labels, dict(steps=(1, 2))),
  'extracted': Case(
    cxjax.extracted, dict(layers=[('h', 'h')], steps=(1, 2)), options=HIDDEN
  ),
  'joint': Case(
    cxjax.joint, dict(layers=[('h', 'h')], num_steps=2), options=HIDDEN
  ),
  'with_checkpoints': Case(
    cxjax.with_checkpoints,
    dict(
      teacher=cxjax.from_fn(apply, parameters(2)),
      checkpoints={5: cxjax.from_fn(apply, parameters(2))},
    ),
  ),
  'progressive': Case(
    cxjax.progressive, dict(checkpoints=(1, None), steps=(1, 2))
  ),
}
LOSSES = {
  **pairs('kl', 'reverse_kl', 'jensen_shannon', 'hard_kl', 'mse'),
  **pairs('l2', 'cosine', other='target'),
  'cross_entropy': Case(cxjax.cross_entropy, dict(student=X, labels=Y)),
  'top_k': Case(cxjax.top_k, dict(logits=X, k=2)),
  'top_k_kl': Case(cxjax.top_k_kl, dict(student=X, teacher=cxjax.top_k(X, 2))),
  **{
    f'methods.relational.{name}': Case(
      getattr(relational, name), dict(student=X, target=X)
    )
    for name in ('gram', 'cka')
  },
  'methods.relational.attention': Case(
    relational.attention, dict(student=X[None], target=X[None])
  ),
  'random_projection': Case(
    cxjax.random_projection, dict(key=KEY, projection='gaussian', shape=(3, 2))
  ),
  'fit_projection': Case(
    cxjax.fit_projection,
    dict(projection='pca', target=X, width=2),
  ),
  'project': Case(cxjax.project, dict(x=X, matrix=np.ones((3, 2), np.float32))),
  'Metric': Case(cxjax.Metric, dict(statistics=lambda a, b: a[..., 0])),
  'metrics.register': Case(
    cxjax.metrics.register,
    dict(name='mine', metric=cxjax.Metric(lambda a, b: a[..., 0])),
  ),
  'metrics.resolve': Case(cxjax.metrics.resolve, dict(metrics='accuracy')),
}
STEPS = {
  'activation': Case(
    cxjax.activation, dict(apply=apply, params=STUDENT.params, x=X, name='h')
  ),
  'make_targets': Case(
    cxjax.make_targets,
    dict(
      apply=apply,
      params=TEACHER.params,
      matrices=MATRICES,
      batch=BATCH,
      stage=STAGE,
    ),
  ),
  'trainable_mask': Case(
    cxjax.trainable_mask,
    dict(apply=apply, params=STUDENT.params, x=X, stage=STAGE),
  ),
  'plan_stage': Case(
    cxjax.plan_stage,
    dict(
      stage=STAGE,
      batch=BATCH,
      student=apply,
      student_params=STUDENT.params,
      teacher=apply,
      teacher_params=TEACHER.params,
    ),
  ),
  'with_costs': Case(
    cxjax.with_costs,
    dict(
      planned=PLANNED,
      batch=BATCH,
      tx=TX,
      student=apply,
      student_params=STUDENT.params,
      teacher=apply,
      teacher_params=TEACHER.params,
      flops=lambda *args: 1.0,
    ),
  ),
  'format_plan': Case(cxjax.format_plan, dict(stages=[PLANNED])),
  'init_stage': Case(
    cxjax.init_stage, dict(key=KEY, params=STUDENT.params, **INIT)
  ),
  'train_step': Case(
    cxjax.train_step,
    dict(
      state=STATE,
      batch=BATCH,
      targets=TARGETS,
      apply=apply,
      stage=STAGE,
      tx=TX,
      mask=MASK,
    ),
  ),
  'train_many_steps': Case(
    cxjax.train_many_steps,
    dict(
      states=STATES,
      start=jnp.int32(0),
      stop=jnp.int32(2),
      teacher_params=TEACHER.params,
      matrices=MANY,
      keys=KEY[None],
      draw=lambda key, step, rows: BATCH,
      student=apply,
      teacher=apply,
      stage=STAGE,
      tx=TX,
      mask=MASK,
      lookahead=1,
      by_example=True,
    ),
  ),
}
ANALYSIS = {
  'cka': Case(cxjax.cka, dict(x=X, y=X)),
  'linear_probe': Case(
    cxjax.linear_probe, dict(features=X, labels=Y, num_classes=2)
  ),
  'degree_one': Case(
    cxjax.degree_one,
    dict(
      features=lambda x: x,
      batch_fn=lambda key, step: BATCH,
      key=KEY,
      num_batches=1,
    ),
  ),
  'ngram_distance': Case(
    cxjax.ngram_distance,
    dict(
      apply=lambda params, x: (jnp.zeros((1, 1, 5)), {}),
      params={},
      tokens=TOKENS,
      mask=TOKENS > 0,
      position=1,
      n=1,
      mask_id=0,
    ),
  ),
}
FOLDERS = {
  'tasks.make': Case(
    cxjax.tasks.make, dict(name='parity', data=GRAMMAR, key=KEY)
  ),
  'tasks.make_abstract': Case(
    cxjax.tasks.make_abstract, dict(name='parity', data=GRAMMAR, key=KEY)
  ),
  'tasks.register': Case(
    cxjax.tasks.register, dict(name='mine', make=lambda data, key: None)
  ),
  'huggingface.Family': Case(huggingface.Family, FIELDS),
  'huggingface.Parameter': Case(
    huggingface.Parameter, dict(path='a', tensor='b')
  ),
  'huggingface.register': Case(
    huggingface.register,
    dict(family=dataclasses.replace(BERT, model_type='mine')),
  ),
  'huggingface.read': Case(huggingface.read, dict(folder=FOLDER / 'bert')),
  'huggingface.tokenizer': Case(
    huggingface.tokenizer, dict(folder=FOLDER / 'words')
  ),
  'huggingface.shared_vocabulary': Case(
    huggingface.shared_vocabulary,
    dict(teacher=FOLDER / 'words', student=FOLDER / 'words'),
  ),
  'huggingface.from_bert': Case(
    huggingface.from_bert, dict(tensors=tensors('bert'), depth=1)
  ),
  'huggingface.from_gpt2': Case(
    huggingface.from_gpt2, dict(tensors=tensors('gpt2'), depth=1)
  ),
  'huggingface.write': Case(
    huggingface.write,
    dict(folder=FOLDER / 'new', module=ENCODER, variables=TRAINED),
    texts='folder',
  ),
}
CASES = {**API, **MODELS, **STAGES, **LOSSES, **STEPS, **ANALYSIS, **FOLDERS}
