"""Fills the measured tables of docs/sizing.md and docs/compare.md from the results of benchmarks/operator_scale.py.

    python benchmarks/figures/operator_scale_tables.py

Of each scenario, peer, size and profile the newest result without an error counts; of bursts all those of the newest
commit do, as median and range, since one burst says little on a machine of two cores. A test compares pages and
results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

USUAL_PODS: Final = 8
"""Pods of a run in bursts of many runs."""
ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results"
Line = Mapping[str, Any]
NONE: Final = "_Not measured yet: `benchmarks/results` holds no result of `operator_scale.py`._\n"
NAMES: Final = {"videotrain": "videotrain", "jobset": "JobSet v0.12.0", "job": "bare Indexed Job"}


def newest(folder: Path = RESULTS) -> list[Line]:
    """The newest sound line of each scenario, peer, size and profile, in a fixed order.

    Under "rounds" it has all lines of its commit, itself included.
    """
    found: dict[tuple[Any, ...], list[Line]] = {}
    texts = (text for path in folder.glob("operator_scale-*.jsonl") for text in path.read_text().splitlines())
    for line in sorted((json.loads(text) for text in texts if text.strip()), key=lambda line: str(line["at"])):
        if "error" not in line:
            before = found.get(_key(line), [])
            found[_key(line)] = [*(other for other in before if _commit(other) == _commit(line)), line]
    return [{**found[key][-1], "rounds": found[key]} for key in sorted(found)]


def _commit(line: Line) -> str | None:
    commit: str | None = line["versions"].get("commit")
    return commit


def _key(line: Line) -> tuple[Any, ...]:
    return line["scenario"], line["profile"], line["runs"], line["pods"], line["nodes"], line["peer"]


def load(lines: Iterable[Line]) -> str:
    """What many runs at once cost until training can begin: the operator and the cluster."""
    rows = []
    for line in _of(lines, "burst"):
        rounds = line["rounds"]
        results = [one["result"] for one in rounds]
        cpu = [result["cpuUntilBegin"] for result in results]
        rows.append(
            [
                *_size(line),
                str(len(rounds)),
                _spread(result["allPodsExistSeconds"] for result in results),
                _spread(result["trainingCanBeginSeconds"] for result in results),
                _spread(one.get("operator") for one in cpu),
                _spread(one["cluster"] for one in cpu),
                *(_ratios([(one.get("beside") or {}).get(peer) for one in rounds]) for peer in ("jobset", "job")),
                _spread((result.get("operatorMemory") or {}).get("peakRssMiB") for result in results),
            ]
        )
    head = ["what", "runs x pods", "nodes", "profile", "rounds", "all pods exist, s", "training can begin, s"]
    head += ["operator CPU s/run", "cluster CPU s/run", "beside JobSet: time; cluster CPU; operator CPU"]
    return _table([*head, "beside a bare Job: time; cluster CPU", "peak RSS MiB"], rows)


def _ratios(beside: list[Mapping[str, float] | None]) -> str:
    """Time until training can begin and the CPU until then, as ratios to a peer of the same round."""
    keys = ("trainingCanBeginSeconds", "clusterCpuUntilBegin", "operatorCpuUntilBegin")
    cells = (_spread((one or {}).get(key) for one in beside) for key in keys)
    return "; ".join(cell for cell in cells if cell)


def _spread(values: Iterable[float | None]) -> str:
    """The median, and the range if there is more than one value."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return _text(known[0] if known else None)
    return f"{_text(median(known))} ({_text(min(known))}-{_text(max(known))})"


def lives(lines: Iterable[Line]) -> str:
    """Writes and CPU of whole lives."""
    rows = []
    for line in _of(lines, "life"):
        life, cpu = line["result"]["writesPerRun"]["life"], line["result"]["cpuPerRun"]
        spent = [sum(phase.get(part) or 0.0 for phase in cpu.values()) for part in ("operator", "cluster")]
        own = life.get("videotrain-operator")
        rows.append(
            [*_size(line), _text(own), _text(life["cluster"]), _text(spent[0] if own else None), _text(spent[1])]
        )
    head = ["what", "runs x pods", "nodes", "profile", "operator writes/run", "cluster writes/run"]
    return _table([*head, "operator CPU s/run", "cluster CPU s/run"], rows)


def outages(lines: Iterable[Line]) -> str:
    """Standing still, restarts and take-overs."""
    lines, rows = list(lines), []
    for line in _of(lines, "quiet"):
        result = line["result"]
        text = f"CPU {_text(result['operatorCpuPercentOfCore'])} % of a core, {_memory(result)}; "
        text += f"{sum(result['writes'].values())} writes in {_text(result['seconds'])} s beside the Lease"
        rows.append(["nothing happens, steps go on", *_size(line)[1:], text])
    for line in _of(lines, "restart"):
        for name, result in line["result"].items():
            if name.startswith("SIG"):
                text = f"a new run has its pods after {_text(result['newRunHasPodsSeconds'])} s; "
                text += f"{result['writesOnLiveRuns']} writes for live runs in 60 s"
                rows.append([f"the only replica restarts ({name})", *_size(line)[1:], text])
    for line in _of(lines, "failover"):
        result = line["result"]
        times = result["takeoverSeconds"]
        text = f"take-over p50 {_text(times['p50'])} s, max {_text(times['max'])} s of {times['n']} kills; "
        text += f"{result['duplicatePods']} duplicate pods, {result['lostWakeUps']} lost wake-ups"
        rows.append(["the leader of two is killed (SIGKILL)", *_size(line)[1:], text])
    return _table(["what happens", "runs x pods", "nodes", "profile", "result"], rows)


def faults(lines: Iterable[Line]) -> str:
    """One run at a time, and faults."""
    lines, rows = list(lines), []
    for line in _of(lines, "idle"):
        times = line["result"]["podsExistSeconds"]
        text = f"all pods exist after {_text(times['p50'])} s (p50), {_text(times['p99'])} s (p99)"
        rows.append([*_who(line), "one run on an idle cluster", text])
    names = {"pod-fail": "one container fails", "node-delete": "Node object deleted", "node-silent": "kubelet dies"}
    for scenario, name in names.items():
        for line in _of(lines, scenario):
            rows.append([*_who(line), name, _recovery(line["result"])])
    return _table(["what", "pods", "profile", "event", "result"], rows)


def _recovery(result: Line) -> str:
    parts = [f"recovered {result['recovered']}"]
    for key, words in (("rosterSeconds", "survivors have the new roster"), ("replacedSeconds", "replacement exists")):
        if key in result and result[key]["p50"] is not None:
            parts.append(f"{words} after {_text(result[key]['p50'])} s (p50), {_text(result[key]['max'])} s (max)")
    kept = sum(trial["survivorsKept"] for trial in result["trials"])
    return "; ".join([*parts, f"{kept} of {sum(trial['survivors'] for trial in result['trials'])} survivors kept"])


def memory(lines: Iterable[Line]) -> str:
    """Peak RSS as a line through the smallest and the largest burst of the operator with runs of the usual size."""
    bursts = [line for line in _of(lines, "burst") if line["peer"] == "videotrain" and line["pods"] == USUAL_PODS]
    text = ""
    for profile in sorted({line["profile"] for line in bursts}):
        own = [(line["runs"] * line["pods"], line) for line in bursts if line["profile"] == profile]
        sizes = sorted(own, key=lambda pair: pair[0])
        (few, small), (many, large) = sizes[0], sizes[-1]
        if few == many:
            continue
        peaks = [line["result"]["operatorMemory"]["peakRssMiB"] for line in (small, large)]
        slope = (peaks[1] - peaks[0]) / (many - few)
        base, seen = peaks[0] - slope * few, f"{peaks[0]:.0f} and {peaks[1]:.0f} MiB measured"
        text += f"`peak RSS = {base:.0f} MiB + {1024 * slope:.1f} KiB x pods`, "
        text += f"from bursts of {few} and {many} pods ({profile}; {seen}).\n"
    return text or NONE


def setting(lines: Iterable[Line]) -> str:
    """Machine and versions of the results."""
    told = {
        f"{m['cores']} cores ({m['cpu']}), {m['memoryGiB']} GiB, Kubernetes {v['kubernetes']}, Python {v['python']}, "
        f"operator {v['videotrain-operator']}, {line['at'][:10]}"
        for line in lines
        for m, v in [(line["machine"], line["versions"])]
    }
    return "".join(f"Measured on {text}.\n" for text in sorted(told)) or NONE


def _of(lines: Iterable[Line], scenario: str) -> list[Line]:
    return [line for line in lines if line["scenario"] == scenario]


def _size(line: Line) -> list[str]:
    return [NAMES[line["peer"]], f"{line['runs']} x {line['pods']}", str(line["nodes"]), line["profile"]]


def _who(line: Line) -> list[str]:
    return [NAMES[line["peer"]], str(line["pods"]), line["profile"]]


def _memory(result: Line) -> str:
    memory = result["operatorMemory"]
    found = memory if isinstance(memory, list) else [memory]
    return f"{max(item['peakRssMiB'] for item in found):.0f} MiB"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return NONE
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


BLOCKS: Final[dict[str, Callable[[Iterable[Line]], str]]] = {
    "setting": setting,
    "memory": memory,
    "load": load,
    "lives": lives,
    "outages": outages,
    "faults": faults,
}
PAGES: Final = (ROOT / "docs" / "sizing.md", ROOT / "docs" / "compare.md")


def filled(text: str, lines: list[Line]) -> str:
    """A page with every block as the results have it."""
    for name, write in BLOCKS.items():
        begin, end = f"<!-- measured: {name} -->\n", "<!-- end -->\n"
        head, found, rest = text.partition(begin)
        if found:
            text = f"{head}{begin}{write(lines)}{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(), newest()))
