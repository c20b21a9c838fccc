"""Sets that are appended to what a stage trains on, by real worlds that are killed and resized meanwhile."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import islice, repeat

import pytest
from support.storage_proxy import ThreadedProxy
from support.training_worlds import Plan, commit_of, make_latents, run_world, store, train_config, trained_ids

from videotrain.report.order_check import check_order
from videotrain_api.config.stage_config import StagePaths
from videotrain_api.records import HousekeepingRecord
from videotrain_api.resource.sources import Source, SourceWeights
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, PeerCopies
from videotrain_api.storage import layout
from videotrain_trainer import cli
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.append import append
from videotrain_trainer.data.appended import GrowingData, appended_entries
from videotrain_trainer.data.sample_order import AppendedSet, OrderState
from videotrain_trainer.data.sets import open_latents, read_set_info, set_info_uri
from videotrain_trainer.errors import DataError
from videotrain_trainer.storage import ObjectStore

pytestmark = pytest.mark.timeout(900)
NEW = {"64px/8f/1:1": (5, 2, (2, 2, 2)), "64px/16f/1:1": (3, 1, (4, 2, 2))}
WIDE = {"64px/8f/1:1": (2, 2, (2, 2, 2)), "64px/16f/16:9": (4, 1, (4, 2, 3))}


def made(folder, name, sizes=NEW, indexed=True) -> str:
    (folder / name).mkdir()
    uri = make_latents(folder / name, sizes=sizes, prefix=f"{name}-")
    if indexed:
        assert cli.main(["index", uri]) == 0
    return uri


@pytest.fixture
def base(tmp_path) -> str:
    return made(tmp_path, "base", {"64px/8f/1:1": (10, 2, (2, 2, 2)), "64px/16f/1:1": (7, 1, (4, 2, 2))})


def reference(config, state: OrderState, steps: int) -> list[str]:
    """All samples of a run that nothing happens to and that knows from the start what will be appended."""
    data = GrowingData(store(), config).grown(open_latents(store(), config), state.appended)
    begin = data.plan.adopt(open_latents(store(), config).plan.start())
    return [
        data.uid(order.bucket_index, index)
        for order in islice(data.plan.walk(begin), steps)
        for batch in order.micro_batches
        for index in batch
    ]


def test_worlds_that_are_killed_and_resized_take_in_what_is_appended_meanwhile_once(tmp_path, base):
    first, second = made(tmp_path, "first"), made(tmp_path, "second", WIDE)
    config = train_config(tmp_path, base, steps=14, appended_every_steps=3)
    # Appended while step 5 is queued, so behind step 6; the process is killed in step 8, whose checkpoint is of step 6.
    killed = run_world(tmp_path, config, 2, Plan(kill_after=8, append_after=(4, base, first)))
    assert killed.codes != [0, 0]
    alone = run_world(tmp_path, config, 1, Plan(generation=2, drain_during=11, append_after=(8, base, second)))
    assert alone.outcomes == ["drained"]
    assert run_world(tmp_path, config, 2, Plan(generation=3)).outcomes == ["completed"] * 2
    commit = commit_of(tmp_path, 14)
    state = OrderState.from_json(commit.data_cursor)
    assert [(one.after_step, one.name, one.uri) for one in state.appended] == [
        (6, "data+1", first),
        (9, "data+2", second),
    ]
    assert trained_ids(tmp_path, commit) == reference(config, state, 14)
    found = check_order(store(), layout.checkpoint_commit(config.paths.output, 14))
    assert (found.repeated, found.lost, found.problems) == (0, 0, [])
    assert set(found.sources) == {"data", "data+1", "data+2"}


def test_copies_in_memory_that_are_ahead_of_the_checkpoint_by_a_set_are_gone_on_from(tmp_path, base):
    first = made(tmp_path, "first")
    policy = CheckpointPolicy(every_steps=5, keep_last=9, peer_copies=PeerCopies(every_steps=1))
    config = train_config(tmp_path, base, steps=14, appended_every_steps=3, checkpoint=policy)
    killed = run_world(tmp_path, config, 2, Plan(kill_after=8, pods=("a", "b"), append_after=(4, base, first)))
    assert killed.codes[-1] == -9
    shutil.rmtree(tmp_path / "memory" / "b")
    resumed = run_world(tmp_path, config, 1, Plan(generation=2, pods=("a",)))
    assert resumed.outcomes == ["completed"]
    # The checkpoint is of step 5, the set was taken in behind step 6.
    assert resumed.started.resumed_step in (7, 8) and "copies" in resumed.started.phases_us
    commit = commit_of(tmp_path, 14)
    state = OrderState.from_json(commit.data_cursor)
    assert [(one.after_step, one.name) for one in state.appended] == [(6, "data+1")]
    assert trained_ids(tmp_path, commit) == reference(config, state, 14)
    found = check_order(store(), layout.checkpoint_commit(config.paths.output, 14))
    assert (found.repeated, found.lost, found.problems) == (0, 0, [])


def test_what_was_there_before_the_first_step_is_trained_on_from_it_on(tmp_path, base):
    append(store(), base, made(tmp_path, "first"))
    config = train_config(tmp_path, base, steps=3, appended_every_steps=100)
    assert run_world(tmp_path, config, 1).outcomes == ["completed"]
    commit = commit_of(tmp_path, 3)
    state = OrderState.from_json(commit.data_cursor)
    assert [one.after_step for one in state.appended] == [0]
    assert trained_ids(tmp_path, commit) == reference(config, state, 3)


def test_a_set_that_the_stage_cannot_train_on_is_told_of_and_left_out(tmp_path, base):
    bad = made(tmp_path, "bad")
    append(store(), base, bad)
    info = read_set_info(store(), bad)
    store().put(set_info_uri(bad), sealed_json(info.model_copy(update={"latent_channels": 99}).to_wire()))
    config = train_config(tmp_path, base, steps=4, appended_every_steps=2)
    found = run_world(tmp_path, config, 1)
    assert found.outcomes == ["completed"]
    told = found.of(HousekeepingRecord)
    assert [record.task for record in told] == ["append"] * 2 and "latent_channels 99" in told[0].message
    assert OrderState.from_json(commit_of(tmp_path, 4).data_cursor).appended == ()


def test_who_comes_to_a_step_first_decides_for_all(tmp_path, base):
    config = train_config(tmp_path, base, appended_every_steps=3)
    assert GrowingData(store(), config).decided(3, (), pytest.fail) == []
    first = made(tmp_path, "first")
    append(store(), base, first)
    assert GrowingData(store(), config).decided(3, (), pytest.fail) == []
    (one,) = GrowingData(store(), config).decided(6, (), pytest.fail)
    assert (one.after_step, one.source, one.number, one.uri) == (6, "data", 1, first)
    assert GrowingData(store(), config).decided(6, (), pytest.fail) == [one]
    assert GrowingData(store(), config).decided(6, [one], pytest.fail) == []
    assert GrowingData(store(), config).decided(9, [one], pytest.fail) == []


def test_sets_are_appended_to_the_source_that_lies_there(tmp_path, base):
    other = made(tmp_path, "other")
    sources = [Source(name="film", form="latents", uri=base), Source(name="web", form="latents", uri=other)]
    config = train_config(tmp_path, base, appended_every_steps=3)
    config = config.model_copy(update={"dataset": Dataset(sources=sources)})
    append(store(), other, made(tmp_path, "more"))
    found = GrowingData(store(), config).decided(0, (), pytest.fail)
    assert [one.name for one in found] == ["web+1"]
    data = GrowingData(store(), config).grown(open_latents(store(), config), found)
    names = Counter(
        data.plan.sources[data.plan.source_of(n, i)] + ":" + data.uid(n, i).split("-")[0]
        for n, bucket in enumerate(data.plan.buckets)
        for i in range(bucket.size)
    )
    assert names == {"film:base": 17, "web:other": 8, "web+1:more": 8}


def test_a_set_that_changed_after_it_was_appended_is_refused(tmp_path, base):
    config = train_config(tmp_path, base, appended_every_steps=3)
    gone = AppendedSet(3, "data", 1, made(tmp_path, "first"), "00000000")
    with pytest.raises(DataError, match="is not the index of the set that was appended"):
        GrowingData(store(), config).grown(open_latents(store(), config), [gone])


def test_only_what_was_made_alike_and_has_other_clips_is_appended(tmp_path, base, capsys):
    first = made(tmp_path, "first")
    assert cli.main(["append", base, first]) == 0
    assert "8 samples, number 1 of what was appended" in capsys.readouterr().out
    assert cli.main(["append", base]) == 0
    assert capsys.readouterr().out.split() == ["1", "8", "samples", first]
    for new, message in (
        (base, "cannot be appended to itself"),
        (first, f"was appended to {base} already"),
        (made(tmp_path, "bare", indexed=False), "has no sample index; write it: videotrain-trainer index"),
    ):
        with pytest.raises(DataError, match=message):
            append(store(), base, new)
    (tmp_path / "again").mkdir()
    again = make_latents(tmp_path / "again", sizes=NEW, prefix="first-")
    assert cli.main(["index", again]) == 0
    with pytest.raises(DataError, match=r"clip clip-first-[01]-0[0-4] is in .*first.*, too"):
        append(store(), base, again)
    other = made(tmp_path, "other")
    info = read_set_info(store(), other)
    store().put(set_info_uri(other), sealed_json(info.model_copy(update={"rows": ["64px/8f"]}).to_wire()))
    with pytest.raises(DataError, match="has no rows 64px/16f"):
        append(store(), base, other)
    store().put(set_info_uri(other), sealed_json(info.model_copy(update={"context_dim": 3}).to_wire()))
    with pytest.raises(DataError, match="was encoded with context_dim 3"):
        append(store(), base, other)
    assert list(appended_entries(store(), base)) == [1]


def test_worlds_on_five_sources_whose_weights_change_and_that_are_appended_to_lose_and_repeat_nothing(tmp_path):
    weights = {"film": 1.0, "game": 0.5, "own": 2.5, "stock": 4.0, "web": 0.1}
    sets = {
        name: made(tmp_path, name, {"64px/8f/1:1": (short, 2, (2, 2, 2)), "64px/16f/1:1": (long, 1, (4, 2, 2))})
        for name, short, long in (("film", 3, 1), ("game", 11, 5), ("own", 1, 9), ("stock", 20, 2), ("web", 1, 1))
    }
    pieces = [
        SourceWeights(weights=weights, until_step=5),
        SourceWeights(weights=dict.fromkeys(weights, 1.0) | {"own": 0.0}, until_step=10),
        SourceWeights(weights=weights | {"web": 3.0}),
    ]
    config = train_config(tmp_path, sets["film"], steps=14, appended_every_steps=3, source_weights=pieces)
    sources = [Source(name=name, form="latents", uri=uri, weight=weights[name]) for name, uri in sets.items()]
    config = config.model_copy(update={"dataset": Dataset(sources=sources)})
    more, wide = made(tmp_path, "more"), made(tmp_path, "wide", WIDE)
    killed = run_world(tmp_path, config, 2, Plan(kill_after=8, append_after=(4, sets["stock"], more)))
    assert killed.codes != [0, 0]
    alone = run_world(tmp_path, config, 1, Plan(generation=2, drain_during=11, append_after=(8, sets["web"], wide)))
    assert alone.outcomes == ["drained"]
    assert run_world(tmp_path, config, 2, Plan(generation=3)).outcomes == ["completed"] * 2
    commit = commit_of(tmp_path, 14)
    state = OrderState.from_json(commit.data_cursor)
    assert [(one.after_step, one.name) for one in state.appended] == [(6, "stock+1"), (9, "web+1")]
    assert trained_ids(tmp_path, commit) == reference(config, state, 14)
    found = check_order(store(), layout.checkpoint_commit(config.paths.output, 14))
    assert (found.repeated, found.lost, found.problems) == (0, 0, [])
    assert {"stock", "stock+1", "web+1"} <= set(found.sources) and sum(found.sources.values()) == found.consumed
    assert commit.source_samples == found.sources


def test_an_old_listing_loses_no_set_that_was_appended_and_delays_it_at_most(tmp_path, base, storage, s3):
    bucket = ObjectStore.for_storage(storage)
    sets = {"base": base} | {name: made(tmp_path, name) for name in ("first", "second")}
    for name, uri in sets.items():
        for found in store().list(uri):
            bucket.put(f"{storage.uri}/{name}{found.uri.removeprefix(uri)}", store().get(found.uri))
    where = {name: f"{storage.uri}/{name}" for name in sets}
    config = train_config(tmp_path, where["base"], appended_every_steps=3)
    paths = StagePaths(output=f"{storage.uri}/stage", latents=where["base"])
    config = config.model_copy(update={"paths": paths, "storage": storage})
    append(bucket, where["base"], where["first"])
    stale = islice(repeat("stale list"), 2)
    with ThreadedProxy(s3) as proxied:
        proxied.proxy.weather = lambda request: next(stale, None) if request.kind == "LIST" else None
        through = ObjectStore(storage.model_copy(update={"endpoint_url": proxied.proxy.url}))
        # Of a listing without the first set it would be number 1 as well: it is looked at again, and neither is lost.
        assert append(through, where["base"], where["second"])[0] == 2
        assert GrowingData(through, config).decided(3, (), pytest.fail) != []
        stale = islice(repeat("stale list"), 1)
        assert GrowingData(through, config).decided(6, (), pytest.fail) == []
        found = GrowingData(through, config).decided(9, (), pytest.fail)
        assert [(one.after_step, one.name) for one in found] == [(9, "data+1"), (9, "data+2")]
        assert GrowingData(bucket, config).decided(6, (), pytest.fail) == []
    assert proxied.proxy.suffered["LIST stale list"] == 3
