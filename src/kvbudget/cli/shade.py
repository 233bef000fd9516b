"""Read one context of a study by each of its methods, and note which tokens each head keeps.

For the page of results (`kvbudget site`). It takes the study's first model at its shortest prompt;
the model and its calibrations have to be there, and nothing of the study's results changes.
"""

import argparse
import json

from kvbudget.cli import study_argument
from kvbudget.errors import UserError
from kvbudget.run.files import write_json
from kvbudget.sources import verified
from kvbudget.study import shade
from kvbudget.study.identity import model_identity


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add_planned(parser)


def run(args: argparse.Namespace) -> None:
    """Write the file, in results/{study}/."""
    study = study_argument.load_planned(args)
    made = shade.of_study(study)
    if made is None:
        raise UserError(
            f"study {study.name} has no method that reads a whole prompt and evicts; add one to an "
            "experiment with questions"
        )
    first, root = made.cells[0], study.root
    needed = [f"results/models/{first.model}.verified.json", first.text]
    needed += [cell.calibration for cell in made.cells if cell.calibration]
    for path in needed:
        if not (root / path).exists():
            raise UserError(f"{path} is missing; make it with: {study.run([path])}")
    entry = study.config["models"][first.model]
    verified.read(root / needed[0], model_identity(first.model, entry, root))
    from kvbudget.run import shade as reading  # torch takes its time

    shown = [
        reading.Shown(
            spec=cell.spec,
            calibration=cell.calibration and json.loads((root / cell.calibration).read_text()),
            path=cell.path,
        )
        for cell in made.cells
    ]
    out = root / made.path
    write_json(out, reading.shade(shown, root / f"results/models/{first.model}", root / first.text))
    print(out)
