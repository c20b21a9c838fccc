"""Components: `torchx run -s videotrain vtr.run|vtr.finetune|vtr.sample`.

TorchX takes every function of this module for a component and reads its annotations as they are when it is imported.
So only modules are imported here, and annotations are no strings.
"""

from typing import List  # noqa: UP035 - TorchX 0.7 knows no list[str]

from torchx import specs
from torchx.specs import AppDef

from videotrain.torchx import app, documents


def run(manifest: str, name: str = "", namespace: str = "", h: str = "") -> AppDef:
    """A training run, as its manifest says.

    Args:
        manifest: YAML file with one VideoTrainingRun
        name: name of the run, instead of the manifest's
        namespace: namespace of the run, instead of the manifest's
        h: named resource of the nodes, such as videotrain_h200, instead of the manifest's pool
    """
    nodes = specs.resource(h=h) if h else None
    return app.app_of(documents.placed(documents.document_of(manifest), name, namespace, nodes))


def finetune(
    manifest: str,
    videos: str,
    storage: str = "",
    weights: str = "",
    name: str = "",
    namespace: str = "",
    steps: int = 0,
    rank: int = 0,
    h: str = "",
) -> AppDef:
    """The recipe of a manifest on a folder of own videos.

    Args:
        manifest: YAML file with one VideoTrainingRun that curates, encodes and trains
        videos: URI of the folder with videos, and with captions beside them
        storage: URI under which everything is written, instead of the manifest's
        weights: URI of the transformer to begin from, instead of the manifest's
        name: name of the run, instead of the manifest's
        namespace: namespace of the run, instead of the manifest's
        steps: optimizer steps of every train stage, instead of the manifest's
        rank: rank of a LoRA adapter that is trained instead of the model
        h: named resource of the nodes, such as videotrain_h200, instead of the manifest's pool
    """
    nodes = specs.resource(h=h) if h else None
    document = documents.on_own_videos(documents.document_of(manifest), videos, storage, weights, steps, rank)
    return app.app_of(documents.placed(document, name, namespace, nodes))


def sample(manifest: str, prompt: List[str], name: str = "", namespace: str = "", h: str = "") -> AppDef:  # noqa: UP006
    """Videos drawn from what a finished run has trained.

    Args:
        manifest: YAML file of the finished run
        prompt: what to draw; commas separate several
        name: name of the new run; the manifest's with -sample if not given
        namespace: namespace of the new run, instead of the manifest's
        h: named resource of the nodes, such as videotrain_h200, instead of the manifest's pool
    """
    nodes = specs.resource(h=h) if h else None
    document = documents.samples_of(documents.document_of(manifest), prompt, name)
    return app.app_of(documents.placed(document, "", namespace, nodes))
