"""The scheduler as TorchX after 0.7 looks for it: in modules of this namespace package.

TorchX takes the first registered scheduler for its default, and those of plug-ins come before its own. So its own
default is registered again before ours, and `torchx run` without `-s` does what it did without us. The functions of a
module are registered by their names, in the order of the alphabet.
"""

from __future__ import annotations

import importlib
from typing import Any

from torchx.plugins import register
from torchx.schedulers import DEFAULT_SCHEDULER_MODULES
from torchx.schedulers.api import Scheduler

_DEFAULT, _MODULE = next(iter(DEFAULT_SCHEDULER_MODULES.items()))


@register.scheduler(name=_DEFAULT)
def default_as_before(session_name: str, **options: Any) -> Scheduler[Any]:
    """TorchX's own default."""
    scheduler: Scheduler[Any] = importlib.import_module(_MODULE).create_scheduler(session_name, **options)
    return scheduler


@register.scheduler()
def videotrain(session_name: str, **options: Any) -> Scheduler[Any]:
    """VideoTrainingRuns of a cluster."""
    from videotrain.torchx.scheduler import create_scheduler  # the Kubernetes client, for those who choose it

    return create_scheduler(session_name, **options)
