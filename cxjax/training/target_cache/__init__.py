"""Targets that a teacher computes once, for students that train without it.

`FOLDER/stageN.array_record` holds a record for each batch that stage N reads:
what the batch is made of, where the host reads that, and the targets of every
term, so that a target cannot meet another batch than its own. Of an output that
may be the last hidden state; `FOLDER/head_CHECKPOINT.bin` then has the weights
of the teacher's head. `index.json` is written last; it has the config that
determines the targets, and the size of every file. A folder without it is no
cache. Nothing is pickled.
"""

from cxjax.training.target_cache.checks import check
from cxjax.training.target_cache.checks import parameter_digests
from cxjax.training.target_cache.head_cost import plan_with_costs
from cxjax.training.target_cache.heads import require_hidden
from cxjax.training.target_cache.loader import CachedTargetLoader
from cxjax.training.target_cache.loader import Check
from cxjax.training.target_cache.loader import served
from cxjax.training.target_cache.reader import CachedTargets
from cxjax.training.target_cache.reader import load
from cxjax.training.target_cache.records import TOLERANCES
from cxjax.training.target_cache.records import batch_numbers
from cxjax.training.target_cache.summary import format_summary
from cxjax.training.target_cache.target_config import stages
from cxjax.training.target_cache.writer import check_folder
from cxjax.training.target_cache.writer import require_no_run
from cxjax.training.target_cache.writer import write

__all__ = [
  'TOLERANCES',
  'CachedTargetLoader',
  'CachedTargets',
  'Check',
  'batch_numbers',
  'check',
  'check_folder',
  'plan_with_costs',
  'format_summary',
  'load',
  'parameter_digests',
  'require_hidden',
  'require_no_run',
  'served',
  'stages',
  'write',
]
