"""Knowledge distillation by curriculum extraction, in JAX.

Pure functions to use on their own; `launch.py` and `cxjax.experiment` join them
into runs.
"""

from cxjax.methods.stage import Curriculum
from cxjax.methods.stage import Stage
from cxjax.curriculum import extracted
from cxjax.curriculum import match_layers
from cxjax.curriculum import one_shot
from cxjax.curriculum import progressive
from cxjax.curriculum import split_steps
from cxjax.curriculum import supervised
from cxjax.dispatch import advance
from cxjax.distillation import distill
from cxjax.errors import UserError
from cxjax.evaluation import agreement
from cxjax.evaluation import evaluate
from cxjax.losses import cosine
from cxjax.losses import cross_entropy
from cxjax.losses import hard_kl
from cxjax.losses import jensen_shannon
from cxjax.losses import kl
from cxjax.losses import l2
from cxjax.losses import mse
from cxjax.losses import reverse_kl
from cxjax.losses import top_k
from cxjax.losses import top_k_kl
from cxjax.models.mlp import MLP
from cxjax.models.transformer import Transformer
from cxjax.models.adapters import ModelAdapter
from cxjax.models.adapters import Tap
from cxjax.models.adapters import Taps
from cxjax.networks import cast
from cxjax.networks import from_fn
from cxjax.networks import from_linen
from cxjax.networks import from_nnx
from cxjax.networks import taps
from cxjax.methods.stage_plan import StagePlan
from cxjax.planning import plan_stage
from cxjax.planning import show
from cxjax.planning import with_costs
from cxjax.api.plan import Plan
from cxjax.plans import plan
from cxjax.probes import cka
from cxjax.probes import degree_one
from cxjax.probes import linear_probe
from cxjax.probes import ngram_distance
from cxjax.methods.projections import LAWS
from cxjax.projection import project
from cxjax.projection import random_projection
from cxjax.stablehlo import export
from cxjax.methods.train_step import State
from cxjax.step import activation
from cxjax.step import enter
from cxjax.step import target
from cxjax.step import train_step
from cxjax.step import trained
from cxjax.version import __version__

__all__ = [
  'LAWS',
  'MLP',
  'Curriculum',
  'Network',
  'Plan',
  'StagePlan',
  'Stage',
  'State',
  'Tap',
  'Taps',
  'Transformer',
  'UserError',
  '__version__',
  'activation',
  'advance',
  'agreement',
  'cast',
  'cka',
  'cosine',
  'cross_entropy',
  'degree_one',
  'distill',
  'enter',
  'evaluate',
  'export',
  'extracted',
  'from_fn',
  'from_linen',
  'from_nnx',
  'hard_kl',
  'jensen_shannon',
  'kl',
  'l2',
  'linear_probe',
  'match_layers',
  'mse',
  'ngram_distance',
  'one_shot',
  'plan',
  'plan_stage',
  'progressive',
  'project',
  'random_projection',
  'reverse_kl',
  'show',
  'split_steps',
  'supervised',
  'taps',
  'target',
  'top_k',
  'top_k_kl',
  'train_step',
  'trained',
  'with_costs',
]
