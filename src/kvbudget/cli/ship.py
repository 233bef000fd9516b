"""Put a calibration that kvbudget calibrate wrote into the package, so that make_cache finds it by
the model's weights: packed, without what Head-Aware does not read."""

import argparse
import json
from pathlib import Path

from kvbudget import shipped
from kvbudget.cache.cache import geometry_of
from kvbudget.errors import UserError
from kvbudget.policies.fitted import Fitted
from kvbudget.sources.load import load

_REMEDY = "name a file that kvbudget calibrate wrote"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("model", type=Path, help="directory of a model in safetensors")
    parser.add_argument("calibration", type=Path, help="JSON file that kvbudget calibrate wrote")
    parser.add_argument(
        "--into",
        type=Path,
        default=shipped.FOLDER,
        help="folder to write to; by default that of the package",
    )


def run(args: argparse.Namespace) -> None:
    """Write the packed calibration."""
    record = _read(args.calibration)
    content = shipped.packed(record)
    model, _ = load(args.model, "bfloat16")
    geometry = geometry_of(model)
    Fitted(record).check(len(geometry.layers), geometry.kv_heads)
    file = args.into / shipped.name_of(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    print(f"{file}: {len(content):,} bytes; make_cache takes it for this model")


def _read(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no calibration ({error}); {_REMEDY}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path} is no calibration; {_REMEDY}")
    return record
