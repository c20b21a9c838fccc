"""Which samples a stage trains on, said plainly row by row: what the arithmetic over arrays must come to."""

from __future__ import annotations

from collections import defaultdict
from itertools import zip_longest
from typing import Any

from videotrain_api.config.text_classes import text_class
from videotrain_api.resource.stages import TrainTask
from videotrain_trainer.data.buckets import assign, keeps, row_name, uniform

Groups = dict[str, tuple[Any, list[str]]]


def plain_groups(rows: list[dict[str, Any]], task: TrainTask, seed: int, longest: int) -> tuple[Groups, list[str], int]:
    """Row of the bucket table and uids by bucket of the order; held-out uids; rows within the selection."""
    for bound in task.select:
        low, high = bound.min, bound.max
        rows = [row for row in rows if low is None or (row[bound.score] is not None and row[bound.score] >= low)]
        rows = [row for row in rows if high is None or (row[bound.score] is not None and row[bound.score] <= high)]
    chosen, by_name = _chosen(rows, task, seed), {row_name(row): row for row in task.buckets}
    groups: Groups = {}
    for row in sorted(rows, key=lambda row: row["uid"].encode()):
        if row["row"] in chosen[row["clip"]]:
            of_table, name = by_name[row["row"]], row["bucket"]
            if not task.attend_padding:
                name = f"{name}/{text_class(row['text_tokens'], longest)}t"
            if name in groups and groups[name][0].batch_size != of_table.batch_size:
                name = f"{name} x{of_table.batch_size}"
            groups.setdefault(name, (of_table, []))[1].append(row["uid"])
    groups = dict(sorted(groups.items()))
    if task.validation is None:
        return groups, [], len(rows)
    clips = {row["uid"]: row["clip"] for row in rows}
    share, kept, apart = task.validation.share, {}, []
    for name, (of_table, uids) in groups.items():
        held = {uid for uid in uids if uniform(0, "validation", clips[uid]) < share}
        apart.append([uid for uid in uids if uid in held])
        if len(held) < len(uids):
            kept[name] = (of_table, [uid for uid in uids if uid not in held])
    in_turn = [uid for layer in zip_longest(*apart) for uid in layer if uid is not None]
    return kept, in_turn[: task.validation.max_samples], len(rows)


def _chosen(rows: list[dict[str, Any]], task: TrainTask, seed: int) -> dict[str, set[str]]:
    present: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        present[row["clip"]].add(row["row"])
    images = [row for row in task.buckets if row.frames == 1]
    chosen = {}
    for clip, names in present.items():
        video = assign(clip, names, task.buckets, seed)
        chosen[clip] = {row_name(row) for row in images if row_name(row) in names and keeps(row, seed, clip)}
        chosen[clip] |= {row_name(video)} if video else set()
    return chosen
