"""Every setting of the operator process, from flags and the environment."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from importlib.util import find_spec
from typing import Any, Final, cast, get_args

from videotrain_api.render.network import NetworkRules
from videotrain_api.resource.bill_storage import BillStorage
from videotrain_api.resource.prices import PriceList
from videotrain_api.rules.pod_security import DEFAULT_POD_POLICY, PodPolicy
from videotrain_operator.planner.cluster_rules import ClusterRules

ENV_PREFIX: Final = "VIDEOTRAIN_OPERATOR_"


class SettingsError(Exception):
    """A flag or variable is wrong; the message names it, its value and what is allowed."""


def _setting(default: Any, help_: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help_, **more})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings. A field `lease_seconds` is the flag --lease-seconds and the variable VIDEOTRAIN_OPERATOR_LEASE_SECONDS.

    A flag goes before the variable, the variable before the default.
    """

    namespaces: tuple[str, ...] = _setting((), "Namespaces to serve, separated by commas; all if empty.")
    kubeconfig: str = _setting(
        "", "Kubeconfig file; the pod's service account in a pod, else the usual files, if empty."
    )
    leader_elect: bool = _setting(True, "Only the holder of the Lease writes; needed for more than one replica.")
    lease_name: str = _setting("videotrain-operator", "Name of the Lease.")
    lease_namespace: str = _setting(
        "",
        "Namespace of what replicas share: the Lease and the Secrets of webhook and master key; the pod's own if "
        "empty, `default` outside of a pod.",
    )
    lease_seconds: float = _setting(
        10.0, "How long a leader that fell silent is waited for, seconds.", least=3.0, most=300.0
    )
    key_secret: str = _setting(
        "videotrain-master-key", "Secret of which the signing keys of the runs are made; made if missing."
    )
    instance: str = _setting(
        "",
        "What tells this process from others on a host of its name, such as the pod's uid; random if empty. One that "
        "comes again under the same name takes its Lease over at once: the one before it must be dead.",
    )
    listen_address: str = _setting("", "Address to listen on; every one if empty.")
    http_port: int = _setting(8080, "Port of /metrics, /healthz and /readyz; any free one if 0.", least=0, most=65535)
    metrics_authorization: bool = _setting(
        False,
        "Let only those read /metrics whose bearer token the API server knows and whose user may get that path "
        "(TokenReview, SubjectAccessReview).",
    )
    webhook_port: int = _setting(0, "Port of the validating webhook; off if 0.", least=0, most=65535)
    webhook_service: str = _setting("videotrain-webhook", "Service through which the API server calls the webhook.")
    webhook_secret: str = _setting("videotrain-webhook", "Secret with the webhook's certificates; made if missing.")
    webhook_configuration: str = _setting("videotrain", "ValidatingWebhookConfiguration that gets the CA.")
    pod_policy: str = _setting(
        DEFAULT_POD_POLICY,
        "Pod Security Standard that worker pods have to keep to, whatever spec.podTemplate says.",
        allowed=get_args(PodPolicy),
    )
    network_policy: str = _setting(
        "",
        "JSON of what the network policies of runs allow (see videotrain_api.render.network.NetworkRules), such as "
        '{"operator": [{"podSelector": {}}]}; runs get no policy if empty.',
    )
    price_list: str = _setting(
        "",
        "JSON of what nodes cost, whatever runs say (see videotrain_api.resource.prices.PriceList), such as "
        '{"prices": [{"pricePerGpuHour": "2.50"}]}; the prices of the runs hold if empty.',
    )
    bill_storage: str = _setting(
        "",
        "JSON of an object store to which the bills of runs are copied (see "
        'videotrain_api.resource.bill_storage.BillStorage), such as {"uri": "s3://finance/bills"}, with the '
        "credentials of this process; they are config maps alone if empty.",
    )
    run_defaults: str = _setting(
        "",
        "ConfigMap, in the namespace of the Lease, with what runs get that say nothing else, as JSON in its file "
        "defaults.json (see videotrain_api.resource.run_defaults.RunDefaults); read anew every ten seconds. Runs get "
        "none if empty.",
    )
    webhook_client_ca: str = _setting(
        "",
        "PEM file with the authorities of the API server's client certificate, which is then asked for and verified; "
        "read anew each minute. Everybody may send reviews if empty.",
    )
    webhook_client_names: tuple[str, ...] = _setting(
        (), "Common names that the client certificate may have, separated by commas; any if empty."
    )
    concurrent_passes: int = _setting(64, "Runs that are worked on at the same time.", least=1, most=1024)
    settle_seconds: float = _setting(
        0.25, "Least time between two passes over a run, so that changes that come together make one pass.", least=0.0
    )
    resync_seconds: float = _setting(
        300.0, "How often all runs are read anew, should a watch have lost an event, seconds.", least=10.0
    )
    node_trust_max_lost_percent: int = _setting(
        55,
        "Largest share of the nodes in use that may be lost at the same time and is believed, percent.",
        least=1,
        most=100,
    )
    otlp_endpoint: str = _setting(
        "",
        "Address of an OpenTelemetry collector that takes OTLP over HTTP, such as http://collector:4318. It gets a "
        "span of each pass and a trace of each recovery; none are made if empty.",
    )
    log_format: str = _setting("json", "Form of log lines.", allowed=("json", "text"))
    log_level: str = _setting("info", "Least severe log level.", allowed=("debug", "info", "warning", "error"))

    def bill_place(self) -> BillStorage | None:
        """Where bills are copied to; nowhere if None."""
        return BillStorage.from_wire(json.loads(self.bill_storage)) if self.bill_storage else None

    def cluster_rules(self) -> ClusterRules:
        """What every run is held to."""
        rules = NetworkRules.from_wire(json.loads(self.network_policy)) if self.network_policy else None
        prices = PriceList.from_wire(json.loads(self.price_list)) if self.price_list else PriceList()
        return ClusterRules(pods=cast(PodPolicy, self.pod_policy), network=rules, prices=prices)

    @classmethod
    def load(cls, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
        """Parse flags and variables.

        Raises:
            SettingsError: a value is not allowed.
            SystemExit: --help, or an unknown flag.
        """
        flags = vars(_parser().parse_args(list(arguments)))
        values: dict[str, Any] = {}
        for item in fields(cls):
            variable = ENV_PREFIX + item.name.upper()
            text = flags.get(item.name)
            source = _flag(item.name)
            if text is None:
                text, source = environment.get(variable), variable
            if text is not None:
                values[item.name] = _parse(item, text, source)
        for name, model in (("network_policy", NetworkRules), ("price_list", PriceList), ("bill_storage", BillStorage)):
            if text := values.get(name):
                try:
                    model.from_wire(json.loads(text))
                except ValueError as error:
                    raise SettingsError(f"{_flag(name)}={text}: must be JSON of its rules: {error}") from None
        if values.get("bill_storage") and find_spec("obstore") is None:
            raise SettingsError("--bill-storage: install videotrain-operator[storage], which brings obstore")
        return cls(**values)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="videotrain-operator run",
        description="Reconciles VideoTrainingRuns until SIGTERM.",
        epilog=f"Every flag can be given as a variable too: --http-port as {ENV_PREFIX}HTTP_PORT.",
    )
    for item in fields(Settings):
        shown = ",".join(item.default) if isinstance(item.default, tuple) else item.default
        text = f"{item.metadata['help']} Default: {shown or 'empty'}".replace("%", "%%")
        # A flag that is a switch may stand alone.
        extra: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(item.default, bool) else {}
        parser.add_argument(_flag(item.name), dest=item.name, metavar="VALUE", help=text, **extra)
    return parser


def _parse(item: Field[Any], text: str, source: str) -> Any:
    value = _converted(item, text.strip(), source)
    limits = item.metadata
    if "allowed" in limits and value not in limits["allowed"]:
        raise SettingsError(f"{source}={text}: must be one of {', '.join(limits['allowed'])}")
    if ("least" in limits and value < limits["least"]) or ("most" in limits and value > limits["most"]):
        top = f" and at most {limits['most']}" if "most" in limits else ""
        raise SettingsError(f"{source}={text}: must be at least {limits['least']}{top}")
    return value


def _converted(item: Field[Any], text: str, source: str) -> Any:
    if isinstance(item.default, bool):
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in known:
            raise SettingsError(f"{source}={text}: must be true or false")
        return known[text.lower()]
    if isinstance(item.default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        convert: Callable[[str], Any] = type(item.default)
        return convert(text)
    except ValueError as error:
        kind = {"int": "a whole number", "float": "a number"}[type(item.default).__name__]
        raise SettingsError(f"{source}={text}: must be {kind}") from error
