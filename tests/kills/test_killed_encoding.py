"""Processes of an encode stage killed at random moments, encoding and merging: the same set, byte by byte.

`VIDEOTRAIN_KILLS` and `VIDEOTRAIN_SEED` choose how many, and which; the seed is printed.
"""

import multiprocessing
import os
import random
import time
from collections import Counter
from itertools import count

import pytest
from support.noise_clips import SAMPLES, curate_noise, encode_config, encode_rank, encoded_objects, first_autoencoder

from videotrain_api.storage import layout
from videotrain_trainer.data.manifest import LATENT_SCHEMA, read_table
from videotrain_trainer.storage import ObjectStore

KILLS = int(os.environ.get("VIDEOTRAIN_KILLS", "50"))
CLIPS = 24
LARGEST_WORLD = 3
LAPSE = 1.0
"""Seconds; short, so that what living processes hold is taken over, too."""
MOST_WRITES = 60
"""Objects that a world writes before one of its processes is killed, at most; an undisturbed one writes about 200."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Encoding:
    """Generations of one encode stage."""

    def __init__(self, store, config, scratch) -> None:
        self.store, self.config, self.scratch = store, config, scratch
        self.kills: Counter[str] = Counter()
        self._generations = count(1)
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["support.noise_clips"])

    def written(self) -> list[str]:
        return [found.uri.removeprefix(self.config.paths.output) for found in self.store.list(self.config.paths.output)]

    def generation(self, size: int, writes: int | None, only: int | None = None) -> bool:
        """A world of that size; whether it ended by itself.

        Args:
            size: processes.
            writes: objects after which it is killed; it lives if unset.
            only: the one process that is killed, while the others go on; all if unset.
        """
        number, before = next(self._generations), len(self.written())
        world = [
            self._processes.Process(target=encode_rank, args=(self.config, self.scratch, rank, size, number, LAPSE))
            for rank in range(size)
        ]
        for process in world:
            process.start()
        while any(process.is_alive() for process in world):
            if writes is not None and len(self.written()) - before >= writes:
                self.kills[self.phase()] += 1
                for process in world if only is None else [world[only]]:
                    process.kill()
                break
            time.sleep(0.02)
        for process in world:
            process.join()
        return all(process.exitcode == 0 for rank, process in enumerate(world) if rank != only)

    def phase(self) -> str:
        names = self.written()
        for part, phase in (
            ("/manifest.parquet", "end"),
            ("/index", "publish"),
            ("/parts", "merge"),
            ("/units", "encode"),
        ):
            if any(name.startswith(part) for name in names):
                return phase
        return "begin"


@pytest.fixture
def place(tmp_path):
    """Inputs of the stage."""
    place = (tmp_path / "store").as_uri()
    store = ObjectStore.for_storage(encode_config(place, "none").storage)
    curate_noise(store, f"{place}/clips", tmp_path, CLIPS)
    first_autoencoder(store, encode_config(place, "none"))
    return store, place


def test_killed_worlds_of_every_size_make_the_set_of_an_undisturbed_one(place, tmp_path):
    store, uri = place
    seed = int(os.environ.get("VIDEOTRAIN_SEED", random.SystemRandom().randrange(10**6)))
    chance = random.Random(seed)
    print(f"\nVIDEOTRAIN_SEED={seed}")
    whole = Encoding(store, encode_config(uri, "whole"), tmp_path / "whole")
    assert whole.generation(1, None)
    undisturbed = encoded_objects(store, whole.config)
    kills: Counter[str] = Counter()
    for number in count(1):
        killed = Encoding(store, encode_config(uri, f"killed-{number}"), tmp_path / f"killed-{number}")
        ended = False
        while not ended:
            left = KILLS - kills.total() - killed.kills.total()
            size, writes = chance.randint(1, LARGEST_WORLD), chance.randint(0, MOST_WRITES)
            # Without rank 0, which puts the set together, a world has no end.
            only = chance.choice([None, size - 1]) if size > 1 else None
            ended = killed.generation(size, writes if left > 0 else None, only)
        kills += killed.kills
        where = f"seed {seed}, history {number}: {dict(killed.kills)}"
        assert encoded_objects(store, killed.config) == undisturbed, where
        rows = read_table(store, layout.latent_manifest(killed.config.paths.output), LATENT_SCHEMA).to_pylist()
        assert len({row["uid"] for row in rows}) == len(rows) == SAMPLES * CLIPS, where
        if kills.total() >= KILLS:
            break
    print(f"{kills.total()} kills in {number} histories: {dict(kills)}")
