"""What a model may consist of: tensors that cannot carry code, and text. Imports no torch."""

import json
from fnmatch import fnmatch
from pathlib import Path

from kvbudget.errors import UserError

#: The only files a model may have.
WEIGHTS = "*.safetensors"
TEXT = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
ALLOWED = (WEIGHTS, *TEXT)

#: The file that says where the others came from.
SOURCE = "source.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def check_formats(key: str, directory: Path) -> None:
    """Refuse any file that is neither safetensors nor text, pickles by name."""
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(directory).as_posix()
        if any(fnmatch(path.name, pattern) for pattern in _PICKLES):
            raise UserError(
                f"model {key}: {name} is a pickle, which can run code when it is read;"
                " remove it and give the weights as safetensors"
            )
        if not any(fnmatch(name, pattern) for pattern in ALLOWED):
            raise UserError(
                f"model {key}: {name} is not a file a model may have ({', '.join(ALLOWED)});"
                " remove it"
            )


def check_no_remote_code(key: str, directory: Path) -> None:
    """Refuse configs that ask for Python code of the model's own."""
    for path in sorted(directory.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"model {key}: {path.name} is not JSON ({error})") from None
        for word in ("auto_map", "trust_remote_code"):
            if isinstance(content, dict) and content.get(word):
                raise UserError(
                    f"model {key}: {path.name} asks for code of its own ({word}), which is never"
                    " run; use a model whose architecture transformers itself has"
                )
