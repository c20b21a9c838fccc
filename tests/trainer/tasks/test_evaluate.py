"""The evaluate stage: everything measured once, whoever stops it when."""

import json
import shutil
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from support.evaluate_stage import evaluate_config, fill, measure_as_rank, store_weights
from support.sampling import AUTOENCODER, Drain, context_of

from videotrain_api.records import EvaluationRecord, StartedRecord, StepRecord
from videotrain_api.resource.evaluation import OF_ANY_VIDEOS, Preference, Reconstruction, VBench
from videotrain_api.storage.artifacts import MeasuredRows, VideosIndex
from videotrain_trainer.checksums import sealed_json, unsealed_json
from videotrain_trainer.data.video import decode, write_mp4
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.evaluation.autoencoder import Evaluation
from videotrain_trainer.evaluation.metrics import averaged, described
from videotrain_trainer.evaluation.videos import items_of
from videotrain_trainer.networks.build import load_autoencoder
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import evaluate, evaluate_videos
from videotrain_trainer.tasks.evaluate_videos import clip_frames, read_index, vbench_names

pytestmark = pytest.mark.usefixtures("alone")
ALL = ["clips/a", "clips/b", "clips/c", "videos/0001", "videos/0002"]


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path)


def table_in(folder):
    return MeasuredRows.from_wire(unsealed_json((folder / "run/measure/evaluation.json").read_bytes())).rows


def measured(context):
    """Steps that this generation took, and the step that it began behind."""
    (started,) = (record for record in context.records if isinstance(record, StartedRecord))
    return started.resumed_step, [record.step for record in context.records if isinstance(record, StepRecord)]


def test_clips_and_videos_are_measured_as_the_command_measures_them(folder):
    context = context_of(folder, evaluate_config(folder))
    assert evaluate.run(context) == "completed"
    rows = table_in(folder)
    assert list(rows) == ALL
    store = ObjectStore.for_storage(context.config.storage)
    module = load_autoencoder(AUTOENCODER, str(folder / "autoencoder.safetensors")).eval()
    items = items_of(store, str(folder / "run/clips"), None, (64, 64), 8, None)
    # The same functions on the same CPU; only the order of additions may differ.
    for name, row in Evaluation(module, None).rows(items, lambda *_: None):
        assert rows[f"clips/{name}"] == pytest.approx(row, rel=1e-5)
    frames = torch.stack([torch.from_numpy(f) for _, f in decode(folder / "run/draw/videos/0002.mp4")]).numpy()
    assert rows["videos/0002"] == pytest.approx(described(frames), rel=1e-9)
    (told,) = (record.measures for record in context.records if isinstance(record, EvaluationRecord))
    assert (told.clips, told.videos, told.lpips) == (3, 2, None)
    assert told.psnr == pytest.approx(averaged([rows[name] for name in ALL[:3]])["psnr"])
    assert dict(told.means()).keys() == {"psnr", "ssim", "flicker", "motion", "sharpness"}


def test_a_stopped_stage_goes_on_where_it_was(folder):
    config = evaluate_config(folder)
    first = context_of(folder, config, drain=Drain(2))
    assert evaluate.run(first) == "drained"
    assert measured(first) == (0, [1, 2])
    assert not (folder / "run/measure/evaluation.json").exists()
    second = context_of(folder, config, generation=2)
    assert evaluate.run(second) == "completed"
    assert measured(second) == (2, [3, 4, 5])
    again = context_of(folder, config, generation=3)
    assert evaluate.run(again) == "completed"
    assert measured(again) == (5, [])
    assert any(isinstance(record, EvaluationRecord) for record in again.records), "each that gets there tells"


def test_rows_of_other_weights_videos_and_tasks_are_measured_again(folder):
    context = context_of(folder, evaluate_config(folder))
    evaluate.run(context)
    before = table_in(folder)
    store_weights(folder, seed=5)
    context = context_of(folder, evaluate_config(folder), generation=2)
    evaluate.run(context)
    assert measured(context) == (0, [1, 2, 3, 4, 5])
    assert table_in(folder)["clips/a"] != before["clips/a"]
    (folder / "run/draw/videos/0001.mp4").write_bytes((folder / "run/draw/videos/0002.mp4").read_bytes())
    context = context_of(folder, evaluate_config(folder), generation=3)
    evaluate.run(context)
    assert measured(context) == (0, [1, 2, 3, 4, 5])
    assert table_in(folder)["videos/0001"] == table_in(folder)["videos/0002"]
    fewer = evaluate_config(folder, reconstruction=Reconstruction(resolution="64px", frames=8, clips=1))
    evaluate.run(context_of(folder, fewer, generation=4))
    assert list(table_in(folder)) == ["clips/a", "videos/0001", "videos/0002"]


def test_damaged_rows_are_measured_again(folder):
    evaluate.run(context_of(folder, evaluate_config(folder)))
    before = table_in(folder)
    damaged = folder / "run/measure/rows/00000002-00000002.g000001.json"
    damaged.write_bytes(damaged.read_bytes().replace(b"clips/b", b"clips/d"))
    context = context_of(folder, evaluate_config(folder), generation=2)
    evaluate.run(context)
    assert measured(context) == (4, [5])
    assert table_in(folder) == before


def test_what_is_missing_is_named(folder):
    with pytest.raises(DataError, match="none of 4 clips has 16 frames"):
        evaluate.run(
            context_of(folder, evaluate_config(folder, reconstruction=Reconstruction(resolution="64px", frames=16)))
        )
    (folder / "run/draw/videos.json").unlink()
    with pytest.raises(DataError, match=r"videos\.json: missing; the sample stage has not finished there"):
        evaluate.run(context_of(folder, evaluate_config(folder)))


def test_what_weights_make_of_nothing_is_told_with_the_clip(folder, monkeypatch):
    monkeypatch.setattr(evaluate_videos, "described", lambda _: {"motion": float("nan")})
    with pytest.raises(DataError, match="videos/0001: motion cannot be calculated"):
        evaluate.run(context_of(folder, evaluate_config(folder, reconstruction=None)))


def test_two_ranks_share_the_work_and_one_tells(folder):
    evaluate.run(context_of(folder, evaluate_config(folder)))
    expected = table_in(folder)
    for path in [*(folder / "run/measure/rows").iterdir(), folder / "run/measure/evaluation.json"]:
        path.unlink()
    mp.spawn(measure_as_rank, args=(folder,), nprocs=2)
    assert list(table_in(folder)) == ALL
    for name, row in table_in(folder).items():
        assert row == pytest.approx(expected[name], rel=1e-4), name  # another process may add in another order
    kinds = [json.loads((folder / f"kinds-{rank}.json").read_text()) for rank in (0, 1)]
    assert [told.count("evaluation") for told in kinds] == [1, 0]
    assert [told.count("step") for told in kinds] == [3, 3]


@pytest.fixture
def vbench(folder, monkeypatch):
    """A package that answers as VBench does, and a cache that holds something."""
    package = folder / "site/vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_VBENCH)
    (package / "VBench_full_info.json").write_text("[]")
    (folder / "cache").mkdir()
    (folder / "cache/model.pth").write_bytes(b"1")
    monkeypatch.syspath_prepend(str(folder / "site"))
    for name in ("VBENCH_CACHE_DIR", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    yield VBench(weights=f"file://{folder}/cache")
    sys.modules.pop("vbench", None)


FAKE_VBENCH = """
import json, pathlib

class VBench:
    def __init__(self, device, info, output):
        self.output = pathlib.Path(output)

    def evaluate(self, videos_path, name, dimension_list, local, mode, prompt_list=()):
        files = sorted(path.name for path in pathlib.Path(videos_path).iterdir())
        assert mode == "vbench_standard" or prompt_list == dict.fromkeys(files, "A rabbit.")
        score = {dimension: [len(files) / 10 + len(dimension) / 1000, []] for dimension in dimension_list}
        (self.output / f"{name}_eval_results.json").write_text(json.dumps(score))
"""


def measures_in(context):
    (told,) = (record.measures for record in context.records if isinstance(record, EvaluationRecord))
    return told


def test_vbench_scores_each_dimension_once(folder, vbench):
    context = context_of(folder, evaluate_config(folder, reconstruction=None, vbench=vbench))
    assert evaluate.run(context) == "completed"
    rows = table_in(folder)
    assert {name for name in rows if name.startswith("vbench/")} == {f"vbench/{each}" for each in OF_ANY_VIDEOS}
    told = measures_in(context)
    assert told.vbench == {each: pytest.approx(0.2 + len(each) / 1000) for each in OF_ANY_VIDEOS}
    assert dict(told.means())["vbench imaging_quality"] == told.vbench["imaging_quality"]
    assert not list((folder / "scratch").glob("vbench-*"))


def test_vbench_that_is_not_there_is_refused_before_anything_is_measured(folder, vbench):
    config = evaluate_config(folder, reconstruction=None, vbench=VBench(weights=f"file://{folder}/none"))
    with pytest.raises(ConfigError, match=r"evaluate\.vbench: .*none holds nothing"):
        evaluate.run(context_of(folder, config))
    assert not (folder / "run/measure").exists()


def test_videos_of_vbenchs_prompts_are_named_as_it_finds_them(folder):
    videos = read_index(evaluate_config(folder), ObjectStore.for_storage(evaluate_config(folder).storage)).videos
    assert vbench_names(videos, suite=True) == ["A rabbit.-0.mp4", "A rabbit.-1.mp4"]
    assert vbench_names(videos, suite=False) == ["0001.mp4", "0002.mp4"]


def test_people_are_asked_on_a_page_that_names_no_model(folder):
    others = folder / "others"
    others.mkdir()
    shutil.copy(folder / "run/draw/videos/0002.mp4", others / "0002.mp4")
    preference = Preference(videos=f"file://{others}", name="theirs")
    context = context_of(folder, evaluate_config(folder, reconstruction=None, preference=preference))
    assert evaluate.run(context) == "completed"
    assert measures_in(context).pairs == 1
    page = folder / "run/measure/preference"
    assert sorted(path.relative_to(page).as_posix() for path in page.rglob("*.*")) == [
        "index.html", "videos/001/left.mp4", "videos/001/right.mp4"
    ]  # fmt: skip
    assert "theirs" not in (page / "index.html").read_text()
    key = json.loads((folder / "run/measure/preference.key.json").read_text())
    assert key["models"] == ["default/test", "theirs"]
    shutil.copy(others / "0002.mp4", others / "unknown.mp4")
    (others / "0002.mp4").unlink()
    with pytest.raises(DataError, match="no video of a name of ours, such as 0001"):
        evaluate.run(context_of(folder, evaluate_config(folder, reconstruction=None, preference=preference)))


def test_videos_that_were_drawn_from_clips_are_compared_with_them(folder):
    """With every second frame of a clip of 30 fps, as training thins it out."""
    store = ObjectStore.for_storage(evaluate_config(folder).storage)
    index = read_index(evaluate_config(folder), store)
    drawn, other = index.videos
    content = np.random.default_rng(5).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    clip = folder / "run/clips/clips/fast.mp4"
    write_mp4([*content], clip, Fraction(30))
    drawn = drawn.model_copy(update={"reference_clip": clip.as_uri(), "condition": "i2v_head"})
    frames = clip_frames(store, drawn)
    assert len(frames) == 6
    assert np.array_equal(frames, np.stack([frame for _, frame in decode(clip, (64, 64))])[::2])
    write_mp4([*frames[:1], *frames[1:] // 2], folder / "run/draw/videos/0001.mp4", Fraction(15))
    sealed = sealed_json(VideosIndex(videos=[drawn, other]).to_wire())
    (folder / "run/draw/videos.json").write_bytes(sealed)
    context = context_of(folder, evaluate_config(folder, reconstruction=None))
    assert evaluate.run(context) == "completed"
    rows = table_in(folder)
    assert rows["videos/0001"]["first_frame_psnr"] > rows["videos/0001"]["clip_psnr"] + 3
    assert "clip_psnr" not in rows["videos/0002"]
    assert measures_in(context).clip_psnr == rows["videos/0001"]["clip_psnr"]
