"""Knowledge distillation by curriculum extraction, in JAX.

Pure functions to use on their own; `launch.py` and `cxjax.experiment` join them
into runs.
"""

from cxjax.curriculum import Curriculum
from cxjax.curriculum import Stage
from cxjax.curriculum import extracted
from cxjax.curriculum import match_layers
from cxjax.curriculum import one_shot
from cxjax.curriculum import progressive
from cxjax.curriculum import split_steps
from cxjax.curriculum import supervised
from cxjax.errors import UserError
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
from cxjax.plan import PlannedStage
from cxjax.plan import plan_stage
from cxjax.plan import show
from cxjax.plan import with_costs
from cxjax.probes import cka
from cxjax.probes import degree_one
from cxjax.probes import linear_probe
from cxjax.probes import ngram_distance
from cxjax.projection import LAWS
from cxjax.projection import project
from cxjax.projection import random_projection
from cxjax.step import State
from cxjax.step import activation
from cxjax.step import advance
from cxjax.step import agreement
from cxjax.step import enter
from cxjax.step import evaluate
from cxjax.step import target
from cxjax.step import train_step
from cxjax.step import trained
from cxjax.version import __version__

__all__ = [
  'LAWS',
  'MLP',
  'Curriculum',
  'PlannedStage',
  'Stage',
  'State',
  'Transformer',
  'UserError',
  '__version__',
  'activation',
  'advance',
  'agreement',
  'cka',
  'cosine',
  'cross_entropy',
  'degree_one',
  'enter',
  'evaluate',
  'extracted',
  'hard_kl',
  'jensen_shannon',
  'kl',
  'l2',
  'linear_probe',
  'match_layers',
  'mse',
  'ngram_distance',
  'one_shot',
  'plan_stage',
  'progressive',
  'project',
  'random_projection',
  'reverse_kl',
  'show',
  'split_steps',
  'supervised',
  'target',
  'top_k',
  'top_k_kl',
  'train_step',
  'trained',
  'with_costs',
]
