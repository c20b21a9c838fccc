"""`videotrain check --cluster`, asked of an API server over real HTTP that answers as it is told."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from videotrain.commands import check_cluster
from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.errors import UsageError
from videotrain.manifest_file import ManifestFile
from videotrain_api.checks import Finding
from videotrain_api.validation import parse_run

GOOD = yaml.safe_load((Path(__file__).parents[2] / "videotrain_api/good.yaml").read_text())
NODE = {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1k", "memory": "1Pi", "nvidia.com/gpu": "8"}}}
Answers = dict[str, tuple[int, dict[str, Any]]]
"""Status and body by the end of a path."""
FINE: Answers = {
    "videotrainingruns": (201, {}),
    "s3": (200, {"data": {"AWS_ACCESS_KEY_ID": "YQ==", "AWS_SECRET_ACCESS_KEY": "Yg==", "icon": "/w=="}}),
    "nodes": (200, {"metadata": {"resourceVersion": "1"}, "items": [NODE]}),
}


@asynccontextmanager
async def server(answers: Answers, folder: Path, namespace: str = "") -> AsyncIterator[tuple[ClusterChoice, list[str]]]:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        status, body = answers[request.path.rsplit("/", 1)[-1]]
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    context = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
        "contexts": [{"name": "c", "context": context}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    try:
        yield ClusterChoice(kubeconfig=str(path)), asked
    finally:
        await runner.cleanup()


async def ask(where: ClusterChoice) -> tuple[dict[str, Finding], dict[str, str]]:
    manifest = copy.deepcopy(GOOD)
    manifest["metadata"].pop("namespace", None)
    manifest["spec"]["storage"]["credentialsSecret"] = "s3"
    findings, keys = await check_cluster._asked(parse_run(manifest), ManifestFile(manifest), where)
    return {finding.check: finding for finding in findings}, keys


async def test_what_a_manifest_does_not_name_is_the_namespace_of_the_context(tmp_path: Path) -> None:
    async with server(FINE, tmp_path, "video") as (where, asked):
        found, keys = await ask(where)
    assert (found["admission"].verdict, found["secret"].verdict) == ("ok", "ok")
    assert "none of" not in found["nodes"].message  # 1Pi of memory is enough
    assert keys == {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert "/api/v1/namespaces/video/secrets/s3" in asked


async def test_what_is_missing_or_taken_is_wrong(tmp_path: Path) -> None:
    answers = FINE | {"videotrainingruns": (409, {"message": 'runs "good" already exists'}), "s3": (404, {})}
    async with server(answers, tmp_path) as (where, _):
        found, _ = await ask(where)
    assert (found["admission"].verdict, found["admission"].path) == ("wrong", "metadata.name")
    assert found["secret"].verdict == "wrong" and "there is no such Secret" in found["secret"].message
    async with server(FINE | {"videotrainingruns": (404, {})}, tmp_path) as (where, _):
        found, _ = await ask(where)
    assert (found["admission"].verdict, found["admission"].path) == ("wrong", "metadata.namespace")


@pytest.mark.parametrize("status", [400, 403, 418])
async def test_a_server_that_shows_no_nodes_leaves_them_open(status: int, tmp_path: Path) -> None:
    async with server(FINE | {"nodes": (status, {"message": "not now"})}, tmp_path) as (where, _):
        found, _ = await ask(where)
    assert found["nodes"].verdict == "open"
    assert ("you may not list nodes" if status == 403 else "not now") in found["nodes"].message


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_server_leaves_admission_open(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videotrain_operator.kube.client.RETRIES", 1)
    busy = (status, {"message": "come back later"})
    async with server(FINE | {"videotrainingruns": busy, "nodes": busy}, tmp_path) as (where, _):
        found, _ = await ask(where)
    for check in ("admission", "nodes"):
        assert (found[check].verdict, "come back later" in found[check].message) == ("open", True)


async def test_a_server_that_is_not_there_or_knows_nobody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videotrain_operator.kube.client.RETRIES", 1)
    async with server(FINE | {"videotrainingruns": (401, {})}, tmp_path) as (where, _):
        with pytest.raises(UsageError, match="the cluster cannot be asked: post"):
            await ask(where)
    with pytest.raises(UsageError, match=r"cannot connect to 127\.0\.0\.1:\d+: "):
        await ask(where)


@pytest.mark.parametrize("text", ["a: [", "- 1", "clusters: 3\ncontexts: 4\n", "text"])
async def test_a_kubeconfig_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"kubeconfig|configuration"):
        await ask(ClusterChoice(kubeconfig=str(path)))


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("1Pi", 2**50), ("2Ei", 2**61), ("3P", 3e15), ("1E", 1e18), ("5u", 5e-6), ("7n", 7e-9), ("250m", 0.25),
     ("1.5Gi", 1.5 * 2**30), ("2k", 2000), ("1e3", 1000), ("8", 8)],
)  # fmt: skip
def test_quantities(quantity: str, number: float) -> None:
    assert check_cluster._number(quantity) == pytest.approx(number, rel=1e-15)
