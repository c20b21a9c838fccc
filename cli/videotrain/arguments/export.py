"""`videotrain export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from videotrain.arguments.shared import add_results
from videotrain.extras import brought_by


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "export",
        help="write the models of a finished run in a published layout, with a model card; also to the hub",
        description="Write transformer and autoencoder of a finished run as others read them: a folder in diffusers' "
        "form, files with the names and tensor names of Open-Sora 2.0, or the adapter alone; beside them README.md, a "
        "model card of the run.",
    )
    add_results(parser)
    parser.add_argument(
        "--to",
        choices=("diffusers", "open-sora-v2", "adapter"),
        required=True,
        help="layout to write; `adapter`: the LoRA adapter alone, in PEFT's layout and diffusers'",
    )
    parser.add_argument("target", type=Path, metavar="DIR", help="folder to write; made if it is missing")
    parser.add_argument(
        "--push",
        metavar="hf://ORG/REPO[@BRANCH]",
        help="also upload the folder to the Hugging Face hub (HF_TOKEN, or the login of `hf auth login`)",
    )
    parser.add_argument("--private", action="store_true", help="with --push: a repository that is made is private")
    parser.add_argument("--license", metavar="ID", help="licence of the model card, such as apache-2.0")
    parser.add_argument("--base-model", metavar="ORG/REPO", help="base model of the card, on the hub")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.export import Push, export
        from videotrain.results.card import CardChoices

    choices = CardChoices(options.to, options.license, options.base_model)
    push = Push(options.push, options.private) if options.push else None
    return export(options.workdir, options.results, choices, options.target, push)
