"""Keep torch and transformers loaded, and fork for each measurement (see kvbudget.run.warm)."""

import argparse
import socket
from pathlib import Path

from kvbudget import cli
from kvbudget.run import warm


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("place", type=Path, help="file of a socket")
    parser.add_argument("door", type=int, help="number of that socket, open and listening")


def run(args: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    warm.serve(args.place, socket.socket(fileno=args.door), cli.main)
