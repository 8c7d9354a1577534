"""Models: the protocol, the registry, adapters and the networks of the package.

Importing the folder registers the models of the package.
"""

from cxjax.models import mlp as mlp
from cxjax.models import rotary_decoder as rotary_decoder
from cxjax.models import transformer as transformer
