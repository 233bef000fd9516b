"""One HTML page of a finished study's results, which needs no server and no network: curves with
their records, what heads do and get, and one context as each method keeps it (`kvbudget shade`)."""

import argparse
import json
from pathlib import Path

from kvbudget.cli import study_argument
from kvbudget.paper.source import Source
from kvbudget.study import shade


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add_planned(parser)
    parser.add_argument("--csv", type=Path, help="its CSV files (default: results/STUDY/csv)")
    parser.add_argument("--out", type=Path, help="(default: results/STUDY/site.html)")


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    study = study_argument.load_planned(args)
    folder = study.root / study.directory
    out = args.out or folder / "site.html"
    from kvbudget.site import page  # charts take their time to import

    src = Source(study, args.csv or folder / "csv", page.CSV)
    made = shade.of_study(study)
    shaded = study.root / made.path if made else None
    context = json.loads(shaded.read_text()) if shaded and shaded.exists() else None
    made_page = page.text(src, context, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(made_page, encoding="utf-8")
    print(out)
