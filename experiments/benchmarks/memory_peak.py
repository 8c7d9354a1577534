r"""Peak memory of one-shot distillation, against plain JAX written by hand.

Run, on Linux, some minutes:
  python -m experiments.benchmarks.memory_peak

A language model of 120 million parameters teaches one of 26 million; the
vocabulary has 50,257 tokens, and a batch has 4 texts of 128 tokens: one array
of logits takes 103 MB. Every row is measured in a process of its own, which
prints its bytes: what XLA plans for the program of the steps (arguments,
temporaries and output), and the peak of the process in training, beyond what it
had before the models were made. A plan keeps the student's start, as the second
loop by hand does. Writes memory_peak.{md,csv} into --out.
"""

from collections.abc import Iterator
import functools
import json
import pathlib
import subprocess
import sys
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

import cxjax
from cxjax import tables
from cxjax.configs import cli
from cxjax.training import compiled_steps
from experiments.benchmarks import memory
from experiments.benchmarks import rounds

HAND, KEPT = 'by hand', 'by hand, the start kept'
OURS, HELD_OUT = 'distill', 'distill, 256 held-out texts'
_WAY = flags.DEFINE_string('way', '', 'One of the rows; all without it.')
_STEPS = flags.DEFINE_integer('steps', 3, 'Number of steps.')
VOCABULARY, LENGTH, BATCH, EXAMPLES = 50_257, 128, 4, 256
TEACHER = dict(width=768, heads=12, depth=12)
STUDENT = dict(width=384, heads=6, depth=4)


def model(**sizes: int) -> tuple[cxjax.Transformer, Any]:
  """A decoder with a tied head, and fresh parameters."""
  module = cxjax.Transformer(
    vocab_size=VOCABULARY,
    num_classes=VOCABULARY,
    max_length=LENGTH,
    causal=True,
    tied=True,
    **sizes,
  )
  tokens = jnp.zeros((1, LENGTH), jnp.int32)
  return module, jax.jit(module.init)(jax.random.key(0), tokens)


def texts(rows: int, seed: int) -> np.ndarray:
  """Random token ids, `[rows, LENGTH]`."""
  random = np.random.default_rng(seed)
  return random.integers(0, VOCABULARY, (rows, LENGTH), np.int32)


def by_hand(teacher: Any, student: Any, steps: int, kept: bool) -> int:
  """Trains in plain JAX; returns the bytes of its program."""
  (theirs, frozen), (ours, params) = teacher, student
  tx = optax.adam(1e-3)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params: Any, state: Any, frozen: Any, x: jax.Array) -> Any:
    target = theirs.apply(frozen, x)[0]

    def loss(params: Any) -> jax.Array:
      return jnp.mean(cxjax.kl(ours.apply(params, x)[0], target))

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  if kept:
    params = jax.tree.map(jnp.copy, params)
  state = jax.jit(tx.init)(params)
  args = (params, state)
  del params, student
  compiled = step.lower(*args, frozen, texts(BATCH, 0)).compile()
  for i in range(steps):
    *args, value = compiled(*args, frozen, jnp.asarray(texts(BATCH, i)))
  jax.block_until_ready(value)
  return memory.program(compiled)


def by_distill(teacher: Any, student: Any, steps: int, held_out: int) -> int:
  """Trains with `distill`; returns the bytes of its program."""
  (theirs, frozen), (ours, params) = teacher, student
  plan = cxjax.plan(
    cxjax.from_fn(theirs.apply, frozen),
    cxjax.from_fn(ours.apply, params),
    texts(BATCH, 0),
    num_steps=steps,
    layers=(),
  )
  sizes = []
  original = compiled_steps.CompiledSteps.compile_train_many_steps

  def compile_train_many_steps(*args: Any) -> jax.stages.Compiled:
    compiled = original(*args)
    sizes.append(memory.program(compiled))
    return compiled

  compiled_steps.CompiledSteps.compile_train_many_steps = (
    compile_train_many_steps  # type: ignore[method-assign]
  )
  del params, student  # As they are in the plan.
  cxjax.distill(
    plan,
    [texts(BATCH, i) for i in range(steps)],
    held_out=texts(held_out, steps) if held_out else None,
    log_every=1,
    eval_every=steps,
  )
  return max(sizes)


def measure(way: str, steps: int) -> dict[str, Any]:
  """Runs one row in this process."""
  jnp.zeros(1).block_until_ready()
  before = memory.resident('VmRSS')
  teacher, student = model(**TEACHER), model(**STUDENT)
  jax.block_until_ready((teacher[1], student[1]))
  (memory.PROCESS / 'clear_refs').write_text('5', 'utf-8')  # Resets the peak.
  if way in (HAND, KEPT):
    planned = by_hand(teacher, student, steps, way == KEPT)
  else:
    held_out = EXAMPLES if way == HELD_OUT else 0
    planned = by_distill(teacher, student, steps, held_out)
  return {
    'run': way,
    'program, MB': planned / 1e6,
    'peak of the process, MB': (memory.resident('VmHWM') - before) / 1e6,
  }


def rows(steps: int) -> Iterator[dict[str, Any]]:
  """Yields the rows, each from a process of its own."""
  module = 'experiments.benchmarks.memory_peak'
  for way in (HAND, KEPT, OURS, HELD_OUT):
    command = [sys.executable, '-m', module, f'--way={way}', f'--steps={steps}']
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    yield json.loads(done.stdout.decode().splitlines()[-1])


def main(argv: list[str]) -> None:
  """Writes the table, or prints a row as JSON."""
  del argv
  if _WAY.value:
    print(json.dumps(measure(_WAY.value, _STEPS.value)))
  else:
    found = list(rows(_STEPS.value))
    path = pathlib.Path(rounds.OUT.value) / 'memory_peak'
    cli.write(path, tables.markdown(found), found)


if __name__ == '__main__':
  app.run(cli.guarded(main))
