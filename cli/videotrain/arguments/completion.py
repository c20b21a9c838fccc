"""`videotrain completion`."""

from __future__ import annotations

import argparse
import sys

EPILOG = """\
to have it from the next shell on:
  bash: videotrain completion bash > ~/.local/share/bash-completion/completions/videotrain
  zsh:  videotrain completion zsh > ~/.zfunc/_videotrain   (with ~/.zfunc in fpath before compinit)
  fish: videotrain completion fish > ~/.config/fish/completions/videotrain.fish"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "completion",
        help="print what lets a shell complete this command",
        description="Print the script by which a shell completes commands, options and files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["videotrain"], shell=options.shell) + "\n")
    return 0
