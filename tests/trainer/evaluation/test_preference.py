"""Blinded pairs, answers and win rates."""

from __future__ import annotations

import json
import math

import av
import numpy as np
import pytest

from videotrain_api.vocabulary import ExitCode
from videotrain_trainer import cli
from videotrain_trainer.data.video import decode, write_mp4
from videotrain_trainer.evaluation.preference import draw_pairs
from videotrain_trainer.evaluation.winrate import WinRate, wilson

NAMES = [f"video-{number}" for number in range(10)]


def run(capsys, *arguments):
    code = cli.main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def folders(tmp_path):
    """Two models' videos; the level of grey says whose."""
    for model, level in (("ours", 60), ("theirs", 200)):
        (tmp_path / model).mkdir()
        for name in NAMES:
            frames = [np.full((32, 32, 3), level, dtype=np.uint8)] * 4
            comment = json.dumps({"request": {"prompt": f"about {name} </script>"}, "model": model})
            write_mp4(frames, tmp_path / model / f"{name}.mp4", 24, comment=comment)
    return tmp_path


def compare(capsys, folders, *more):
    sides = [f"{model}={folders / model}" for model in ("ours", "theirs")]
    return run(capsys, "compare", *sides, "--output", folders / "page", "--quiet", *more)


def data_of(folders):
    page = (folders / "page/index.html").read_text()
    line = next(line for line in page.splitlines() if line.startswith("const data = "))
    return json.loads(line.removeprefix("const data = ").removesuffix(";").replace("<\\/", "</"))


def test_sides_are_balanced_and_depend_on_the_seed_alone():
    pairs = draw_pairs(NAMES, 1)
    assert pairs == draw_pairs(list(reversed(NAMES)), 1)
    assert sum(pair.left for pair in pairs) == 5
    assert sorted(pair.name for pair in pairs) == NAMES
    assert [pair.name for pair in pairs] != NAMES
    assert len({tuple((pair.name, pair.left) for pair in draw_pairs(NAMES, seed)) for seed in range(20)}) == 20


def test_the_page_hides_who_is_who_and_the_key_tells(capsys, folders):
    code, out, _ = compare(capsys, folders)
    assert code == 0
    assert "10 pairs" in out
    for path in (folders / "page").rglob("*"):
        assert "ours" not in path.relative_to(folders).as_posix()
        if path.is_file():
            assert b"ours" not in path.read_bytes(), path
            assert b"theirs" not in path.read_bytes(), path
    key = json.loads((folders / "page.key.json").read_text())
    for pair in data_of(folders)["pairs"]:
        _, frame = next(decode(folders / "page" / pair["left"]))
        assert key["left"][pair["pair"]] == ("ours" if frame.mean() < 130 else "theirs")
        _, frame = next(decode(folders / "page" / pair["right"]))
        assert key["left"][pair["pair"]] == ("theirs" if frame.mean() < 130 else "ours")


def test_prompts_come_from_the_files_and_cannot_end_the_script(capsys, folders):
    compare(capsys, folders)
    prompts = [pair["prompt"] for pair in data_of(folders)["pairs"]]
    assert sorted(prompts) == [f"about {name} </script>" for name in NAMES]
    assert (folders / "page/index.html").read_text().count("</script>") == 1


def test_videos_keep_their_pictures_and_lose_their_metadata(capsys, folders):
    compare(capsys, folders)
    with av.open(str(folders / "page/videos/001/left.mp4")) as container:
        assert "comment" not in container.metadata
    assert len(list(decode(folders / "page/videos/001/left.mp4"))) == 4


def test_a_key_within_the_page_and_models_of_one_name_are_refused(capsys, folders):
    code, _, err = compare(capsys, folders, "--key", folders / "page/key.json")
    assert code == int(ExitCode.CONFIG)
    assert "lies in the folder that raters get" in err
    code, _, err = run(capsys, "compare", f"a={folders}/ours", f"a={folders}/theirs", "--output", folders / "p")
    assert "both models are called 'a'" in err
    code, _, err = run(capsys, "compare", "ours", f"a={folders}/theirs", "--output", folders / "p")
    assert "write NAME=FOLDER" in err


def answers(folders, rater, wins, losses, ties, saved="2026-01-01", name=None):
    """A sheet in which the first model wins, loses and ties so many pairs."""
    key = json.loads((folders / "page.key.json").read_text())
    given, plan = {}, ["win"] * wins + ["loss"] * losses + ["tie"] * ties
    for pair, what in zip(key["left"], plan, strict=False):
        ours = "left" if key["left"][pair] == "ours" else "right"
        other = "right" if ours == "left" else "left"
        given[pair] = {"visual": {"win": ours, "loss": other, "tie": "tie"}[what]}
    path = folders / f"{name or rater}.json"
    path.write_text(json.dumps({"comparison": key["comparison"], "rater": rater, "saved": saved, "answers": given}))
    return path


def test_win_rates_are_those_counted_by_hand(capsys, folders):
    compare(capsys, folders)
    sheets = [answers(folders, "a", 6, 3, 1), answers(folders, "b", 8, 2, 0)]
    code, out, _ = run(capsys, "win-rate", *sheets, "--key", folders / "page.key.json", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["first"], found["raters"]) == ("ours", 2)
    visual = found["questions"]["visual"]
    assert (visual["wins"], visual["losses"], visual["ties"]) == (14, 5, 1)
    assert visual["rate"] == pytest.approx(14.5 / 20)
    assert visual["interval95"] == pytest.approx(wilson(14.5 / 20, 20))
    assert list(found["questions"]) == ["visual"]
    _, out, _ = run(capsys, "win-rate", *sheets, "--key", folders / "page.key.json")
    assert "ours against theirs, 2 raters" in out
    assert "72.5%" in out


def test_the_later_sheet_of_a_rater_counts(capsys, folders):
    compare(capsys, folders)
    early = answers(folders, "a", 0, 10, 0, saved="2026-01-01", name="early")
    late = answers(folders, "a", 10, 0, 0, saved="2026-01-02", name="late")
    for order in ([early, late], [late, early]):
        _, out, _ = run(capsys, "win-rate", *order, "--key", folders / "page.key.json", "--json")
        assert json.loads(out)["questions"]["visual"]["wins"] == 10


def test_foreign_and_damaged_answers_are_refused(capsys, folders):
    compare(capsys, folders)
    sheet = answers(folders, "a", 1, 0, 0)
    key = ["--key", folders / "page.key.json"]
    content = json.loads(sheet.read_text())
    for change, words in (
        ({"comparison": "x"}, "answers of comparison x"),
        ({"answers": {"999": {}}}, "pair '999' is not of this comparison"),
        ({"answers": {"001": {"visual": "both"}}}, "'both' is no answer"),
    ):
        sheet.write_text(json.dumps(content | change))
        code, _, err = run(capsys, "win-rate", sheet, *key)
        assert code == int(ExitCode.DATA)
        assert words in err
    sheet.write_text("{")
    _, _, err = run(capsys, "win-rate", sheet, *key)
    assert "cannot be read as JSON" in err


def test_the_interval_is_wilsons():
    # 7 of 10: centre (0.7 + z2/20) / (1 + z2/10), by hand with z2 = 3.8415.
    low, high = wilson(0.7, 10)
    assert (low, high) == (pytest.approx(0.39678, rel=1e-4), pytest.approx(0.89221, rel=1e-4))  # z2 has five digits
    assert wilson(0.0, 5)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(1.0, 5)[1] == pytest.approx(1.0)


def test_a_question_is_decided_when_the_interval_leaves_out_one_half():
    assert not WinRate("visual", 6, 4, 0).decided
    assert WinRate("visual", 60, 30, 10).decided
    assert WinRate("visual", 10, 60, 0).decided
    assert math.isclose(WinRate("visual", 1, 1, 2).rate, 0.5)
