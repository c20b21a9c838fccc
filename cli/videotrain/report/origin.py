"""The parts of the report about the run itself: why it does not go on, and what was run where."""

from __future__ import annotations

from urllib.parse import quote

import yaml

from videotrain.report.markup import Html, element, folded, join, section, table, text
from videotrain.wording import compact
from videotrain_api.schema import Json

_WRITTEN_BY_THE_SERVER = ("managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink")


def trouble_section(summary: Json) -> Html:
    """Why the run rests before its end, and what to do; nothing if it does not."""
    trouble = summary["trouble"]
    if trouble is None:
        return Html("")
    title = "Why it failed" if summary["phase"] == "Failed" else f"Why it is {summary['phase'].lower()}"
    reason = element("p", Html(f"{element('b', text(trouble['reason']))}: {text(trouble['message'])}"))
    advice = element("p", Html(f"{element('b', text('What to do'))}: {text(trouble['advice'])}"))
    if not trouble["log"]:
        return element("section", join(element("h2", text(title)), reason, advice), class_="trouble")
    tail = element("pre", text("\n".join(trouble["tail"])))
    log = folded(f"The last {len(trouble['tail'])} lines of {trouble['log']}", tail, opened=True)
    whole = element("p", Html(f"{_link(trouble['log'])} has all of it."))
    return element("section", join(element("h2", text(title)), reason, advice, log, whole), class_="trouble")


def origin_section(run: Json, summary: Json) -> Html:
    """The manifest, the versions and the machine, and where the logs are."""
    head = {name: value for name, value in run["metadata"].items() if name not in _WRITTEN_BY_THE_SERVER}
    document = {"apiVersion": run.get("apiVersion"), "kind": run.get("kind"), "metadata": head, "spec": run["spec"]}
    manifest = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    machine = summary["machine"]
    rows = [
        *((name, version) for name, version in summary["versions"].items()),
        ("Python", machine["python"]),
        ("system of the machine that wrote this", machine["system"]),
        ("its processors and memory", f"{machine['processors']}, {compact(machine['memory_bytes'])}B"),
        ("seed", summary["seed"]),
    ]
    parts = [folded("Manifest", element("pre", text(manifest))), folded("Versions and machine", table(("", ""), rows))]
    if summary["logs"]:
        links = element("ul", join(*(element("li", _link(path)) for path in summary["logs"])))
        parts.append(folded(f"Logs of {len(summary['logs'])} pods and of the command", links))
    if folder := summary.get("failures"):  # which summaries of earlier versions lack
        parts.append(_failures(run, folder))
    return section("What was run", *parts)


def _failures(run: Json, folder: str) -> Html:
    told = text("Log tails and stacks of the generations that failed are kept in ")
    command = element("code", text(f"videotrain logs {run['metadata']['name']} --failed"))
    return element("p", Html(f"{told}{element('code', text(folder))} and printed by {command}."))


def _link(path: str) -> Html:
    return element("a", text(path), href=quote(path))
