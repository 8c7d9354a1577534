"""Knowledge distillation by curriculum extraction, in JAX.

`plan` and `distill` train a student, and `compare` compares methods. The other
names are their parts, pure functions for loops of your own. `launch.py` and
`cxjax.configs.experiment` run configs.
"""

from cxjax import deprecation as _deprecation
from cxjax import models
from cxjax import tasks
from cxjax.analysis.probes import cka
from cxjax.analysis.probes import degree_one
from cxjax.analysis.probes import linear_probe
from cxjax.analysis.probes import ngram_distance
from cxjax.api.compare import advise
from cxjax.api.compare import compare
from cxjax.api.comparison import Comparison
from cxjax.api.comparison import Contender
from cxjax.api.distill import distill
from cxjax.api.distilled import Distilled
from cxjax.api.patterns import every
from cxjax.api.plan import Plan
from cxjax.api.plan import plan
from cxjax.api.shrink import shrink
from cxjax.errors import Stopped
from cxjax.errors import UserError
from cxjax.interop import huggingface
from cxjax.interop.stablehlo import export
from cxjax.methods.curricula import extracted
from cxjax.methods.curricula import joint
from cxjax.methods.curricula import one_shot
from cxjax.methods.curricula import one_shot_labels
from cxjax.methods.curricula import progressive
from cxjax.methods.curricula import supervised
from cxjax.methods.custom import weight_schedule
from cxjax.methods.fitted import fit_projection
from cxjax.methods.layer_matching import match_layers
from cxjax.methods.layer_matching import split_steps
from cxjax.methods.losses import cosine
from cxjax.methods.losses import cross_entropy
from cxjax.methods.losses import hard_kl
from cxjax.methods.losses import jensen_shannon
from cxjax.methods.losses import kl
from cxjax.methods.losses import l2
from cxjax.methods.losses import mse
from cxjax.methods.losses import reverse_kl
from cxjax.methods.losses import top_k
from cxjax.methods.losses import top_k_kl
from cxjax.methods.masks import trainable_mask
from cxjax.methods.projections import PROJECTIONS
from cxjax.methods.projections import project
from cxjax.methods.projections import random_projection
from cxjax.methods.stage import Curriculum
from cxjax.methods.stage import Stage
from cxjax.methods.stage import Term
from cxjax.methods.stage_plan import StagePlan
from cxjax.methods.stage_plan import format_plan
from cxjax.methods.stage_plan import plan_stage
from cxjax.methods.stage_plan import with_costs
from cxjax.methods.targets import activation
from cxjax.methods.targets import make_targets
from cxjax.methods.train_step import State
from cxjax.methods.train_step import init_stage
from cxjax.methods.train_step import train_step
from cxjax.models.adapters import ModelAdapter
from cxjax.models.adapters import from_fn
from cxjax.models.adapters import with_compute_dtype
from cxjax.models.base import Abilities
from cxjax.models.decoder import Decoder
from cxjax.models.equinox_adapter import from_equinox
from cxjax.models.generate import generate
from cxjax.models.haiku_adapter import from_haiku
from cxjax.models.keras_adapter import from_keras
from cxjax.models.linen_adapter import from_linen
from cxjax.models.mlp import MLP
from cxjax.models.nnx_adapter import from_nnx
from cxjax.models.rotary import Rotary
from cxjax.models.sentence import SentenceEncoder
from cxjax.models.taps import Tap
from cxjax.models.taps import Taps
from cxjax.models.taps import taps
from cxjax.models.teacher_checkpoints import with_checkpoints
from cxjax.models.transformer import Transformer
from cxjax.training import metrics
from cxjax.training.evaluation import agreement
from cxjax.training.evaluation import evaluate
from cxjax.training.metrics import Metric
from cxjax.training.multi_step import train_many_steps
from cxjax.version import __version__

__all__ = [
  'PROJECTIONS',
  'Abilities',
  'Comparison',
  'Contender',
  'Curriculum',
  'Decoder',
  'Distilled',
  'MLP',
  'Metric',
  'ModelAdapter',
  'Plan',
  'Rotary',
  'SentenceEncoder',
  'Stage',
  'StagePlan',
  'State',
  'Stopped',
  'Tap',
  'Taps',
  'Term',
  'Transformer',
  'UserError',
  '__version__',
  'activation',
  'advise',
  'agreement',
  'cka',
  'compare',
  'cosine',
  'cross_entropy',
  'degree_one',
  'distill',
  'evaluate',
  'every',
  'export',
  'extracted',
  'fit_projection',
  'format_plan',
  'from_equinox',
  'from_fn',
  'from_haiku',
  'from_keras',
  'from_linen',
  'from_nnx',
  'generate',
  'hard_kl',
  'huggingface',
  'init_stage',
  'joint',
  'jensen_shannon',
  'kl',
  'l2',
  'linear_probe',
  'make_targets',
  'match_layers',
  'metrics',
  'models',
  'mse',
  'ngram_distance',
  'one_shot',
  'one_shot_labels',
  'plan',
  'plan_stage',
  'progressive',
  'project',
  'random_projection',
  'reverse_kl',
  'shrink',
  'split_steps',
  'supervised',
  'taps',
  'tasks',
  'top_k',
  'top_k_kl',
  'train_many_steps',
  'train_step',
  'trainable_mask',
  'weight_schedule',
  'with_checkpoints',
  'with_compute_dtype',
  'with_costs',
]

__getattr__ = _deprecation.module_getattr(
  __name__, {**_deprecation.NAMES, **_deprecation.MODULES}
)
