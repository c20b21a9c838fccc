"""The kinds of `videotrain-trainer evaluate`: read, measure, print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from videotrain_api.resource.evaluation import OF_ANY_VIDEOS
from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.evaluation import preference, tables, vbench, winrate
from videotrain_trainer.evaluation.autoencoder import Evaluation, check_size
from videotrain_trainer.evaluation.metrics import averaged, compared, described
from videotrain_trainer.evaluation.videos import ENDINGS, items_of, read_frames, uri_of, videos_below
from videotrain_trainer.models.loading import load
from videotrain_trainer.networks.losses.lpips_files import load_perceptual
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.sampling.outputs import read_metadata
from videotrain_trainer.storage import ObjectStore

Tick = Callable[[int, int], None]


def run(options: argparse.Namespace) -> int:
    """Run the kind that was asked for."""
    kinds: dict[str, Callable[[argparse.Namespace, Tick], None]] = {
        "autoencoder": autoencoder,
        "videos": videos,
        "vbench": run_vbench,
        "compare": compare,
        "win-rate": win_rate,
    }
    kinds[options.kind](options, _progress(options.quiet, sys.stderr))
    return 0


def autoencoder(options: argparse.Namespace, tick: Tick) -> None:
    """PSNR, SSIM and, where weights are mounted, LPIPS of reconstructions."""
    check_size(options.size)
    store = _store()
    items = items_of(store, options.source, options.clips, options.size, options.frames, options.limit)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    module = load(options.weights, model=options.autoencoder, device=device, store=store)
    if isinstance(module, MMDiT) or module.pictures_only:
        found = "a transformer" if isinstance(module, MMDiT) else "an autoencoder for pictures"
        raise ConfigError(f"--weights: {options.weights} holds {found}; a video autoencoder is needed")
    perceptual = load_perceptual(store, uri_of(options.lpips), "--lpips").to(device) if options.lpips else None
    rows = dict(Evaluation(module, perceptual).rows(items, tick))
    mean = averaged(list(rows.values()))
    result = {"autoencoder": str(options.weights), "source": options.source, "videos": rows, "mean": mean}
    note = "" if perceptual else "\nNo LPIPS: its weights are not mounted; name their folder with --lpips."
    tables.show(result, tables.measures(rows, mean) + note, options.json)


def videos(options: argparse.Namespace, tick: Tick) -> None:
    """Measures of videos that need no weights."""
    store = _store()
    found = videos_below(store, options.source)
    references = _references(store, options, found)
    rows: dict[str, dict[str, float]] = {}
    for number, (name, uri) in enumerate(found.items(), start=1):
        frames = read_frames(store, uri)
        rows[name] = described(frames)
        if references:
            other = read_frames(store, references[name])
            if other.shape != frames.shape:
                raise DataError(f"{name}: {list(frames.shape)} here, {list(other.shape)} in --reference")
            rows[name] |= compared(frames, other)
        tick(number, len(found))
    mean = averaged(list(rows.values()))
    tables.show({"source": options.source, "videos": rows, "mean": mean}, tables.measures(rows, mean), options.json)


def _references(store: ObjectStore, options: argparse.Namespace, found: dict[str, str]) -> dict[str, str]:
    if options.reference is None:
        return {}
    references = videos_below(store, options.reference)
    missing = [name for name in found if name not in references]
    if missing:
        raise DataError(f"--reference: {len(missing)} videos have no counterpart there, such as {missing[0]}")
    return references


def run_vbench(options: argparse.Namespace, tick: Tick) -> None:
    """Score the videos of a folder by VBench's dimensions."""
    if not options.videos.is_dir():
        raise DataError(f"{options.videos}: no such folder")
    dimensions = options.dimension or list(vbench.SUITE if options.suite else OF_ANY_VIDEOS)
    scores = vbench.run(
        options.videos,
        options.weights,
        options.output,
        dimensions,
        suite=options.suite,
        prompts=_read_prompts(options.prompts) if options.prompts else None,
        device=options.device,
    )
    tick(len(scores), len(scores))
    totals = vbench.totals(scores)
    table = tables.render(["dimension", "score"], [[name, score] for name, score in (scores | totals).items()])
    tables.show({"videos": str(options.videos), "scores": scores, "totals": totals}, table, options.json)


def compare(options: argparse.Namespace, tick: Tick) -> None:
    """A blinded page for human preference, and its key."""
    first, second = (preference.side_of(text, ENDINGS) for text in (options.first, options.second))
    key = options.key or options.output.with_name(options.output.name + ".key.json")
    prompts = _read_prompts(options.prompts) if options.prompts else _prompts_in(first) | _prompts_in(second)
    pairs = preference.write_comparison(first, second, prompts, options.output, key, options.seed, tick)
    alone = len(first.videos) + len(second.videos) - 2 * len(pairs)
    page = options.output / "index.html"
    text = f"{len(pairs)} pairs: {page}\nkey, which stays with you: {key}"
    text += f"\n{alone} videos have no counterpart and are left out" if alone else ""
    tables.show({"pairs": len(pairs), "page": str(page), "key": str(key), "unpaired": alone}, text, options.json)


def win_rate(options: argparse.Namespace, _tick: Tick) -> None:
    """Win rates of the key's first model over the second."""
    key = winrate.read_key(options.key)
    sheets = winrate.read_answers(options.answers, key)
    rates = winrate.win_rates(sheets, key)
    if not rates:
        raise DataError("the files hold no answer")
    first, second = key["models"]
    result = {
        "first": first,
        "second": second,
        "raters": len(sheets),
        "questions": {
            rate.question: {
                "rate": rate.rate,
                "interval95": list(rate.interval),
                "wins": rate.wins,
                "losses": rate.losses,
                "ties": rate.ties,
            }
            for rate in rates
        },
    }
    tables.show(result, _rates_table(rates, first, second, len(sheets)), options.json)


def _rates_table(rates: list[winrate.WinRate], first: str, second: str, raters: int) -> str:
    rows: list[list[tables.Cell]] = [
        [
            rate.question,
            f"{rate.rate:.1%}",
            "{:.1%} to {:.1%}".format(*rate.interval),
            rate.wins,
            rate.losses,
            rate.ties,
            "yes" if rate.decided else "no",
        ]
        for rate in rates
    ]
    header = ["question", first, "95 % interval", "wins", "losses", "ties", "decided"]
    return f"{first} against {second}, {raters} raters\n" + tables.render(header, rows)


def _prompts_in(side: preference.Side) -> dict[str, str]:
    """Prompts that `sample` wrote into its files."""
    found = {name: (read_metadata(path) or {}).get("request", {}).get("prompt") for name, path in side.videos.items()}
    return {name: prompt for name, prompt in found.items() if isinstance(prompt, str)}


def _read_prompts(path: Path) -> dict[str, str]:
    try:
        found: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--prompts: {path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DataError(f"--prompts: {path} must be an object of name and prompt")
    return found


def _store() -> ObjectStore:
    # For file:// and s3:// URIs alike; the credentials are those of the environment.
    return ObjectStore.for_storage(Storage(uri="s3://from-the-environment"))


def _progress(quiet: bool, stream: TextIO) -> Tick:
    def tick(done: int, total: int) -> None:
        if quiet:
            return
        if stream.isatty():
            stream.write(f"\r{done} of {total}" + ("\n" if done == total else ""))
            stream.flush()
        elif done == total or 10 * done // total > 10 * (done - 1) // total:
            stream.write(f"{done} of {total}\n")

    return tick
