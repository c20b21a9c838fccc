"""Whether the API server asks the webhook: `helm test` runs it in a pod."""

from __future__ import annotations

import asyncio
from typing import Final

from videotrain_api.schema import Json
from videotrain_api.vocabulary import API_VERSION, KIND, PLURAL
from videotrain_operator.kube.client import ApiError, KubeClient, connect

WEBHOOK: Final = "validate.videotrain.dev"
"""Name of the webhook in its configuration."""
ATTEMPTS: Final = 30
PAUSE_SECONDS: Final = 2.0
WRONG: Final[Json] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"generateName": "webhook-test-"},
    "spec": {
        "autoencoder": {"preset": "dc-ae-tiny", "weights": "s3://test/none.safetensors"},
        "model": {"preset": "mmdit-tiny-dcae"},
        "dataset": {"videos": "s3://test/none"},
        "storage": {"uri": "s3://test/none"},
        "stages": [{"name": "curate", "task": "curate", "curate": {}}],
        "pool": {"gpusPerNode": 0, "pricePerNodeHour": "1"},
        "podTemplate": {"spec": {"hostname": "none"}},
    },
}
"""A run that fits the CRD, whose rules cannot look into a pod template."""


class WebhookSilent(Exception):
    """The API server did not ask the webhook; the message says what it did instead."""


async def ask_webhook(namespace: str) -> str:
    """What the webhook says of a run that it has to refuse, and that is stored in no case.

    Args:
        namespace: in which the run would be.

    Raises:
        WebhookSilent: it was not asked, also a minute later: a registration takes a moment to be known.
    """
    async with connect() as client:
        for _ in range(ATTEMPTS):
            refusal, answer = await _answer(client, namespace)
            if refusal:
                return answer
            await asyncio.sleep(PAUSE_SECONDS)
    raise WebhookSilent(f"the webhook {WEBHOOK} was not asked about a wrong run: {answer}")


async def _answer(client: KubeClient, namespace: str) -> tuple[bool, str]:
    """Whether the webhook refused it, and in which words."""
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}"
    try:
        await client.raw("POST", path, WRONG, {"dryRun": "All"})
    except ApiError as error:
        # Its name stands in the error of one that cannot be reached, too.
        return f'admission webhook "{WEBHOOK}" denied the request' in str(error), str(error)
    return False, "the API server would have taken it"
