"""The one registry of methods: from the block of a config to a curriculum.

A method is a function that returns stages. To add one, write such a function
and a line in `METHODS`: its options become a block of the configs, and its name
a value of `config.method`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from cxjax import arguments
from cxjax import errors
from cxjax import registration
from cxjax import types
from cxjax.methods import checkpoint_rules
from cxjax.methods import curricula
from cxjax.methods import custom as custom_lib
from cxjax.methods import layer_matching
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib


@dataclasses.dataclass(frozen=True)
class Context:
  """Facts about a run that a method knows besides its own options.

  Attributes:
    num_steps: total number of updates.
    checkpoints: `(step, score)` of each of the teacher's checkpoints, oldest
      first; the score is its task's primary metric.
    output: arguments of `stage_lib.output_terms`.
    pairs: function that returns the `(teacher's, student's)` activations to
      match unless a block names some; called by methods that need them alone.
  """

  num_steps: int
  checkpoints: tuple[tuple[int, float], ...] = ()
  output: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  pairs: Callable[[], Sequence[layer_matching.Pair]] = tuple

  def matched(self) -> tuple[layer_matching.Pair, ...]:
    """The pairs of a method whose block names none; UserError without any."""
    found = tuple(self.pairs())
    errors.require(
      bool(found),
      'Hidden layers are compared, and layers=() leaves none. Name layers, or '
      'leave the method out.',
    )
    return found


@dataclasses.dataclass(frozen=True)
class Method:
  """A method of the configs.

  Attributes:
    build: from its block of a config and the context to the curriculum.
    options: its block of a config, with the defaults.
    like: a method whose block it reads as well, where its own says nothing.
  """

  build: Callable[[Any, Context], stage_lib.Curriculum]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  like: str = ''


def _build_supervised(block: Any, context: Context) -> stage_lib.Curriculum:
  del block
  return curricula.supervised(context.num_steps)


def _build_one_shot(block: Any, context: Context) -> stage_lib.Curriculum:
  del block
  return curricula.one_shot(context.num_steps, **context.output)


def _build_one_shot_labels(
  block: Any, context: Context
) -> stage_lib.Curriculum:
  steps = layer_matching.split_steps(context.num_steps, 1, block.share)
  return curricula.one_shot_labels(steps, **context.output)


def _build_progressive(block: Any, context: Context) -> stage_lib.Curriculum:
  checkpoints = checkpoint_rules.choose_checkpoints(
    context.checkpoints,
    block.rule,
    scores=block.scores,
    count=block.count,
    listed=block.checkpoints,
  )
  steps = layer_matching.split_steps(
    context.num_steps, len(checkpoints), block.share, block.steps
  )
  return curricula.progressive((*checkpoints, None), steps, **context.output)


def _build_extracted(block: Any, context: Context) -> stage_lib.Curriculum:
  return _extracted(block, context, block.layers or context.matched())


def _build_last(block: Any, context: Context) -> stage_lib.Curriculum:
  pairs = block.layers or context.matched()
  return _extracted(block, context, pairs[-1:])


def _build_late_to_early(block: Any, context: Context) -> stage_lib.Curriculum:
  pairs = layer_matching.check_pairs(block.layers) or context.matched()
  layer = arguments.integer('late_to_early.layer', block.layer, 1)
  errors.require(
    layer <= len(pairs),
    f'late_to_early.layer={layer} must be one of the {len(pairs)} '
    'layers of the student that are matched, counted from 1.',
  )
  pair = pairs[-1][0], pairs[layer - 1][1]
  return _extracted(block, context, (pair,))


def _extracted(
  block: Any, context: Context, pairs: Sequence[layer_matching.Pair]
) -> stage_lib.Curriculum:
  """The curriculum of stages, one for each pair and the last one."""
  steps = layer_matching.split_steps(
    context.num_steps, len(pairs), block.share, block.steps
  )
  hidden_loss = losses.hidden_loss('extracted.loss', block.loss)
  return curricula.extracted(
    pairs,
    steps,
    **_output(block, context),
    hidden_loss=hidden_loss,
    freeze=block.freeze,
    **_shared_fields(block),
  )


def _build_joint(block: Any, context: Context) -> stage_lib.Curriculum:
  hidden_loss: types.Loss = losses.mse
  if block.loss != 'mse':
    hidden_loss = losses.hidden_loss('joint.loss', block.loss)
  return curricula.joint(
    block.layers or context.matched(),
    context.num_steps,
    **_output(block, context),
    hidden_loss=hidden_loss,
    weight=block.weight,
    fade=block.fade,
    **_shared_fields(block),
  )


def _output(block: Any, context: Context) -> dict[str, Any]:
  """Arguments of the loss between the outputs."""
  found = dict(context.output)
  if block.ending == 'labels':
    found.pop('alpha', None)  # As `supervised`, which does not read it either.
  return found


def _shared_fields(block: Any) -> dict[str, Any]:
  """Arguments that all methods with hidden terms take from their block."""
  fields = {
    name: block[name] for name in curricula.HIDDEN_OPTIONS if name in block
  }
  fields['width'] = block.width or None
  fields['checkpoint'] = None if block.checkpoint < 0 else block.checkpoint
  return {**fields, 'ending': block.ending}


def _build_custom(block: Any, context: Context) -> stage_lib.Curriculum:
  return custom_lib.custom(block.stages, context.num_steps)


# Fields of the methods with hidden terms, and their defaults.
_HIDDEN = dict(
  loss='l2',  # cosine; gram, cka, attention compare relations.
  # rademacher, sparse, orthogonal, identity; fitted: centered,
  # centered_rotated, pca, pca_rotated, procrustes, output_directions.
  projection='gaussian',
  regressor=False,  # Match a linear map of the student's layer.
  width=0,  # Columns of the projection, with a regressor; 0 chooses.
  shared_projection=True,  # One projection for all layers of equal width.
  norm='none',  # Normalization of the teacher's activation: none, layer.
  centered=False,  # Subtract from the target its mean over the batch.
  scale=1.0,  # Factor of the target.
  tokens='all',  # predicted: only the tokens that the output loss reads.
  checkpoint=-1,  # Step of the teacher's checkpoint; -1 is the final teacher.
  ending='output',  # Target of the outputs: output, labels, mixed.
)
_EXTRACTED = dict(
  layers=(),  # Pairs (teacher, student); () matches by depth.
  **_HIDDEN,
  freeze=False,  # Keep layers as they are once their stage is over.
  share=0.25,  # Fraction of num_steps before the last stage.
  steps=(),  # Lengths of all stages, in place of share.
)
# The learned projection of FitNets.
_LEARNED = dict(projection='identity', regressor=True, width=0)
_JOINT = dict(
  layers=(),
  **{**_HIDDEN, **_LEARNED, 'loss': 'mse'},  # Or a loss as above.
  weight=1.0,  # Weight of each hidden term; that of the outputs is 1.
  fade=0.0,  # Fraction of the steps after which the weight is 0; 0 never.
)
# The block of a method that is not like another also has `rate_factor`: its
# learning rate is so many times `optimizer.learning_rate`.
METHODS = {
  # The labels alone: the baseline of every comparison.
  'supervised': Method(_build_supervised),
  # The final teacher's output alone.
  'one_shot': Method(_build_one_shot),
  # The same for a short time, then the labels.
  'one_shot_labels': Method(
    _build_one_shot_labels,
    dict(share=0.25),  # Fraction of num_steps before the labels.
    like='one_shot',
  ),
  # The outputs of the teacher's checkpoints, oldest first.
  'progressive': Method(
    _build_progressive,
    dict(
      rule='transition',  # transition, even, list
      scores=(0.75,),  # transition: the checkpoints nearest to these.
      count=1,  # even: number of checkpoints.
      checkpoints=(),  # list: their steps.
      share=0.25,  # Fraction of num_steps before the final teacher.
      steps=(),  # Lengths of all stages, in place of share.
    ),
  ),
  # Random projections of the teacher's layers in turn, then its output.
  'extracted': Method(_build_extracted, _EXTRACTED),
  # The same, then the labels: the last stage does not run the teacher. A step
  # of the hidden stages costs as much as several of it, hence their share.
  'extracted_labels': Method(
    _build_extracted,
    {'ending': 'labels', 'share': 0.1, 'width': 0},
    like='extracted',
  ),
  # The same with projections that are fitted on the first batches.
  'extracted_centered': Method(
    _build_extracted, {'projection': 'centered'}, like='extracted'
  ),
  'extracted_centered_labels': Method(
    _build_extracted,
    {'projection': 'centered', 'ending': 'labels', 'share': 0.1, 'width': 0},
    like='extracted',
  ),
  'extracted_pca': Method(
    _build_extracted, {'projection': 'pca'}, like='extracted'
  ),
  'extracted_pca_rotated': Method(
    _build_extracted,
    {
      'projection': 'pca_rotated',
      'shared_projection': False,  # Each layer is rotated to its own start.
      'regressor': False,
      'width': 0,
    },
    like='extracted',
  ),
  'extracted_pca_rotated_labels': Method(
    _build_extracted,
    {
      'projection': 'pca_rotated',
      'shared_projection': False,
      'regressor': False,
      'width': 0,
      'ending': 'labels',
      'share': 0.1,
    },
    like='extracted',
  ),
  # The last layer alone, along the leading directions of the teacher's output.
  'extracted_directions': Method(
    _build_last,
    {'projection': 'output_directions', 'regressor': True, 'width': 0},
    like='extracted',
  ),
  # The same with learned projections, as FitNets have them.
  'fitnets': Method(_build_extracted, _LEARNED, like='extracted'),
  # The teacher's last layer for an early layer of the student, then the output.
  'late_to_early': Method(
    _build_late_to_early,
    # `layers` are not those of 'extracted', which may be the last pair alone;
    # `layer` is which of the student's.
    dict(layers=(), layer=1),
    like='extracted',
  ),
  # All hidden terms and the output at once.
  'joint': Method(_build_joint, _JOINT),
  # The same, with hidden terms that fade out by half of the steps.
  'joint_fading': Method(_build_joint, {'fade': 0.5}, like='joint'),
  'custom': Method(
    _build_custom,
    dict(stages=()),  # Blocks of stages and terms, as of `custom`.
  ),
}


def options(name: str) -> dict[str, Any]:
  """All options of a method with their defaults.

  Args:
    name: name in `METHODS`.

  Returns:
    Its own, and those of the method that it is like.

  Raises:
    UserError: an unknown method.
  """
  method = errors.lookup('method', name, METHODS)
  shared = METHODS[method.like].options if method.like else {}
  return {**shared, **method.options}


def having(option: str) -> tuple[str, ...]:
  """Names of the methods whose own block has an option."""
  return tuple(name for name, one in METHODS.items() if option in one.options)


def register(name: str, method: Method) -> None:
  """Makes a method known by a name: a value of `config.method`.

  Args:
    name: name of the method, and of its block in a config.
    method: its function and its options.

  Raises:
    UserError: the name is taken by another method.
  """
  registration.add('method', METHODS, name, method, method.build)


def build(name: str, block: Any, context: Context) -> stage_lib.Curriculum:
  """The curriculum of a method of the configs.

  Args:
    name: name in `METHODS`.
    block: its options.
    context: context of the run.

  Returns:
    The stages, `context.num_steps` long together.

  Raises:
    UserError: an unknown method, or settings that do not fit the teacher.
  """
  return errors.lookup('method', name, METHODS).build(block, context)
