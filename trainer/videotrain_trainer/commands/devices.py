"""`videotrain-trainer devices`: the GPUs that worker processes would find here, asked of PyTorch itself."""

from __future__ import annotations

import argparse
import sys
import warnings

from videotrain_api.records import DeviceReport

HELP = "list the GPUs that PyTorch can use here, as JSON"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""
    parser.description = (
        "List the GPUs that PyTorch can use here, as JSON, in CUDA's order; CUDA_VISIBLE_DEVICES applies. If there are "
        "none although there is a driver, `problem` says what stands against them."
    )


def run(_options: argparse.Namespace) -> int:
    """Print a DeviceReport of this machine as one line of JSON."""
    sys.stdout.write(find_devices().model_dump_json(by_alias=True) + "\n")
    return 0


def find_devices() -> DeviceReport:
    """Start CUDA, for only then a driver shows that it works, and name its devices."""
    import torch

    if torch.version.cuda is None:
        return DeviceReport(pytorch=torch.__version__, problem=f"PyTorch {torch.__version__} is built without CUDA")
    names, problem = [], ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # The runtime is asked; device_count() alone asks the management library, which also counts what cannot be used.
        if torch.cuda.is_available():
            try:
                names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
            except RuntimeError as error:
                problem = str(error)
    problem = problem or (" ".join(str(warning.message) for warning in caught) if not names else "")
    return DeviceReport(
        pytorch=torch.__version__, cuda=torch.version.cuda, names=names, problem=" ".join(problem.split())
    )
