"""`videotrain cluster` as a user runs it."""

import json
import os
import subprocess
import sys

from support.controlplane import program

from videotrain.controlplane.tools import kubectl as kubectl_program


class ClusterCommand:
    """The command with its directory."""

    def __init__(self, directory):
        self.directory = directory

    def __call__(self, verb, *options):
        command = [sys.executable, "-m", "videotrain", "cluster", verb, "--directory", str(self.directory), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)

    def status(self):
        return json.loads(self("status", "--json").stdout)

    def kubectl(self):
        path = self.status()["cluster"]["kubeconfig"]
        return program(kubectl_program(), {**os.environ, "KUBECONFIG": path})
