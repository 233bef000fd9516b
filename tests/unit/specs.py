"""Entries of a study as the specs of its cells have them: with all options."""

from kvbudget.options import filled
from kvbudget.tasks import registry


def task(name: str, kind: str, **options) -> dict:
    """A task with the defaults of its kind."""
    known = filled(f"tasks: {name}", options, registry.options_of(kind))
    return {"name": name, "kind": kind, **known}
