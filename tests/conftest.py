"""Every suite runs on the CPU, also on a machine with GPUs: what a test expects must not depend on the machine."""

import contextlib
import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
with contextlib.suppress(ImportError):  # a suite without random cases does not install it
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")
