"""The parts of the report, each from the summary."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from videotrain.report.markup import Html, clock, element, join, long_table, section, table, text
from videotrain.wording import BUCKET_LABELS, BUCKET_MEANINGS, CAUSE_MEANINGS, compact, duration, exact, money
from videotrain_api.money import split
from videotrain_api.schema import Json

INLINE_BYTES = 1_500_000
"""A video up to this size is put into the page, a larger one stays a file beside it."""
INLINE_TOTAL_BYTES = 24_000_000


def headline(run: Json, summary: Json) -> Html:
    """Name, phase and the numbers that people ask for first."""
    phase = element("span", text(summary["phase"]), class_=f"phase {summary['phase'].lower()}")
    began = summary["started_at"]
    started = f"started {datetime.fromisoformat(began):%Y-%m-%d %H:%M:%S} UTC" if began else "not started"
    stages = ", ".join(s["name"] for s in summary["stages"])
    nodes = run["spec"].get("nodes", {})
    lead = f"{stages}; {nodes.get('min', 1)} to {nodes.get('max', 1)} nodes, {started}"
    return page_head(summary["run"], phase, lead, _cards(summary))


def page_head(name: str, mark: Html, lead: str, cards: Sequence[tuple[str, str, str]]) -> Html:
    """The head of a page: its name with a mark beside it, a sentence, and cards of label, value and note."""
    toggle = element("button", text("◐"), id="theme", type="button", title="light or dark", aria_label="light or dark")
    title = element("div", join(element("h1", text(name)), mark, toggle), class_="title")
    shown = element("div", join(*(_card(*card) for card in cards)), class_="cards")
    return element("header", join(title, element("p", text(lead), class_="lead"), shown))


def _cards(summary: Json) -> list[tuple[str, str, str]]:
    cost, samples = summary["cost"], summary["samples"]
    held = summary["gpu_seconds"]["held"]
    cards = []
    if cost["currency"]:
        cards.append(("cost", money(cost["total_micros"], cost["currency"]), f"{duration(held)} of GPU time"))
    if summary["duration_seconds"] is not None:
        done = sum(1 for s in summary["stages"] if s["state"] == "Succeeded")
        note = f"{done} of {len(summary['stages'])} stages done"
        cards.append(("time", duration(summary["duration_seconds"]), note))
    if held:
        share = 100 * summary["gpu_microseconds"]["productive"] / summary["gpu_microseconds"]["held"]
        cards.append(("productive", f"{share:.0f} %", "of the GPU time held"))
    trained = [s for s in summary["stages"] if s["first_tenth_loss"]]
    if trained:
        first, last = trained[-1]["first_tenth_loss"], trained[-1]["last_tenth_loss"]
        note = f"{trained[-1]['name']}: {100 * (last / first - 1):+.0f} % since its first tenth"
        cards.append(("loss", f"{last:.3g}", note))
    restarts = sum(summary["restarts"].values())
    lost_steps = sum(r["lost_steps"] for r in summary["recoveries"])
    cards.append(("restarts", str(restarts), f"{lost_steps} steps done again"))
    if samples["order_sha256"]:
        proof = f"{samples['repeated']} repeated, {samples['lost']} lost"
        cards.append(("samples learned", f"{samples['consumed']:,}", proof))
    return cards


def _card(label: str, value: str, note: str) -> Html:
    number, _, unit = value.partition(" ")
    shown = Html(text(number) + (element("small", text(unit)) if unit else ""))
    parts = [("label", text(label)), ("value", shown), ("note", text(note))]
    return element("div", join(*(element("div", content, class_=name) for name, content in parts)), class_="card")


def stage_section(summary: Json) -> Html:
    """One row per stage."""
    costs = {stage["name"]: stage for stage in summary["cost"]["stages"]}
    currency = summary["cost"]["currency"]
    rows = [
        (
            s["name"],
            s["task"],
            s["state"],
            f"{s['steps']:,}" + (f" / {s['total_steps']:,}" if s["total_steps"] else ""),
            duration(s["seconds"]) if s["seconds"] is not None else "",
            len(s["generations"]),
            f"{s['samples']:,}" if s["samples"] else "",
            compact(s["model_flops"]) if s["model_flops"] else "",
            _loss(s["first_tenth_loss"]),
            _loss(s["last_tenth_loss"]),
            f"{100 * (s['last_tenth_loss'] / s['first_tenth_loss'] - 1):+.0f} %" if s["first_tenth_loss"] else "",
            money(costs[s["name"]]["total_micros"], currency) if s["name"] in costs else "",
            *(_unit_price(costs.get(s["name"], {}).get(name)) for name in _UNITS),
        )
        for s in summary["stages"]
    ]
    headings = (
        "stage",
        "task",
        "state",
        "steps",
        "time",
        "generations",
        "samples",
        "FLOPs",
        "loss, first tenth",
        "last tenth",
        "change",
        "cost",
        *_UNITS.values(),
    )
    return section("Stages", table(headings, rows, range(3, 15))) if rows else Html("")


_UNITS = {
    "per_thousand_steps": "per 1,000 steps",
    "per_thousand_video_seconds": "per 1,000 s of video",
    "per_billion_tokens": "per billion tokens",
}


def _unit_price(amount: str | None) -> str:
    if amount is None:
        return ""
    value = float(amount)
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def evaluation_section(summary: Json) -> Html:
    """What evaluate stages measured, one row each."""
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}
    names |= {"first_frame_psnr": "given frame, PSNR, dB", "clip_psnr": "clip, PSNR, dB"}
    names |= {"flicker": "flicker, grey levels", "motion": "motion, grey levels", "sharpness": "sharpness"}
    names |= {"validation_loss": "held-out loss"}
    found = {stage["name"]: stage["evaluation"] for stage in summary["stages"] if stage.get("evaluation")}
    shown = {name: words for name, words in names.items() if any(of.get(name) is not None for of in found.values())}
    rows = [
        (stage, of["clips"] or "", of["videos"] or "", *(_measure(of.get(name)) for name in shown))
        for stage, of in found.items()
    ]
    headings = ("stage", "clips", "videos", *shown.values())
    tables = join(table(headings, rows, range(1, len(headings))), _classes(found), _pages(found))
    return section("Evaluation", tables) if rows else Html("")


def _classes(found: Mapping[str, Json]) -> Html:
    """Measures of classes: a row for each, a column for each stage."""
    kinds = {"loss_by_bucket": "held-out loss", "loss_by_time": "held-out loss at", "vbench": "VBench"}
    named = {(kind, name): None for kind in kinds for of in found.values() for name in of.get(kind, {})}
    rows = [
        (f"{kinds[kind]} {name}", *(_measure(of.get(kind, {}).get(name)) for of in found.values()))
        for kind, name in named
    ]
    return table(("measure", *found), rows, range(1, len(found) + 1)) if rows else Html("")


def _pages(found: Mapping[str, Json]) -> Html:
    """Where people may say what they prefer."""
    rows = [
        (stage, of["pairs"], f"{stage}/preference/index.html", f"{stage}/preference.key.json")
        for stage, of in found.items()
        if of.get("pairs")
    ]
    headings = ("stage", "pairs", "page for raters, below the run's storage", "key, which stays with you")
    return table(headings, rows, (1,)) if rows else Html("")


def _measure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def source_section(summary: Json) -> Html:
    """How many samples of each source went into the weights, and their share of the cost of their stage."""
    cost = summary["cost"]
    totals = {stage["name"]: stage["total_micros"] for stage in cost["stages"]}
    rows = []
    for stage in summary["samples"]["stages"]:
        sources = stage.get("sources", {})
        parts = split(totals.get(stage["name"], 0), sources)
        rows += [
            (
                stage["name"],
                name,
                f"{count:,}",
                f"{100 * count / stage['consumed']:.1f} %",
                money(parts[name], cost["currency"]) if stage["name"] in totals else "",
            )
            for name, count in sources.items()
        ]
    headings = ("stage", "source", "samples", "share", "cost")
    return section("Samples by source", table(headings, rows, (2, 3, 4))) if rows else Html("")


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _part(speed: Json, part: str) -> str:
    return f"{100 * speed['seconds'][part] / (sum(speed['seconds'].values()) or 1.0):.1f} %"


def speed_section(summary: Json) -> Html:
    """Where the time of the steps went, and which ranks were slowest."""
    stages = [(s["name"], s["speed"]) for s in summary["stages"] if s.get("speed")]
    if not stages:
        return Html("")
    rows = []
    for name, speed in stages:
        parts = [_part(speed, part) for part in _PARTS]
        again, useful = (_share(speed[key], speed["model_flops"]) for key in ("hardware_flops", "useful_flops"))
        memory = f"{compact(speed['memory_bytes'])}B" if speed["memory_bytes"] else ""
        rows.append((name, speed["steps"], *parts, again, useful, memory))
    headings = ("stage", "steps", *_PARTS.values(), "FLOPs with recomputing", "without padded text", "most memory")
    slowest = [
        (
            name,
            one["generation"],
            one["rank"],
            one["steps"],
            f"{100 * one['share']:.0f} %",
            f"{100 * one['ratio']:+.0f} %",
        )
        for name, speed in stages
        for one in speed["slowest"]
    ]
    encoded = [
        (
            name,
            f"{one['clips']:,}",
            f"{one['clips_per_second']:.2f}",
            _part(speed, "forward"),
            _part(speed, "data"),
            f"{compact(one['bytes_per_clip'])}B",
        )
        for name, speed in stages
        if (one := speed["encoded"])
    ]
    encoding = ("stage", "clips", "clips per second", "device busy", "waiting for clips", "stored per clip")
    ranks = ("stage", "generation", "rank", "slowest in steps", "share", "over the median")
    lead = "Mean over the ranks. Communication that hides behind computation is not in it."
    shown = long_table(ranks, slowest, (1, 2, 3, 4, 5)) if slowest else Html("")
    stored = table(encoding, encoded, range(1, 6)) if encoded else Html("")
    return section("Where the time of a step went", table(headings, rows, range(1, 12)), stored, shown, lead=lead)


_PARTS = {
    "data": "waiting for data",
    "forward": "forward",
    "backward": "backward",
    "communication": "exposed communication",
    "optimizer": "optimizer",
    "checkpoint": "checkpoints",
    "rest": "rest",
}


def _share(part: float | None, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if part is not None and whole else ""


def curve_section(curves: list[Json]) -> Html:
    """Places for the figures that the script draws."""
    if not curves:
        return Html("")
    figures = [
        element(
            "figure",
            join(element("figcaption", text(c["stage"])), element("div", Html(""), class_="plot", id=f"curve-{i}")),
        )
        for i, c in enumerate(curves)
    ]
    lead = "Vertical lines: a new generation, since who trains changed. Red: steps that were lost and done again."
    return section("Loss and throughput", element("div", join(*figures), class_="figures"), lead=lead)


def timeline_section(summary: Json, drawn: Json | None) -> Html:
    """Who was in the world when, why it changed, and what that cost."""
    spent = {
        g["number"]: {"total": g["total_micros"], "wasted": g["wasted_micros"]} for g in summary["cost"]["generations"]
    }
    rows = [
        (
            g["number"],
            clock(g["created_at"]),
            s["name"],
            g["world_size"],
            *_why(g),
            *_steps(s, g),
            _start(g["start_seconds"]),
            g["end_cause"] or "",
            *(exact(spent[g["number"]][name]) if g["number"] in spent else "" for name in ("total", "wasted")),
            g["attention"] or "",
        )
        for s in summary["stages"]
        for g in s["generations"]
    ]
    if not rows:
        return Html("")
    headings = (
        "#",
        "from",
        "stage",
        "workers",
        "why",
        "",
        "steps",
        "lost",
        "first step after",
        "ended by",
        summary["cost"]["currency"],
        "of it, by its end",
        "attention",
    )
    figure = element("div", Html(""), class_="plot", id="timeline") if drawn else Html("")
    lead = "One bar per pod and generation. Pale: starting and loading; solid: training; red: work that was lost."
    shown = sorted(rows, key=lambda row: int(row[0]))
    return section("Who trained when", figure, long_table(headings, shown, (0, 3, 6, 7, 10, 11)), lead=lead)


def _why(generation: Json) -> tuple[str, Html]:
    return generation["reason"], element("span", text(generation["message"]), class_="dim")


def _steps(stage: Json, generation: Json) -> tuple[str, str]:
    first, last, lost = generation["first_step"], generation["last_step"], generation["lost_steps"]
    if stage["task"] not in ("train", "autoencoder"):  # units of work, told as they are done and not one by one
        return (str(last) if last is not None else "none"), ""
    return (f"{first}-{last}" if first is not None else "none"), (str(lost) if lost else "")


def _start(seconds: dict[str, float]) -> Html:
    parts = ", ".join(f"{phase} {found:.1f} s" for phase, found in seconds.items())
    return element("span", text(f"{sum(seconds.values()):.1f} s"), title=parts) if seconds else Html("")


def bill_section(run: Json, summary: Json) -> Html:
    """The GPU time by bucket, as a bar and as a table that adds up."""
    micros, cost = summary["gpu_microseconds"], summary["cost"]
    held = micros["held"]
    if not cost["total_micros"] and not held:
        return Html("")
    present = [b for b in BUCKET_LABELS if micros[b] or cost["by_bucket"][b]]
    bar = element(
        "div", Html("".join(_slice(b, micros[b], held) for b in present if micros[b])), class_="stack", role="img"
    )
    rows: list[tuple[Any, ...]] = [
        (
            Html(f"{element('i', Html(''), class_=f'key {b}')}{text(BUCKET_LABELS[b])}"),
            exact(micros[b]),
            f"{100 * micros[b] / max(1, held):.1f} %",
            exact(cost["by_bucket"][b]),
            element("span", text(BUCKET_MEANINGS[b]), class_="dim"),
        )
        for b in present
    ]
    rows.append(tuple(element("b", text(v)) for v in ("held", exact(held), "100 %", exact(cost["total_micros"]), "")))
    pools = [run["spec"]["pool"], *(stage["pool"] for stage in run["spec"]["stages"] if stage.get("pool"))]
    lead = f"{', '.join(dict.fromkeys(_price(pool, cost['currency']) for pool in pools))}. {summary['note']}"
    if cost["estimated"]:
        lead += " Some pods vanished without a finish time; their end was bounded by the last look at them."
    headings = ("bucket", "GPU-seconds", "share", cost["currency"], "")
    by_stage = [
        (s["name"], *map(exact, (s["held_node_microseconds"], s["held_gpu_microseconds"], s["total_micros"])))
        for s in cost["stages"]
    ]
    stages = table(("stage", "node-seconds", "GPU-seconds", cost["currency"]), by_stage, (1, 2, 3))
    wasted = sorted(cost["waste_micros_by_cause"].items(), key=lambda item: (-item[1], item[0]))
    causes = [(c, exact(m), element("span", text(CAUSE_MEANINGS.get(c, "")), class_="dim")) for c, m in wasted]
    waste = table(("no progress because of", cost["currency"], ""), causes, (1,)) if causes else Html("")
    parts = (bar, table(headings, rows, (1, 2, 3)), stages, waste)
    return section("What every GPU-second bought", *parts, lead=lead)


def forecast_section(summary: Json) -> Html:
    """What the run is expected to cost in the end, stage by stage; nothing once it is over."""
    cost = summary["cost"]
    if not cost["expected_stages"]:
        return Html("")
    lead = (
        f"{cost['forecast']} {cost['currency']}, and four times of five between {cost['forecast_low']} and "
        f"{cost['forecast_high']}. Failures and idle nodes are in the sum as they were seen so far, not in the stages."
    )
    rows = [(stage["name"], stage["total"] or "not known yet", stage["source"]) for stage in cost["expected_stages"]]
    return section("Expected in the end", table(("stage", cost["currency"], "by what is"), rows, (1,)), lead=lead)


def _price(pool: Json, currency: str) -> str:
    if pool.get("gpusPerNode"):
        return f"{pool.get('pricePerGpuHour')} {currency} per GPU-hour"
    return f"{pool.get('pricePerNodeHour')} {currency} per node-hour"


def _slice(bucket: str, micros: int, held: int) -> str:
    share = 100 * micros / held
    title = f"{BUCKET_LABELS[bucket]}: {duration(micros / 1e6)}, {share:.1f} %"
    label = text(f"{BUCKET_LABELS[bucket]} {share:.0f} %") if share >= 12 else Html("")
    return element("span", label, class_=bucket, style=f"flex-grow:{micros / held:.6f}", title=title)


def video_section(workdir: Path, summary: Json) -> Html:
    """Every sampled video beside its prompt and the clip whose caption it was."""
    if not summary["videos"]:
        return Html("")
    budget = [INLINE_TOTAL_BYTES]
    parts = []
    for stage, videos in groupby(summary["videos"], key=lambda v: v["stage"]):
        cards = [_video_card(workdir, video, budget) for video in videos]
        parts += [element("h3", text(stage)), element("div", join(*cards), class_="videos")]
    return section("Sampled videos", *parts)


def samples_section(workdir: Path, summary: Json) -> Html:
    """What train stages drew of fixed prompts: a strip over the steps for each of them."""
    if not summary.get("training_samples"):
        return Html("")
    budget, parts = [INLINE_TOTAL_BYTES], []
    for stage, videos in groupby(summary["training_samples"], key=lambda v: v["stage"]):
        drawn = list(videos)
        seconds = sum({video["step"]: video["seconds"] for video in drawn}.values())
        steps = len({video["step"] for video in drawn})
        note = f"Drawn {steps} times; training stood still for {duration(seconds)} for it, and the nodes were held."
        parts += [element("h3", text(stage)), element("p", text(note), class_="dim")]
        for number in sorted({video["number"] for video in drawn}):
            mine = [video for video in drawn if video["number"] == number]
            strip = [_picture(workdir, video["file"], f"step {video['step']}", budget) for video in mine]
            parts += [
                element("p", text(mine[0]["prompt"]), class_="prompt"),
                element("div", join(*strip), class_="strip"),
            ]
    return section("Samples over time", *parts)


def _video_card(workdir: Path, video: Json, budget: list[int]) -> Html:
    pictures = [_picture(workdir, video["file"], "sampled", budget)]
    if video["reference_file"]:
        pictures.append(_picture(workdir, video["reference_file"], "training clip", budget))
    size = f"{video['width']}x{video['height']}, {video['frames']} frames at {video['fps']} fps"
    facts = f"{video['condition']}, seed {video['seed']}, {size}"
    return element(
        "article",
        join(
            element("div", join(*pictures), class_="pair"),
            element("p", text(video["prompt"]), class_="prompt"),
            element("p", text(facts), class_="dim"),
        ),
    )


def _picture(workdir: Path, file: str | None, label: str, budget: list[int]) -> Html:
    caption = element("figcaption", text(label))
    path = workdir / file if file else None
    if path is None or not path.is_file():
        return element("figure", join(element("div", text("not found"), class_="missing"), caption))
    source, size = str(file), path.stat().st_size
    if size <= min(INLINE_BYTES, budget[0]):
        budget[0] -= size
        source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    switches = {"autoplay": True, "loop": True, "muted": True, "playsinline": True, "controls": True}
    return element("figure", join(element("video", Html(""), src=source, **switches), caption))
