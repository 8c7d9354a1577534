r"""Answers of the teacher and the students of a run to the same prompts.

Run, in the workdir of a run of causal_text:
  python -m experiments.generate --workdir=runs/causal
  python -m experiments.generate --workdir=runs/causal --prompt='Returns the' \
    --temperature=0.8 --top_p=0.9

Without --prompt, held-out documents are continued. Every network is that of the
first seed, and the text ends where the network ends the document.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import TypeAlias

from absl import flags
from absl import logging
import jax
import ml_collections
import numpy as np

import cxjax
from cxjax import errors
from cxjax import types
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.configs import experiment
from cxjax.configs import functions
from cxjax.configs import teachers
from cxjax.data import encoding
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.methods import registry
from cxjax.tasks import causal_text
from experiments import base
from experiments import paths

_PROMPTS = flags.DEFINE_multi_string(
  'prompt', [], 'Text to continue; may be given several times.'
)
_TOKENS = flags.DEFINE_integer('num_tokens', 32, 'Tokens of an answer.', 1)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.0, 'Divisor of the logits; 0 takes the likeliest token.', 0.0
)
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Total probability of the tokens to draw from.', 0.0, 1.0
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the sampling.', 0, 2**32 - 1)

DOCUMENTS = 3  # Number of held-out documents that are continued.
SHARE = 4  # A document's prompt fills one part of so many of the positions.
# Name, model and parameters of a network.
Network: TypeAlias = tuple[str, Any, types.Params]


def opened(
  workdir: pathlib.Path,
) -> tuple[builders.Experiment, list[str]]:
  """Opens the experiment of a workdir, and lists its finished runs.

  Args:
    workdir: folder of the runs.

  Returns:
    The experiment, and the names of its runs: 'teacher' and methods.

  Raises:
    UserError: no run is finished, or the experiment predicts no next token.
  """
  finished = lambda folder: (folder / 'summary.json').exists()
  found = [name for name in registry.METHODS if finished(workdir / name)]
  errors.require(
    bool(found) or finished(workdir / 'teacher'),
    f'{workdir} holds no finished run. Run launch.py on it first, as with '
    '--config=experiments/causal_text.py.',
  )
  config = start_config()
  if found:
    config.update(functions.saved_config(workdir / found[-1]))
  else:
    config, _ = experiment.load(config, workdir)
  known = builders.open_experiment(config, workdir)
  errors.require(
    isinstance(known.task, causal_text.CausalText),
    f'{workdir} is a run of the task {config.task!r}, which predicts no next '
    'token. Give one of experiments/causal_text.py.',
  )
  # It may lie in another workdir, or come from Hugging Face.
  folder = teachers.teacher_folder(known.config, workdir)
  if known.pretrained is not None or finished(folder):
    found.insert(0, 'teacher')
  elif known.config.teacher.folder:
    logging.warning('No teacher in %s: its answers are left out.', folder)
  return known, found


def start_config() -> ml_collections.ConfigDict:
  """Returns a config with the fields that a saved one may lack."""
  return base.get_config('extracted')


def networks(
  known: builders.Experiment, names: Sequence[str], workdir: pathlib.Path
) -> Iterator[Network]:
  """Yields the networks of the runs of a workdir.

  Args:
    known: the experiment.
    names: its runs.
    workdir: folder of the runs.

  Yields:
    Name, model and parameters of each.
  """
  for name in names:
    if name == 'teacher':
      teacher = teachers.train_teacher(known, workdir)  # It is finished.
      yield name, known.model('teacher'), teacher.params
    else:
      model, params = experiment.load_students(start_config(), workdir, name)
      yield name, model, jax.tree.map(lambda leaf: leaf[0], params)


def prompts_of(task: causal_text.CausalText) -> list[np.ndarray]:
  """Returns the ids of held-out documents: their prompts, or beginnings."""
  assert task.corpus is not None
  found = []
  for i in range(min(DOCUMENTS, len(task.corpus.held_out))):
    document = task.corpus.held_out[i]
    prompt = document['tokens'][document['counted'] == 0]
    if not prompt.size:
      prompt = document['tokens'][: max(task.length // SHARE, 1)]
    found.append(prompt)
  return found


def padded(
  task: causal_text.CausalText, found: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Pads prompts on the left.

  Args:
    task: the task.
    found: ids of each prompt.

  Returns:
    `[N, L]` ids, each behind the token that begins a text, and `[N, L]` bool,
    the real ones.
  """
  length = 1 + max(map(len, found))
  tokens = np.zeros((len(found), length), np.int32)
  mask = np.zeros((len(found), length), bool)
  for i, ids in enumerate(found):
    tokens[i, -1 - len(ids) :] = [task.cls_id, *ids]
    mask[i, -1 - len(ids) :] = True
  return tokens, mask


def answers(
  task: causal_text.CausalText,
  network: Network,
  prompts: Sequence[np.ndarray],
) -> list[str]:
  """Returns what a network says to the ids of some prompts."""
  _, model, params = network
  tokens, mask = padded(task, prompts)
  assert task.corpus is not None
  found = cxjax.generate(
    model,
    params,
    tokens,
    _TOKENS.value,
    mask=mask,
    key=jax.random.key(_SEED.value),
    temperature=_TEMPERATURE.value,
    top_p=_TOP_P.value,
    end=task.end_id,
    # Further rows of the models are padding, which no text has trained.
    vocab=tokenizer_lib.num_ids(task.corpus.tokenizer, task.vocab_size),
  )
  texts = []
  for row in np.asarray(found).tolist():
    end = row.index(task.end_id) if task.end_id in row else len(row)
    texts.append(task.corpus.tokenizer.decode(row[:end]))
  return texts


def main(argv: list[str]) -> None:
  """Prints every prompt, and what each network says to it."""
  del argv
  paths.require_unset('results')
  workdir = paths.workdir()
  known, names = opened(workdir)
  task = known.task
  assert isinstance(task, causal_text.CausalText)
  for prompt in _PROMPTS.value or ():
    errors.require(
      bool(prompt.strip()), "--prompt='' is empty. Give a text to continue."
    )
    errors.require(
      prompt.encode(errors='ignore').decode() == prompt,
      f'--prompt={ascii(prompt)} is no text in UTF-8. Convert it.',
    )
  assert task.corpus is not None
  tokenizer = task.corpus.tokenizer
  if _PROMPTS.value:
    prompts = encoding.ids(_PROMPTS.value, tokenizer)
  else:
    prompts = prompts_of(task)
  said = {
    network[0]: answers(task, network, prompts)
    for network in networks(known, names, workdir)
  }
  width = max(map(len, said))
  for i, prompt in enumerate(prompts):
    print(f'> {tokenizer.decode(prompt.tolist())}')
    for name, texts in said.items():
      print(f'{name:{width}} | {" ".join(texts[i].split())}')
    print()


if __name__ == '__main__':
  cli.run(main)
