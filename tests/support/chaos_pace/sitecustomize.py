"""Put on PYTHONPATH of worker pods: the real trainer at a slow pace, with two places where it can be held up.

Everything is in the folder CHAOS_FOLDER: `step-seconds` (how long a step takes at least), `hold-start` (before the
first step of a generation), `hold-save` (a checkpoint that has begun) and `deaf` (no roster can be sent to the agent).
A worker that is held up leaves a mark there, `start-<generation>-<pod>` or `save-<generation>-<pod>`.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.02


def folder():
    return Path(os.environ["CHAOS_FOLDER"])


def hold(gate, generation):
    """Wait while the gate is closed."""
    closed = folder() / f"hold-{gate}"
    if closed.exists():
        (folder() / f"{gate}-{generation}-{os.environ['VIDEOTRAIN_POD_NAME']}").touch()
    while closed.exists():
        time.sleep(POLL_SECONDS)


def slow_loop(module):
    """Steps wait at the first gate and keep the pace."""
    step, held = module._step, set()

    def paced(run):
        generation = run.context.generation
        if generation not in held:
            held.add(generation)
            hold("start", generation)
        pace = folder() / "step-seconds"
        time.sleep(float(pace.read_text()) if pace.exists() else 0.0)
        return step(run)

    module._step = paced


def slow_save(module):
    """Checkpoints wait at the second gate, in their own thread."""
    write = module.CheckpointWriter._write

    def held_up(self, *arguments):
        hold("save", self._member.generation)
        return write(self, *arguments)

    module.CheckpointWriter._write = held_up


def deaf_agent(module):
    """An agent to which no roster can be sent, as if it were lost on the way; it has the mounted file."""
    offer = module.Rosters.offer

    def lost(self, roster):
        if (folder() / "deaf").exists():
            raise OSError("lost on the way")
        offer(self, roster)

    module.Rosters.offer = lost


CHANGES = {
    "videotrain_trainer.agent.roster": deaf_agent,
    "videotrain_trainer.checkpoint.save": slow_save,
    "videotrain_trainer.training.loop": slow_loop,
}


class Finder(importlib.abc.MetaPathFinder):
    """Changes modules right after they were loaded."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in CHANGES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            CHANGES[fullname](module)

        spec.loader.exec_module = load_and_change
        return spec


if "CHAOS_FOLDER" in os.environ:
    sys.meta_path.insert(0, Finder())
