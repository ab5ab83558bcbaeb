"""The ``deploykit`` command.

Each subcommand is a module of this package with ``SUMMARY``, ``EXAMPLES``,
``add_arguments(parser)`` and ``run(args) -> exit code``. Modules are imported when their command is
used, and import heavy packages inside ``run``, so that ``--help`` is quick and works without the
training extra.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from deploykit import __version__
from deploykit.errors import DeploykitError

# Command -> (module, one line for the overview). The line stands here so that the overview need not
# import every module.
COMMANDS = {
    "detect": "find objects in images, folders, videos or a camera",
    "train": "train a detector from a config",
    "test": "measure COCO metrics of a checkpoint or an exported model",
    "convert": "export a checkpoint to ONNX or TensorRT, with its parity measured",
    "parity": "compare two models detection by detection",
    "benchmark": "measure latency and throughput of models side by side",
    "config": "print a resolved config and where each key was set",
    "coverage": "try every config of a folder: what can be built, and what is missing",
    "zoo": "list, show and download MMDetection's published models",
    "inspect": "show what an artefact says about itself",
    "doctor": "try everything deploykit can use on this machine",
    "demo": "train, export, prove and time a detector on real data",
}


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the argument parser, with the arguments of ``command`` filled in."""
    parser = argparse.ArgumentParser(
        prog="deploykit",
        description="Train object detectors, export them, and run any artefact the same way.",
        epilog="deploykit COMMAND --help explains a command and gives examples.",
    )
    parser.add_argument("--version", action="version", version=f"deploykit {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        module = import_module(f"deploykit.cli.{name}")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=module.SUMMARY,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; those of the process by default.

    Returns:
        0 on success, 1 when a verdict is negative (parity failed, a gate was not met), 2 when the
        input was wrong, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if not word.startswith("-")), None)
    args = build_parser(command).parse_args(arguments)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except DeploykitError as error:
        print(f"deploykit: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away (`deploykit ... | head`); that is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # how rich reports the same
            return 0
        raise
    except OSError as error:
        # A full disk or a missing permission: the machine's state, not a defect of ours.
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        print(f"deploykit: error: {place}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("deploykit: interrupted", file=sys.stderr)
        return 130
