"""The benchmark of one rank: its parts, its deadline, what is measured and what is modelled, and its rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def replica():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import rank_replica

        yield rank_replica
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def report(replica, tmp_path_factory):
    path = tmp_path_factory.mktemp("replica") / "tiny.json"
    threads = torch.get_num_threads()
    assert replica.main(["--tiny", "--seconds", "1e6", "--out", str(path)]) == 0
    torch.set_num_threads(threads)
    return json.loads(path.read_text())


def test_every_part_is_measured(replica, report):
    assert report["left_out"] == []
    assert report["machine"]["torch"] == torch.__version__
    assert {(one["layer"], one["pass"]) for one in report["products"]} >= {("linear2", "weight gradient")}
    assert {one["backend"] for one in report["attention"]} == {"CUDNN_ATTENTION", "FLASH_ATTENTION"}
    ways = {"compiled selective", "eager full"}
    rows = {"256px 5-33f x12", "768px 101-129f x2"}
    assert {(one["row"], one["way"], one["kind"]) for one in report["blocks"]} == {
        (row, way, kind) for row in rows for way in ways for kind in ("double", "single")
    }
    assert {(one["row"], one["way"]) for one in report["rows"]} == {(row, way) for row in rows for way in ways}
    assert [one["row"] for one in report["whole"]] == sorted(rows)
    assert all(one["update"]["ms"] > 0 for one in report["whole"])


def test_a_micro_batch_is_the_sum_of_blocks_and_edges_and_nothing_modelled(replica, report):
    shape = replica.sizes(tiny=True).shape
    edges = {one["row"]: one["ms"] for one in report["edges"]}
    for line in report["rows"]:
        ms = {
            one["kind"]: one["ms"] for one in report["blocks"] if (one["row"], one["way"]) == (line["row"], line["way"])
        }
        expected = shape.double_blocks * ms["double"] + shape.single_blocks * ms["single"] + edges[line["row"]]
        assert line["micro_batch_s"] == pytest.approx(expected / 1e3)
        assert {name for name in line if not name.startswith("modelled_")} == {
            "row",
            "way",
            "samples",
            "degree",
            "micro_batch_s",
        }
        alone = line["degree"] == 1
        assert (line["modelled_exchange_s"] == 0) == alone


def test_no_part_is_begun_when_the_time_is_over(replica, tmp_path):
    path = tmp_path / "late.json"
    assert replica.main(["--tiny", "--seconds", "0", "--out", str(path)]) == 0
    late = json.loads(path.read_text())
    assert late["blocks"] == [] and late["rows"] == [] and "whole" not in late
    assert late["left_out"] == [
        "whole model, 256px 5-33f x12",
        "whole model, 768px 101-129f x2",
        "8 of 8 blocks",
    ]


def test_the_full_size_has_the_rows_and_ranks_of_the_recipe(replica):
    full = replica.sizes(tiny=False)
    assert len(full.rows) == 12
    last = full.rows[-1]
    assert (last.recipe.published.name, last.image_tokens + last.text_tokens) == ("768px 101-129f", 76_544)
    for row in full.rows:
        table = row.recipe.published
        assert row.samples * row.micro_batches * table.context_parallel >= table.batch_size * row.degree
        assert [tokens * row.degree for tokens in row.own_tokens] == [row.image_tokens, 512]


def test_a_rank_of_a_group_attends_with_its_heads_to_all_tokens(replica):
    from replica.blocks import local_exchange, rank_attention

    row = replica.sizes(tiny=True).rows[-1]
    seen, real = [], torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v):
        seen.append(q.shape)
        return real(q, k, v)

    tokens = sum(row.own_tokens)
    q, k, v = torch.randn(3, 1, 4, tokens, 16)
    with pytest.MonkeyPatch.context() as patch, local_exchange():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        out = rank_attention(row)(q, k, v)
    assert row.degree == 2 and out.shape == q.shape
    assert seen == [(1, 4 // row.degree, tokens * row.degree, 16)]


def facts(backward, products, blocks, whole):
    row = {"row": "r", "way": "compiled selective", "micro_batch_s": blocks}
    return {
        "attention": [
            {"backend": "CUDNN_ATTENTION", "backward_tflops": 999.0},
            {"backend": "FLASH_ATTENTION", "backward_tflops": 100.0},
            {"backend": "CUDNN_ATTENTION", "backward_tflops": backward},
        ],
        "products": [{"tflops": products - 10}, {"tflops": products + 10}],
        "rows": [row],
        "whole": [{"row": "r", "micro_batch": {"ms": 1e3 * whole}}],
    }


@pytest.mark.parametrize(
    ("measured", "broken"),
    [
        (facts(500.0, 700.0, 1.02, 1.0), []),
        (facts(449.0, 700.0, 1.0, 1.0), [0]),
        (facts(500.0, 619.0, 1.0, 1.0), [1]),
        (facts(500.0, 700.0, 0.96, 1.0), [2]),
    ],
)
def test_a_rule_that_is_broken_says_what_to_do(replica, measured, broken):
    found = replica.verdicts(measured)
    assert [number for number, verdict in enumerate(found) if not verdict["holds"]] == broken
    assert all(verdict["then"] for verdict in found)


def test_without_a_gpu_only_the_tiny_one_runs(replica, tmp_path, capsys):
    assert replica.main(["--out", str(tmp_path / "none.json")]) == 2
    assert "--tiny" in capsys.readouterr().err
