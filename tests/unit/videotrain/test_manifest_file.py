import io
import sys
from pathlib import Path

import pytest

from videotrain.manifest_file import ManifestFileError, read_manifest, sources

RUN = "apiVersion: videotrain.dev/v1alpha1\nkind: VideoTrainingRun\nmetadata:\n  name: demo\n"
SECRET = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: keys\n"


def written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path, text):
    with pytest.raises(ManifestFileError) as caught:
        read_manifest(written(tmp_path, text))
    return str(caught.value)


def test_a_file_holds_one_run_and_the_secrets_beside_it(tmp_path):
    found = read_manifest(written(tmp_path, f"---\n{RUN}---\n{SECRET}---\n"))
    assert found.run["metadata"] == {"name": "demo"}
    assert [s["metadata"]["name"] for s in found.secrets] == ["keys"]


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ManifestFileError, match=str(path)):
            read_manifest(path)


def test_a_syntax_error_is_shown_with_its_line(tmp_path):
    message = refusal(tmp_path, RUN + "spec: [1, 2\nnext: 3\n")
    assert "run.yaml:6" in message
    assert "not valid YAML" in message


def test_a_tab_for_indentation_is_shown_with_its_line(tmp_path):
    assert "run.yaml:4:1" in refusal(tmp_path, "kind: x\nmetadata:\n  name: x\n\tlabels: {}\n")


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"kind: \xff\xfe")
    with pytest.raises(ManifestFileError, match="UTF-8"):
        read_manifest(path)


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path):
    message = refusal(tmp_path, RUN + "spec:\n  seed: 1\n  image: a\n  seed: 2\n")
    assert "run.yaml:8" in message
    assert "'seed' is given twice, first in line 6" in message


def test_the_same_key_in_two_mappings_is_no_duplicate(tmp_path):
    assert (
        read_manifest(written(tmp_path, RUN + "spec:\n  a: {name: x}\n  b: {name: y}\n")).run["spec"]["b"]["name"]
        == "y"
    )


def test_anchors_and_merge_keys_work(tmp_path):
    text = RUN + "spec:\n  a: &base {x: 1}\n  b:\n    <<: *base\n    y: 2\n"
    assert read_manifest(written(tmp_path, text)).run["spec"]["b"] == {"x": 1, "y": 2}


def test_another_kind_is_refused_by_name(tmp_path):
    message = refusal(tmp_path, RUN + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n")
    assert "document 2" in message
    assert "'Deployment' ('web')" in message
    assert "VideoTrainingRun, Secret" in message


@pytest.mark.parametrize(("text", "count"), [(SECRET, 0), (f"{RUN}---\n{RUN}", 2), ("", 0)])
def test_exactly_one_run_is_needed(tmp_path, text, count):
    assert f"found {count} documents of kind VideoTrainingRun" in refusal(tmp_path, text)


def test_a_document_that_is_no_mapping_is_refused(tmp_path):
    assert "document 1: is a list" in refusal(tmp_path, "- a\n")


def test_another_api_version_is_refused_with_the_known_one(tmp_path):
    message = refusal(tmp_path, RUN.replace("v1alpha1", "v1"))
    assert "'videotrain.dev/v1'" in message
    assert "'videotrain.dev/v1alpha1'" in message


def test_python_tags_are_not_executed(tmp_path):
    assert "not valid YAML" in refusal(tmp_path, "kind: !!python/object/apply:os.system [echo]\n")


@pytest.mark.parametrize(("text", "value"), [("5e-5", 5e-5), ("2E3", 2000.0), ("-1.5e+2", -150.0), (".5e1", 5.0)])
def test_numbers_with_an_exponent_need_no_decimal_point_as_with_kubectl(tmp_path, text, value):
    path = tmp_path / "run.yaml"
    path.write_text(f"apiVersion: videotrain.dev/v1alpha1\nkind: VideoTrainingRun\nspec: {{seed: {text}}}\n")
    assert read_manifest(path).run["spec"]["seed"] == value


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("kind: Secret\n", "metadata.name of the Secret is missing"),
        ("kind: Secret\nmetadata: [keys]\n", "metadata.name of the Secret is missing"),
        ("kind: Secret\nmetadata: {name: 5}\n", "metadata.name of the Secret is missing"),
        ("kind: Secret\nmetadata: {name: keys}\ndata: [x]\n", "data of Secret 'keys': a mapping of texts"),
        ("kind: Secret\nmetadata: {name: keys}\ndata: {KEY: 'hidden!'}\n", "data['KEY'] of Secret 'keys': base64"),
        ("kind: Secret\nmetadata: {name: keys}\nstringData: {KEY: 12345}\n", "stringData['KEY'] of Secret 'keys'"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_without_showing_it(tmp_path, secret, problem):
    message = refusal(tmp_path, f"{RUN}---\napiVersion: v1\n{secret}")
    assert f"document 2: {problem}" in message
    assert "hidden" not in message
    assert "12345" not in message


def test_a_refused_line_is_shown_with_a_mark_below_the_place(tmp_path):
    message = refusal(tmp_path, RUN + "spec:\n  seed: 2026-11-29\n")
    assert message.splitlines()[1:] == ["      seed: 2026-11-29", "            ^"]


def test_a_file_that_never_ends_is_refused():
    with pytest.raises(ManifestFileError, match="/dev/zero: is larger than 3145728 bytes"):
        read_manifest(Path("/dev/zero"))


def test_each_run_of_a_file_is_a_source_of_its_own(tmp_path):
    other = RUN.replace("name: demo", "name: other")
    path = written(tmp_path, f"{RUN}---\n{SECRET}---\n{other}")
    found = sources([path], ["seed=7"])
    assert [str(source) for source in found] == [f"{path}: run 1", f"{path}: run 2"]
    manifests = [read_manifest(source) for source in found]
    assert [each.run["metadata"]["name"] for each in manifests] == ["demo", "other"]
    assert [each.run["spec"]["seed"] for each in manifests] == [7, 7]
    assert [len(each.secrets) for each in manifests] == [1, 1]


def test_standard_input_is_a_file_that_is_read_once(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(RUN.encode())))
    (source,) = sources([Path("-")])
    assert read_manifest(source).run == read_manifest(source).run
    assert str(source) == "standard input"


def test_a_file_that_cannot_be_read_is_a_source_and_refused_where_it_is_read(tmp_path):
    (source,) = sources([tmp_path / "none.yaml"])
    with pytest.raises(ManifestFileError, match="there is no such file"):
        read_manifest(source)
