"""A process that owns a control plane, for tests that kill it.

python plane_owner.py DIRECTORY: starts, makes the namespace `kept`, says `ready`, and waits for ever.
"""

import signal
import sys
from pathlib import Path

from videotrain.controlplane.plane import ControlPlane

if __name__ == "__main__":
    plane = ControlPlane(Path(sys.argv[1]))
    plane.start()
    kept = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kept"}}
    plane.api().request("POST", "/api/v1/namespaces", kept)
    print("ready", flush=True)
    signal.pause()
