"""The measurements of one model, of this version or of an earlier one."""

import time
from typing import Any

import cxjax
from cxjax import errors
from experiments.benchmarks import machine
from experiments.real_models import base

STEPS = 20
SHOWN = 120  # Characters of a message.
COLUMNS = ('verdict', 'layers', 'plan CPU s', '20 steps CPU s', 'peak MB')


def measured(name: str, cases: base.Cases) -> dict[str, Any]:
  """Distills one model.

  Args:
    name: name of the model.
    cases: all models.

  Returns:
    Its row of the table. The verdict of what cannot be done is the start of
    the message.
  """
  row: dict[str, Any] = {'model': name, **dict.fromkeys(COLUMNS)}
  try:
    _measure(row, cases[name]())
  except errors.UserError as error:
    row['verdict'] = str(error)[:SHOWN]
  except Exception as error:  # A fault, which the table is to show.
    text = (str(error).splitlines() or [''])[0]
    row['verdict'] = f'fails: {type(error).__name__}: {text}'[:SHOWN]
  row['peak MB'] = round(machine.peak())
  return row


def _measure(row: dict[str, Any], case: base.Case) -> None:
  start = time.process_time()
  plan = base.make_plan(case, STEPS)
  row['plan CPU s'] = round(time.process_time() - start, 1)
  row['layers'] = ', '.join(f'{a} > {b}' for a, b in base.matched(plan))
  start = time.process_time()
  _, records = cxjax.distill(
    plan, [case.x] * STEPS, learning_rate=0.01, **case.distill
  )
  row['20 steps CPU s'] = round(time.process_time() - start, 1)
  losses = [record['eval/loss'][0] for record in records]
  right = base.matched(plan) == case.pairs
  learns = losses[-1] < losses[0]
  row['verdict'] = ', '.join(
    (
      'right layers' if right else 'wrong layers',
      'learns' if learns else 'does not learn',
    )
  )
