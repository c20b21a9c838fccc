import base64
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain.report import sections, write_report
from videotrain.report.curves import MOST_POINTS, samples_per_second, smooth, stage_curves, thin
from videotrain.report.markup import element, table, text
from videotrain.report.summary import write_summary
from videotrain.report.timeline import timeline
from videotrain.report.workdir import read_records
from videotrain_api.records import Measures
from videotrain_api.resource.status import RunStatus

VOID = {"meta", "br", "link", "img", "hr", "input"}


def report_of(run):
    write_summary(run.workdir, run.run(), run.objects)
    return write_report(run.workdir, run.run()).read_text()


class Outline(HTMLParser):
    """Checks that tags are balanced and collects what a page loads and says."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.loads, self.said = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.loads += [v for name, v in attrs if name in ("src", "href", "srcset", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.said.append(data)


def figures_of(page):
    data = re.search(r'<script id="figures" type="application/json">(.*?)</script>', page, re.S)[1]
    return json.loads(data)


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(finished):
    outline = Outline(report_of(finished))
    assert outline.open == []
    assert outline.loads
    assert all(source.startswith("data:video/mp4;base64,") for source in outline.loads)


def test_the_page_tells_the_numbers_of_the_summary(finished):
    said = " ".join(Outline(report_of(finished)).said)
    for expected in (
        "demo",
        "Succeeded",
        "0 repeated, 0 lost",
        "176.469136",
        "120.123456",
        "NodeLost",
        "moov atom not found",
    ):
        assert expected in said
    assert "a worker process stands for a GPU" in said


def test_prompts_cannot_break_out_of_the_page(finished):
    page = report_of(finished)
    assert "bikes </script>" not in page
    assert 'bikes </script> pass by, "slowly" & <b>bold</b>' in Outline(page).said


def test_texts_in_the_figures_cannot_close_their_script(finished):
    finished.generations[3]["reason"] = "</script><b>"
    page = report_of(finished)
    assert "</script><b>" not in page
    assert figures_of(page)["timeline"]["changes"][3]["reason"] == "</script><b>"


def test_a_small_video_is_inside_the_page_and_a_large_one_beside_it(finished, monkeypatch):
    inline = base64.b64encode(b"sampled bytes").decode()
    assert inline in report_of(finished)
    monkeypatch.setattr(sections, "INLINE_BYTES", 3)
    page = report_of(finished)
    assert inline not in page
    assert 'src="samples/sample-0001.mp4"' in page


def test_a_run_without_training_has_a_page_without_curves(synthetic):
    stage = synthetic.stage("curate", "curate")
    synthetic.generation(stage, "Started", [0], 1, 3)
    page = report_of(synthetic)
    assert figures_of(page)["curves"] == []
    assert "Loss and throughput" not in Outline(page).said


def test_a_run_that_never_started_has_a_small_page(synthetic):
    synthetic.phase = "Failed"
    page = report_of(synthetic)
    assert Outline(page).open == []
    assert len(page) < 50_000  # without the plotting library


def test_without_a_summary_there_is_no_report(synthetic):
    with pytest.raises(FileNotFoundError):
        write_report(synthetic.workdir, synthetic.run())


def failed_with(reason, message):
    return {
        "type": "Failed", "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-23T10:05:00Z",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("RestartLimit", "Mend the fault that is named, or raise spec.failurePolicy.limits."),
        ("CONFIG", "Correct the field that is named in a new run"),
        ("Unheard", "Read the end of the log of the worker that is named."),
    ],
)
def test_a_failed_run_tells_why_and_what_to_do(finished, reason, advice):
    (finished.workdir / "logs").mkdir()
    for pod in (0, 1):
        (finished.workdir / f"logs/demo-w{pod}-12345678.log").write_text(
            "long before\n" + "line\n" * 30 + f"end of <w{pod}>\n"
        )
    finished.phase = "Failed"
    body = finished.run()
    body["status"]["conditions"] = [failed_with(reason, "worker of pod demo-w1 failed: <oh>")]
    body["status"]["generations"][-1] |= {"members": ["demo-w0", "demo-w1"], "endCause": "application"}
    write_summary(finished.workdir, body, finished.objects)
    page = write_report(finished.workdir, body).read_text()
    assert "/demo/failures/" in page and "<code>videotrain logs demo --failed</code>" in page
    outline = Outline(page)
    said = " ".join(outline.said)
    assert outline.open == []
    assert all(text in said for text in ("Why it failed", reason, "demo-w1 failed: <oh>", advice, "end of <w1>"))
    assert "long before" not in said and "end of <w0>" not in said
    assert [link for link in outline.loads if link.startswith("logs/")] == [
        f"logs/demo-w{pod}-12345678.log" for pod in (1, 0, 1)
    ]


def test_the_manifest_is_in_the_page_without_what_the_server_wrote(finished):
    said = " ".join(Outline(report_of(finished)).said)
    assert "Manifest" in said and "pricePerGpuHour: '2.00'" in said
    assert "uid: u-1" not in said and "Why it" not in said


def test_lost_steps_are_drawn_apart_from_the_kept_ones(finished):
    curves = stage_curves("train-64px", read_records(finished.workdir))
    assert curves["loss"]["x"] == list(range(1, 121))
    assert [branch["x"] for branch in curves["lost"]] == [list(range(41, 48))]
    assert curves["changes"] == [[3, 1], [4, 41], [5, 81]]
    rates = {part["generation"]: (part["workers"], set(part["y"])) for part in curves["throughput"]}
    assert rates == {3: (4, {8.0}), 4: (2, {5.0}), 5: (4, {8.0})}


def test_the_timeline_shows_who_was_in_the_world_and_what_was_lost(finished):
    run = finished.run()
    drawn = timeline(run, RunStatus.from_wire(run["status"]), read_records(finished.workdir), None)
    assert drawn["rows"] == ["w0", "w1"]
    third = [(b["row"], b["kind"], (b["to"] - b["from"]) / 1000) for b in drawn["bars"] if b["generation"] == 3]
    # 3 s start, 40 kept steps and 7 lost ones of 0.5 s, 1 s until the next roster.
    expected = [("starting", 3.0), ("work", 20.0), ("lost", 4.5)]
    assert third == [(row, kind, seconds) for row in ("w0", "w1") for kind, seconds in expected]
    assert {b["row"] for b in drawn["bars"] if b["generation"] == 4} == {"w0"}
    assert [c["reason"] for c in drawn["changes"]][3:5] == ["NodeLost", "Grow"]


def test_a_generation_that_still_runs_ends_at_the_newest_sign_of_life(synthetic):
    stage = synthetic.stage("train", "train", 9)
    entry = synthetic.generation(stage, "Started", [0], 1, 3)
    for name in ("endedAt", "endCause"):
        del entry[name]
    run, records = synthetic.run(), read_records(synthetic.workdir)
    last = records.generations[0].steps[-1].finished_at
    (start, work) = timeline(run, RunStatus.from_wire(run["status"]), records, last)["bars"]
    assert (start["kind"], work["kind"], work["to"]) == ("starting", "work", round(last.timestamp() * 1000))


def test_pods_are_sorted_by_number(synthetic):
    stage = synthetic.stage("train", "train", 1)
    synthetic.generation(stage, "Started", [10, 2, 0], 1, 1)
    run = synthetic.run()
    drawn = timeline(run, RunStatus.from_wire(run["status"]), read_records(synthetic.workdir), None)
    assert drawn["rows"] == ["w0", "w2", "w10"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=500), st.integers(4, 60))
def test_thinning_keeps_ends_extremes_and_order(values, most):
    points = [(float(i), v) for i, v in enumerate(values)]
    kept = thin(points, most)
    assert len(kept) <= max(most, 4)
    assert set(kept) <= set(points)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert min(v for _, v in kept) == min(values)
    assert max(v for _, v in kept) == max(values)


def test_long_runs_are_thinned():
    points = [(float(i), float(i % 97)) for i in range(100_000)]
    assert len(thin(points)) <= MOST_POINTS
    assert len(thin(smooth(points, 4000))) <= MOST_POINTS


def test_smoothing_averages_around_every_point():
    assert smooth([(1, 0.0), (2, 3.0), (3, 6.0), (4, 9.0)], 3) == [(1, 1.5), (2, 3.0), (3, 6.0), (4, 7.5)]
    assert smooth([(1, 5.0)], 1) == [(1, 5.0)]


def test_throughput_of_many_steps_is_averaged(synthetic):
    stage = synthetic.stage("train", "train", 2500)
    synthetic.generation(stage, "Started", [0], 1, 2500, seconds=0.25)
    rates = samples_per_second(read_records(synthetic.workdir).generations[0].steps)
    assert len(rates) <= MOST_POINTS
    assert {rate for _, rate in rates} == {16.0}


def test_markup_escapes_everything_that_is_not_markup():
    assert text('<a href="x">') == "&lt;a href=&quot;x&quot;&gt;"
    assert element("p", text("a & b"), title='"x"') == '<p title="&quot;x&quot;">a &amp; b</p>'
    assert "<td>&lt;i&gt;</td>" in table(["h"], [["<i>"]])


def test_stages_have_prices_and_waste_has_causes(finished):
    run = finished.run()
    name = finished.stages[-1]["name"]
    stage = {
        "name": name,
        "totalMicros": 7_000_000,
        "total": "7.00",
        "heldGpuMicroseconds": 1,
        "heldNodeMicroseconds": 1,
    }
    prices = {"perThousandSteps": "58.333333", "perThousandVideoSeconds": "44.5", "perBillionTokens": "71234.5"}
    number = run["status"]["generations"][-1]["number"]
    spent = {"number": number, "totalMicros": 4_200_042, "total": "4.2", "wastedMicros": 1_300_013, "wasted": "1.3"}
    run["status"]["cost"] |= {
        "stages": [stage | prices],
        "generations": [spent],
        "wasteMicrosByCause": {"infrastructure": 1_300_013, "start": 5},
    }
    write_summary(finished.workdir, run, finished.objects)
    page = write_report(finished.workdir, run).read_text()
    for told in ("7.00", "58.33", "44.50", "71,234.50", "4.200042", "1.300013", "infrastructure"):
        assert told in page, told


def test_what_stages_measured_stands_beside_each_other():
    first = Measures(clips=2, psnr=30.0, validation_loss=0.5, loss_by_bucket={"64px/8f/1:1": 0.5})
    second = Measures(videos=3, clip_psnr=24.0, vbench={"scene": 0.25}, pairs=3, loss_by_time={"0.25": 0.125})
    stages = [{"name": "one", "evaluation": first.model_dump()}, {"name": "two", "evaluation": second.model_dump()}]
    page = sections.evaluation_section({"stages": [*stages, {"name": "train", "evaluation": None}]})
    Outline(page)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page) if "<td" in row]
    assert rows == [
        ["one", "2", "", "30", "", "0.5"],
        ["two", "", "3", "", "24", ""],
        ["held-out loss 64px/8f/1:1", "0.5", ""],
        ["held-out loss at 0.25", "", "0.125"],
        ["VBench scene", "", "0.25"],
        ["two", "3", "two/preference/index.html", "two/preference.key.json"],
    ]
    assert "SSIM" not in page, "nobody measured it"
    assert sections.evaluation_section({"stages": [{"name": "train", "evaluation": None}]}) == ""
