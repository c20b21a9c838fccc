"""`videotrain plan` says what stages take of each source, and what that costs."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from videotrain.commands.plan import Assumptions, print_plan
from videotrain_api.cost.forecast import forecast
from videotrain_api.cost.source_shares import source_shares
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.validation import parse_run

EXAMPLE = Path(__file__).parents[4] / "manifests/examples/open-sora-2-from-videos.yaml"


def manifest(weights, pieces=None):
    """The example with its first train stage of 85,000 steps, of two sources."""
    fields = yaml.safe_load(EXAMPLE.read_text())
    fields["spec"]["dataset"] = {
        key: value for key, value in fields["spec"]["dataset"].items() if key not in ("videos", "captionTable")
    }
    fields["spec"]["dataset"]["sources"] = [
        {"name": name, "form": form, "uri": f"s3://raw/{name}"} | ({"weight": weight} if weight else {})
        for (name, form), weight in zip((("film", "folder"), ("web", "parquet")), weights, strict=True)
    ]
    train = next(stage for stage in fields["spec"]["stages"] if stage["task"] == "train")
    if pieces:
        train["train"]["sourceWeights"] = pieces
    return fields


def shares_of(fields):
    run = parse_run(fields)
    planned = forecast(run)
    found = list(source_shares(run, planned))
    assert len(found) == 2 * sum(stage.task == "train" for stage in run.spec.stages)
    cost = next(stage.cost for stage in planned.stages if stage.task == "train")
    return found[:2], Fraction(cost)


def test_weights_share_samples_and_cost():
    (film, web), cost = shares_of(manifest((3, 1)))
    assert (film.share, web.share, film.weights, web.form) == (0.75, 0.25, [3], "parquet")
    assert Fraction(film.cost) + Fraction(web.cost) == pytest.approx(cost, rel=1e-6)
    assert Fraction(film.cost) == pytest.approx(cost * 3 / 4, rel=1e-6)


def test_weights_that_change_at_a_step_count_by_steps():
    pieces = [{"untilStep": 17000, "weights": {"film": 1, "web": 4}}, {"weights": {"film": 1, "web": 0}}]
    (film, web), _ = shares_of(manifest((None, None), pieces))
    assert film.share == pytest.approx(0.2 * 0.2 + 0.8)
    assert web.share == pytest.approx(0.2 * 0.8)
    assert film.weights == [1, 1]


def test_without_weights_nothing_is_known_before_the_data_is():
    (film, _), _ = shares_of(manifest((None, None)))
    assert (film.share, film.cost, film.weights) == (None, None, [])


def test_plan_shows_sources(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(manifest((3, 1))))
    assert print_plan(path, Assumptions(), "restricted", RunDefaults(), as_json=True) == 0
    first = json.loads(capsys.readouterr().out)["sources"][0]
    assert (first["source"], first["share"]) == ("film", 0.75)
    assert print_plan(path, Assumptions(), "restricted", RunDefaults(), as_json=False) == 0
    out = capsys.readouterr().out
    assert "Samples by source" in out
    assert "75.0 %" in out
