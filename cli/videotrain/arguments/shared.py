"""Arguments that several subcommands take alike."""

from __future__ import annotations

import argparse

from videotrain.arguments.types import amount, stage_seconds, utilisation


def add_assumptions(parser: argparse.ArgumentParser) -> None:
    """What modelled times rest on."""
    parser.add_argument("--mfu", type=utilisation, help="model FLOPs utilisation, 0 to 1, instead of modelled rates")
    parser.add_argument(
        "--seconds-per-step",
        type=stage_seconds,
        action="append",
        default=[],
        metavar="STAGE=SECONDS",
        help="measured time of one step of a stage, instead of modelling it",
    )
    parser.add_argument(
        "--hours-of-video",
        type=amount,
        metavar="H",
        help="hours of raw video, by which curate and encode stages are modelled",
    )


def add_cluster_choice(parser: argparse.ArgumentParser) -> None:
    """Which cluster, and which of its namespaces."""
    parser.add_argument("-n", "--namespace", default="", metavar="NS", help="of these runs alone (default: of all)")
    parser.add_argument("--kubeconfig", metavar="FILE", help="instead of the usual ones")
    parser.add_argument("--context", metavar="NAME", help="in the kubeconfig, instead of its current one")


def add_device(parser: argparse.ArgumentParser, what: str) -> None:
    """What `what` (a plural noun) compute on."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"what the {what} compute on: a GPU each if there are enough of them, else the CPU (auto, the default); "
        "the CPU; or a GPU each and nothing else (cuda)",
    )


def add_pod_policy(parser: argparse.ArgumentParser) -> None:
    """The standard that pods are held to."""
    parser.add_argument(
        "--pod-policy",
        choices=("baseline", "restricted", "any"),
        default="restricted",
        help="Pod Security Standard that worker pods have to keep to: the value podTemplate.policy of the operator's "
        "chart (default restricted)",
    )
