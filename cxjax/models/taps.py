"""Taps: the activations of a model, their order, costs and layers.

Found from the jaxpr of the model, without running it.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import deprecation
from cxjax import tables
from cxjax import types
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import dataflow
from cxjax.models import layers as layers_lib
from cxjax.models import modes
from cxjax.models import outputs as outputs_lib
from cxjax.models import repeated_blocks
from cxjax.models import scanned


@dataclasses.dataclass(frozen=True)
class Tap:
  """An activation, and what it costs to compute.

  Attributes:
    name: its path.
    shape: `[B, ..., D]`.
    dtype: dtype of its values.
    flops: FLOPs to compute it for one batch, as XLA counts them before it
      optimizes; those of a scan times its length.
    layer: whether it is one of the layers that `plan` matches by default.
    run: pattern of the run of layers that it belongs to, as 'blocks/*'; '' if
      it belongs to none.
    inputs: names of the entries of the input that it reads; '' is an array that
      has no name.
  """

  name: str
  shape: tuple[int, ...]
  dtype: jnp.dtype
  flops: float
  layer: bool
  run: str = ''
  inputs: tuple[str, ...] = ()


class Taps(tables.Printed, tuple[Tap, ...]):
  """The activations of a model in the order of computation; prints as a table.

  The last one is the output.

  Attributes:
    candidates: those that may be layers.
  """

  candidates: tuple[layers_lib.Activation, ...] = ()

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the layers, lowest first."""
    return tuple(tap.name for tap in self if tap.layer)

  @property
  def runs(self) -> layers_lib.Runs:
    """The layers by the pattern of their run; '' if they are found by depth."""
    return self._runs(True)

  @property
  def other_runs(self) -> layers_lib.Runs:
    """Runs of fewer than half as many layers, which `plan` leaves out."""
    return self._runs(False)

  def _runs(self, layer: bool) -> layers_lib.Runs:
    found: dict[str, tuple[str, ...]] = {}
    for tap in self:
      if tap.layer == layer and (layer or tap.run):
        found[tap.run] = (*found.get(tap.run, ()), tap.name)
    return found

  def markdown(self) -> str:
    """Returns a table with a line for each activation."""
    return tables.markdown(
      {
        'activation': tap.name,
        'shape': ' x '.join(map(str, tap.shape)),
        'dtype': str(tap.dtype),
        'FLOPs up to it': int(tap.flops),
        'layer': 'yes' if tap.layer else None,
      }
      for tap in self
    )


@deprecation.renamed_arguments(network='model')
def taps(model: adapters.ModelAdapter, x: types.Input) -> Taps:
  """Lists every activation of a model, without running the model.

  The layers are the longest run of numbered siblings, as 'blocks/0',
  'blocks/1', ..., at least two of equal shape in a row, each computed from the
  one before. A block that returns several arrays stands for the one that the
  next block reads. Runs at least half as long, as those of an encoder and a
  decoder, are layers too.

  Without such a run the layers are the ends of the blocks that repeat among the
  activations with the shortest paths, as norm, attention, norm, dense, dense.
  If none repeat, all of these activations are layers, unless there is only one.
  In both cases a layer ends before the next matrix product or convolution, and
  where its shape changes: a convolution and its norm are one layer, embeddings
  and the mean of a sequence are none.

  A scan over parameters is a run of layers, named by the parameters and the
  step, as 'blocks/0'; to compute one, no layer above it runs.

  The output is no layer. Nor is an activation from which the output is computed
  value by value, as by a cast or a soft cap.

  Args:
    model: a model of `from_linen`, `from_nnx` or `from_fn`.
    x: a batch, or its shapes.

  Returns:
    The activations, lowest first; the output is 'logits'.

  Raises:
    UserError: the model does not run on the batch.
  """
  adapters.outputs(model, x)
  model = scanned.with_layers(
    dataclasses.replace(model, apply=modes.traced_once(model.apply))
  )

  def apply(params: types.Params, x: types.Input) -> Any:
    found = targets_lib.forward(model.apply, params, x)
    return found.pop(stage_lib.LOGITS), found

  closed, (output, found) = jax.make_jaxpr(apply, return_shape=True)(
    *jax.eval_shape(lambda tree: tree, (model.one, x))
  )
  flow = dataflow.Dataflow(closed)
  # The output has the empty name here. JAX sorts the keys of a dict.
  shapes = {'': output, **{name: found[name] for name in sorted(found)}}
  values = dict(zip(shapes, flow.outputs, strict=True))
  # An activation that is the output is listed once.
  same = lambda name: (
    flow.source(values[name], forms=False)
    == flow.source(values[''], forms=False)
    and shapes[name].dtype == output.dtype
    and flow.position(values['']) >= (0, 0)
  )
  order = sorted(
    (name for name in found if not same(name)),
    key=lambda name: (*_positions(flow, values[name]), name),
  )
  first = len(jax.tree.leaves(model.one))
  entries = {
    first + i: jax.tree_util.keystr(path, simple=True, separator='/')
    for i, (path, _) in enumerate(jax.tree.leaves_with_path(x))
  }
  read = {name: flow.read(values[name], entries) for name in shapes}
  candidates = _candidates(
    flow, {n: values[n] for n in order if read[n]}, values[''], shapes
  )
  chosen, others = _chosen(candidates, x)
  run = {
    name: pattern
    for runs in (chosen, others)
    for pattern, names in runs.items()
    for name in names
  }
  layers = {name for names in chosen.values() for name in names}
  made = Taps(
    Tap(
      name or stage_lib.LOGITS,
      shapes[name].shape,
      shapes[name].dtype,
      flow.flops(values[name]),
      name in layers,
      run.get(name, ''),
      read[name],
    )
    for name in [*order, '']
  )
  made.candidates = tuple(candidates)
  return made


def _chosen(
  candidates: Sequence[layers_lib.Activation], x: types.Input
) -> tuple[layers_lib.Runs, layers_lib.Runs]:
  """The layers, and the runs that are left out."""
  chosen, others = layers_lib.find(candidates)
  if '' not in chosen:
    return chosen, others
  if blocks := repeated_blocks.find(candidates):
    return {blocks.label: blocks.layers}, others
  return layers_lib.find(_of_batch(candidates, x), norms=True)


def _of_batch(
  activations: Sequence[layers_lib.Activation], x: types.Input
) -> Sequence[layers_lib.Activation]:
  """Those whose first axis may be the batch; all, if none has it."""
  sizes = {leaf.shape[0] for leaf in jax.tree.leaves(x) if leaf.shape}
  found = [a for a in activations if a.shape[0] in sizes]
  return found if any(a.products for a in found) else activations


def stacked(model: adapters.ModelAdapter, x: types.Input) -> dict[str, int]:
  """Activations of a scan, whose first axis is its steps and not the batch.

  Args:
    model: a model that runs on the batch.
    x: a batch, or its shapes.

  Returns:
    Number of steps by name.
  """
  shapes = jax.eval_shape(lambda tree: tree, (model.one, x))
  closed, found = jax.make_jaxpr(
    functools.partial(targets_lib.forward, model.apply), return_shape=True
  )(*shapes)
  flow = dataflow.Dataflow(closed)
  return {
    name: found[name].shape[0]
    for name, value in zip(sorted(found), flow.outputs, strict=True)
    if flow.stacked(value)
  }


def _positions(
  flow: dataflow.Dataflow, value: dataflow.Value | None
) -> tuple[tuple[int, int], tuple[int, int]]:
  """When the source of a value is computed, and when the value is."""
  return flow.position(flow.source(value)), flow.position(value)


def _candidates(
  flow: dataflow.Dataflow,
  values: dict[str, dataflow.Value | None],
  output: dataflow.Value | None,
  shapes: dict[str, Any],
) -> list[layers_lib.Activation]:
  """The activations that may be layers.

  Args:
    flow: the dataflow of the model.
    values: the activations in the order of computation.
    output: the output of the model.
    shapes: shapes of the activations; that of the output has the name ''.

  Returns:
    Those that the output needs, if it needs any, without those that are the
    output in another form, and those whose first axis is that of a scan.
  """
  marks = outputs_lib.OUTPUT, outputs_lib.AUXILIARY
  named = {
    '': output,
    **{n: v for n, v in values.items() if n.startswith(marks)},
  }
  outputs = {name: value for name, value in named.items() if value is not None}
  ends = {flow.source(value) for name, value in outputs.items() if name}
  needed = 0
  for value in outputs.values():
    needed |= flow.ancestors[value[0]]
  products = [
    (i, flow.ancestors[i])
    for i in range(len(flow.nodes))
    if (flow.products & needed) >> i & 1
  ]
  read = {
    operand
    for i, node in enumerate(flow.nodes)
    if needed >> i & 1
    for operand in node.operands
  }
  found: list[layers_lib.Activation] = []
  others: list[layers_lib.Activation] = []
  for name, value in values.items():
    source = flow.source(value)
    if source is None or name in stage_lib.TARGET_POSITION_ACTIVATIONS:
      continue
    if name.startswith(marks):
      continue
    number, ancestors = source[0], flow.ancestors[source[0]]
    reach = sum(i != number and above >> number & 1 for i, above in products)
    made = {
      other
      for other, end in outputs.items()
      if shapes[name].size == shapes[other].size
      and flow.determines(source, end)
    }
    # A layer may be returned as another output too.
    if flow.stacked(value) or '' in made or (made and not reach):
      continue
    if source in ends and not reach:
      continue  # It is another output.
    into = found if source in read or source == output else others
    into.append(
      layers_lib.Activation(
        name,
        shapes[name].shape,
        flow.position(source),
        1 << number,
        ancestors,
        (ancestors & flow.products).bit_count(),
        reach,
      )
    )
  return found or others
