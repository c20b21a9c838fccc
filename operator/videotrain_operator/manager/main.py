"""Entry point `videotrain-operator`."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Final

from videotrain_api.vocabulary import ExitCode
from videotrain_operator.manager.logs import set_up_logging
from videotrain_operator.manager.settings import Settings, SettingsError

_USAGE: Final = "usage: videotrain-operator run [--help] [FLAGS] | ask-webhook NAMESPACE\n"


def main() -> None:
    """Run the operator, which exits with 0 after SIGTERM, 64 for wrong settings, 1 for a refusal by the API server; or
    ask its webhook, which exits with 1 if that is silent.
    """
    match sys.argv[1:]:
        case ["run", *flags]:
            sys.exit(_run(flags))
        case ["ask-webhook", namespace]:
            sys.exit(_ask_webhook(namespace))
        case ["--help"] | ["-h"]:
            sys.stdout.write(_USAGE)
        case _:
            sys.stderr.write(_USAGE)
            sys.exit(ExitCode.CONFIG)


def _ask_webhook(namespace: str) -> int:
    from videotrain_operator.manager.ask_webhook import WebhookSilent, ask_webhook

    try:
        answer = asyncio.run(ask_webhook(namespace))
    except WebhookSilent as error:
        sys.stderr.write(f"videotrain-operator: {error}\n")
        return ExitCode.INTERNAL
    sys.stdout.write(f"the webhook answers: {answer}\n")
    return ExitCode.OK


def _run(flags: list[str]) -> int:
    try:
        settings = Settings.load(flags)
    except SettingsError as error:
        sys.stderr.write(f"videotrain-operator: {error}\n")
        return ExitCode.CONFIG
    set_up_logging(settings.log_format, settings.log_level)
    from videotrain_operator.manager.app import run_operator  # after --help, which must not load kopf

    try:
        asyncio.run(run_operator(settings))
    except Exception:
        logging.getLogger(__name__).exception("the operator ends")
        return ExitCode.INTERNAL
    return ExitCode.OK
