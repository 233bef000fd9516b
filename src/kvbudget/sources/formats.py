"""What a model may consist of: tensors that cannot carry code, and text. Imports no torch."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kvbudget.errors import UserError

#: Text that a model may have.
TEXT = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
#: The only files it may have.
ALLOWED = ("*.safetensors", *TEXT)
#: The weights, or the file that says in which files they are.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def weights(key: str, directory: Path) -> list[str]:
    """Names of the files that transformers reads the weights of a model from; they need not be
    there. It takes `model.safetensors`, else what the index names, and looks at no other file: not
    at the same weights in Mistral's layout (`consolidated.safetensors`) or in another format.

    Raises:
        UserError: the directory has neither, or the index is of no use.
    """
    if (directory / WHOLE).is_file():
        return [WHOLE]
    if not (directory / INDEX).is_file():
        others = sorted(path.name for path in directory.glob("*.safetensors"))
        found = f"; {others[0]} alone does not say what it is part of" if others else ""
        raise UserError(
            f"model {key}: there is no {WHOLE}, and no {INDEX} that names its parts{found};"
            " use one that has (pickled weights, such as *.bin, can run code and are never read)"
        )
    try:
        names = sorted(set(_read_json(key, directory / INDEX)["weight_map"].values()))
        sound = names and all(_is_weights(name) for name in names)
    except (AttributeError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(
            f"model {key}: {INDEX} does not map tensors to *.safetensors files beside it; get the"
            " model again, or convert it with transformers (save_pretrained)"
        )
    return names


def check_formats(key: str, directory: Path) -> None:
    """Refuse any file that is neither safetensors nor text, pickles by name; JSON that is none."""
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
        if path.suffix == ".json":
            _read_json(key, path)


def check_no_foreign_code(key: str, directory: Path) -> None:
    """Refuse a model that cannot be read without Python code of its own.

    Many configs name such code (`auto_map`) for versions of transformers that did not have the
    architecture yet. It is not run; where transformers has its own, it is not needed either.
    """
    config = _read_json(key, directory / "config.json")
    tokenizer = _read_json(key, directory / "tokenizer_config.json")
    kind = config.get("model_type")
    if config.get("auto_map"):
        # Here, as it takes seconds and few models have it.
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise _foreign(key, "config.json", f"the architecture {kind!r}")
    if tokenizer.get("auto_map"):
        from transformers.models.auto import tokenization_auto

        named = tokenizer.get("tokenizer_class") or ""
        classes = (named, named.removesuffix("Fast"), f"{named}Fast")
        if kind not in tokenization_auto.TOKENIZER_MAPPING_NAMES and not any(
            name and tokenization_auto.tokenizer_class_from_name(name) for name in classes
        ):
            raise _foreign(key, "tokenizer_config.json", f"the tokenizer {named!r}")


def _foreign(key: str, file: str, what: str) -> UserError:
    return UserError(
        f"model {key}: {file} asks for code of its own (auto_map), which is never run, and"
        f" transformers does not have {what}; use a model that it has"
    )


def _is_weights(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _read_json(key: str, path: Path) -> dict[str, Any]:
    """The mapping in a file; an empty one where there is no file, or none in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"model {key}: {path.name} is not JSON ({error})") from None
    return content if isinstance(content, dict) else {}
