"""Every suite runs on the CPU, also on a machine with GPUs: what a test expects must not depend on the machine."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
