"""Keep torch and transformers loaded, and fork for each measurement (see kvbudget.run.warm)."""

import argparse
import socket

from kvbudget import cli
from kvbudget.run import warm


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("door", type=int, help="number of a socket, open and listening")


def run(args: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    warm.serve(socket.socket(fileno=args.door), cli.main)
