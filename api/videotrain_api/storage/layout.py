"""Where a run keeps things in its object store: one function per kind of object.

<storage.uri>/<uid>/bill.json  of local runs             <bills.uri>/<uid>/bill.json  of runs of a cluster
<storage.uri>/<run name>/checks.json
                         records/<uid>/g<generation>-<number>.jsonl  failures/<uid>/g<generation>-<pod>.txt.gz
                         tracking/<tracker>/...  tracking/told.json
<storage.uri>/<run name>/<stage>/
    curate       manifest.parquet  clips/<uid>.mp4  drop-report.json
    encode       manifest.parquet  shards/clips-<unit>-<crc>.tar  set.json  index/index.json  appended/<number>.json
    train,       checkpoints/step-<step>/...  commit.json written last
    autoencoder  order/<first>-<last>.g<generation>.jsonl  weights/model.safetensors  fence/g<generation>.json
                 samples/step-<step>/<number>.mp4  samples/step-<step>/videos.json written last
                 taken-in/<step>.json
                 profiles/<request>/rank-<rank>.g<generation>.steps-<first>-<last>.json.gz
    sample       videos/<number>.mp4  videos.json
    evaluate     rows/<first>-<last>.g<generation>.json  evaluation.json  preference/index.html  preference.key.json
"""

from __future__ import annotations

from typing import Final

BILL_FILE: Final = "bill.json"
"""Name of a run's bill. What is in the folder of a run's name was stored by an older version."""


def stage_prefix(storage_uri: str, run_name: str, stage: str) -> str:
    """Prefix of all that a stage writes, without a trailing slash."""
    return f"{storage_uri.rstrip('/')}/{run_name}/{stage}"


def bill_object(folders_uri: str, run_uid: str) -> str:
    """The bill of a run, in a folder of its own beside those of other runs; names come again, uids do not."""
    return f"{folders_uri.rstrip('/')}/{run_uid}/{BILL_FILE}"


def run_checks(storage_uri: str, run_name: str) -> str:
    """What was looked at before the run's first work; see videotrain_api.checks."""
    return f"{storage_uri.rstrip('/')}/{run_name}/checks.json"


def records_prefix(storage_uri: str, run_name: str, run_uid: str) -> str:
    """Folder of the records of a run, as its first worker wrote them; another run under its name has another one."""
    return f"{storage_uri.rstrip('/')}/{run_name}/records/{run_uid}"


def records_part(storage_uri: str, run_name: str, run_uid: str, generation: int, number: int) -> str:
    """A part of the records of a generation, lines of JSON; parts count from 0, and the last one grows."""
    return f"{records_prefix(storage_uri, run_name, run_uid)}/g{generation:06d}-{number:05d}.jsonl"


def failures_prefix(storage_uri: str, run_name: str, run_uid: str) -> str:
    """Folder of the ends of failed generations: log tails and stacks."""
    return f"{storage_uri.rstrip('/')}/{run_name}/failures/{run_uid}"


def failure_log(storage_uri: str, run_name: str, run_uid: str, generation: int, pod: str) -> str:
    """The end of a failed generation in one of its pods, text in gzip; created only if absent."""
    return f"{failures_prefix(storage_uri, run_name, run_uid)}/g{generation:06d}-{pod}.txt.gz"


def tracking_prefix(storage_uri: str, run_name: str) -> str:
    """Folder of what experiment trackers keep in files."""
    return f"{storage_uri.rstrip('/')}/{run_name}/tracking"


def clip_manifest(prefix: str) -> str:
    """Parquet table of curated clips, one row per clip that was kept or dropped."""
    return f"{prefix}/manifest.parquet"


def clip_embeddings(prefix: str) -> str:
    """Parquet table of the embeddings of curated clips, where an image model has seen them."""
    return f"{prefix}/embeddings.parquet"


def drop_report(prefix: str) -> str:
    """JSON: what was dropped and why."""
    return f"{prefix}/drop-report.json"


def latent_manifest(prefix: str) -> str:
    """Parquet catalogue of encoded samples, for people; training reads the sample index."""
    return f"{prefix}/manifest.parquet"


def sample_index(prefix: str) -> str:
    """SampleIndexInfo of an encoded set; its files lie beside it."""
    return f"{prefix}/index/index.json"


def clip_file(prefix: str, uri: str) -> str:
    """The object of a clip, or its bytes in one, by the column `uri` of its set's catalogue."""
    return uri if "://" in uri else f"{prefix}/{uri}"


def appended_sets(prefix: str) -> str:
    """Folder of what was appended to an encoded set: `<number>.json`, from 1, each created only if absent."""
    return f"{prefix}/appended"


def appended_set(prefix: str, number: int) -> str:
    """One set that was appended to an encoded set."""
    return f"{appended_sets(prefix)}/{number:06d}.json"


def taken_in(prefix: str, step: int) -> str:
    """What a train stage takes in behind a step; created only if absent."""
    return f"{prefix}/taken-in/{step:08d}.json"


def checkpoints(prefix: str) -> str:
    """Folder of all checkpoints of a stage."""
    return f"{prefix}/checkpoints"


def latest_checkpoint(prefix: str) -> str:
    """LatestCheckpoint of a stage."""
    return f"{checkpoints(prefix)}/latest.json"


def checkpoint_prefix(prefix: str, step: int) -> str:
    """Folder of one checkpoint."""
    return f"{checkpoints(prefix)}/step-{step:08d}"


def checkpoint_commit(prefix: str, step: int) -> str:
    """CheckpointManifest of a checkpoint; it exists only if the checkpoint is complete."""
    return f"{checkpoint_prefix(prefix, step)}/commit.json"


def refused_commit(prefix: str, step: int) -> str:
    """The commit manifest of a checkpoint that two machines found damaged, under another name."""
    return f"{checkpoint_prefix(prefix, step)}/refused.json"


def suspect_mark(prefix: str, step: int, generation: int, rank: int) -> str:
    """SuspectMark of one process of one generation."""
    return f"{checkpoint_prefix(prefix, step)}/suspect-{generation:06d}-{rank:05d}.json"


def final_weights(prefix: str) -> str:
    """Weights of a finished train or autoencoder stage; the moving average if one is kept."""
    return f"{prefix}/weights/model.safetensors"


def final_adapter(prefix: str) -> str:
    """Folder of the adapter of a stage that trained one, in PEFT's layout."""
    return f"{prefix}/weights/adapter"


def order_segment(prefix: str, first_step: int, last_step: int, generation: int) -> str:
    """Sample ids of a range of steps, in order."""
    return f"{prefix}/order/{first_step:08d}-{last_step:08d}.g{generation:06d}.jsonl"


def fence(prefix: str, generation: int) -> str:
    """Mark of a generation; only the highest one that has a mark may write to the stage."""
    return f"{prefix}/fence/g{generation:06d}.json"


def profile_trace(prefix: str, number: int, generation: int, rank: int, first_step: int, last_step: int) -> str:
    """Trace of some steps of one rank, by the number of the request for it."""
    return f"{prefix}/profiles/{number:04d}/rank-{rank:05d}.g{generation:06d}.steps-{first_step}-{last_step}.json.gz"


def training_samples(prefix: str, step: int) -> str:
    """Folder of what a train stage drew after a step; its VideosIndex is where `videos_index` says."""
    return f"{prefix}/samples/step-{step:08d}"


def videos_index(prefix: str) -> str:
    """VideosIndex of a sample stage, or of a folder that `training_samples` gives."""
    return f"{prefix}/videos.json"


def measured_rows(prefix: str) -> str:
    """Folder of the MeasuredRows of an evaluate stage, one object a round."""
    return f"{prefix}/rows"


def preference_page(prefix: str) -> str:
    """Folder of an evaluate stage that raters get; it names no model."""
    return f"{prefix}/preference"


def preference_key(prefix: str) -> str:
    """Who is on which side of that page; stays with whoever asks."""
    return f"{prefix}/preference.key.json"


def evaluation(prefix: str) -> str:
    """MeasuredRows of a whole evaluate stage; it exists only if the stage is done."""
    return f"{prefix}/evaluation.json"


def stage_output(prefix: str, task: str) -> str:
    """What a finished stage is for: final weights, videos' index, measures, or the set that later stages read."""
    if task in ("train", "autoencoder"):
        return final_weights(prefix)
    others = {"sample": videos_index, "evaluate": evaluation}
    return others[task](prefix) if task in others else prefix
