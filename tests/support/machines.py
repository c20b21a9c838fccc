"""CPUs that this one can pass for.

Which kernel computes a sum is chosen when the process starts, by three libraries, each for itself: torch's own kernels
(ATen), the convolutions of oneDNN and the matrix products of MKL. Each can be held to older instructions than the CPU
has. MKL looks at the vendor too and leaves its best kernels to Intel's own CPUs, so what fails on a Xeon never fails
on an EPYC; an interposed answer to its question brings them up.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CAPABILITIES = ("default", "avx2", "avx512")
"""ATen's sets of kernels, oldest first."""
INTEL = "".join(f"int {name}(void) {{ return 1; }}\n" for name in ("mkl_serv_intel_cpu", "mkl_serv_intel_cpu_true"))
"""MKL asks these of itself; through the dynamic linker it gets our answer."""
PROBE = """
import torch
print("aten", torch.backends.cpu.get_cpu_capability().lower())
print("threads", torch.get_num_threads())
torch.nn.Conv3d(16, 16, 3)(torch.randn(2, 16, 8, 8, 8))
torch.randn(64, 64) @ torch.randn(64, 64)
"""


@dataclass(frozen=True)
class Machine:
    """How a process is to compute; what is None is left to the CPU."""

    aten: str
    threads: int
    onednn: str | None = None
    mkl: str | None = None
    """`COMPATIBLE` (any x86-64), or the instructions of Intel's own kernels: `AVX2`, `AVX512`."""

    def __str__(self) -> str:
        return f"{self.aten}-{self.threads}"

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables for a process that computes so."""
        found = {"ATEN_CPU_CAPABILITY": self.aten, "OMP_NUM_THREADS": str(self.threads)}
        if self.onednn:
            found["ONEDNN_MAX_CPU_ISA"] = self.onednn
        if self.mkl == "COMPATIBLE":
            found["MKL_CBWR"] = "COMPATIBLE"
        elif self.mkl:
            found |= {"MKL_ENABLE_INSTRUCTIONS": self.mkl, "LD_PRELOAD": str(intel_answer(folder))}
        return {**os.environ, **found}

    def lacks(self) -> str | None:
        """Why this CPU cannot pass for it, if so."""
        best = probed(dict(os.environ))["aten"]
        if best not in CAPABILITIES:
            return f"torch's kernels here are {best}, not those of an x86-64"
        if CAPABILITIES.index(self.aten) > CAPABILITIES.index(best):
            return f"this CPU has {best} at most"
        if self.threads > (os.cpu_count() or 1):
            return f"this machine has {os.cpu_count()} cores"
        if self.mkl not in (None, "COMPATIBLE") and compiler() is None:
            return "Intel's kernels of MKL need a C compiler (cc) for the interposed answer"
        return None


MACHINES = (
    Machine("default", 1, onednn="SSE41", mkl="COMPATIBLE"),
    Machine("default", 2),
    Machine("avx2", 1, onednn="AVX2", mkl="AVX2"),
    Machine("avx2", 2, onednn="SSE41"),
    Machine("avx512", 1, mkl="AVX512"),
    Machine("avx512", 2, onednn="AVX2"),
)
"""Every set of ATen's kernels with one thread and with two, and old and new kernels of the others among them."""


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which(os.environ.get("CC", "cc"))


def intel_answer(folder: Path) -> Path:
    """A library that tells MKL that it runs on a CPU of Intel's."""
    library, source = folder / "intel.so", folder / "intel.c"
    source.write_text(INTEL)
    subprocess.run([str(compiler()), "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def probed(environment: dict[str, str]) -> dict[str, str]:
    """What a process with these variables says that it computes with."""
    verbose = {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment | verbose, capture_output=True, text=True, check=True
    )
    patterns = {
        "aten": r"^aten (\S+)$",
        "threads": r"^threads (\d+)$",
        "onednn": r"onednn_verbose.*cpu,isa:(.*)$",
        "mkl": r"MKL_VERBOSE (?:Intel\(R\) )?oneMKL .*? architecture (.*?), Lnx",
        "cbwr": r"CNR:(\S+)",
    }
    matches = {name: re.search(pattern, done.stdout, re.MULTILINE) for name, pattern in patterns.items()}
    return {name: match[1] for name, match in matches.items() if match}
