"""Print the schema of the configuration, which workflow/schemas/config.schema.yaml holds."""

import argparse

from kvbudget.study import schema


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(args: argparse.Namespace) -> None:
    """Print it."""
    print(schema.as_yaml(), end="")
