"""Is the model on disk the one that was meant, and does it work? Nothing uses it before that.

What is found is the small file that calibrations and cells depend on, in place of the weights.
"""

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.errors import UserError
from kvbudget.sources import lock
from kvbudget.sources.formats import check_formats, check_no_foreign_code, weights
from kvbudget.sources.load import load
from kvbudget.sources.registry import SOURCE, SOURCES, Random

# Names of safetensors' types as torch writes them in a config.
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
#: Share of blind guessing's loss. Trained models stay well below (SmolLM2: 0.4), and above with the
#: tokenizer of another model (Qwen2.5 with that of SmolLM2: 0.95).
_CHANCE = 0.8
_AGAIN = "delete the model's directory and download it again"
_SENTENCES = (
    "In the beginning God created the heaven and the earth.",
    "One of the special magic numbers for quiet-harbor is: 8340162.",
    "L'Éternel dit à Moïse: «Où es-tu?»\n\nEt il répondit;  deux espaces.",
)


def verify(key: str, directory: Path, lock_file: Path) -> dict[str, Any]:
    """Run every check on the model in `directory`; return what `verified.json` holds.

    Raises:
        UserError: naming the file, tensor or key at fault.
    """
    if not directory.is_dir():
        raise UserError(f"model {key}: {directory} does not exist; download it first")
    check_formats(key, directory)
    check_no_foreign_code(key, directory)
    files = lock.hash_files(directory)
    locked = check_lock(key, directory, files, lock_file)

    with _naming(key, "config"):
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    headers = read_headers(key, directory)
    check_shapes(key, config, headers)
    dtypes = sorted({_DTYPES.get(header["dtype"], header["dtype"]) for header in headers.values()})
    dtype = dtypes[0] if len(dtypes) == 1 else "float32"
    with _naming(key, "weights and tokenizer"):
        model, tokenizer = load(directory, dtype, device="cpu")
    check_tokenizer(key, tokenizer, model.get_input_embeddings().num_embeddings)
    nats = check_forward(key, model, tokenizer, trained=source_of(key, directory) != Random.source)

    return {
        "model": key,
        "sha256": lock.digest(files),
        "files": files,
        **_geometry(config.get_text_config()),
        "chat_template": bool(tokenizer.chat_template),
        "dtype": dtype,
        "checks": {
            "formats": "safetensors and text only, no code",
            "lock": "matches" if locked else "not required",
            "tensors": len(headers),
            "parameters": model.num_parameters(),
            "tokenizer": "round trip",
            "nats_per_token": round(nats, 2),
        },
    }


@contextmanager
def _naming(key: str, what: str) -> Iterator[None]:
    """Errors of transformers as one that names the model."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model {key}: transformers cannot read its {what} ({reason}); {_AGAIN}, or use a model"
            " whose architecture transformers has"
        ) from error


def check_lock(key: str, directory: Path, files: dict[str, str], lock_file: Path) -> bool:
    """Whether the files are recorded; refuse them if they differ or ought to be recorded."""
    if wanted := lock.read(lock_file).get(key):
        lock.compare(lock_file, key, wanted, files)
        return True
    source = source_of(key, directory)
    required = SOURCES[source].locked
    if required:
        raise UserError(
            f"model {key} (source {source}) is not in {lock_file}; if you trust what was"
            f" downloaded, record it: kvbudget lock --model {key} --dir {directory}"
            f" --lock {lock_file}"
        )
    return False


def source_of(key: str, directory: Path) -> str:
    """Where the model says it came from; it is a key of `SOURCES`."""
    try:
        source = json.loads((directory / SOURCE).read_text())["source"]
        SOURCES[source]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"model {key}: {directory / SOURCE} does not say where the model came from; {_AGAIN}"
        ) from None
    return source


def read_headers(key: str, directory: Path) -> dict[str, dict[str, Any]]:
    """`{tensor: {"dtype", "shape", "file"}}` of the weights, from the headers of their files alone.

    The format (github.com/huggingface/safetensors): 8 bytes little-endian length of the header,
    the header as JSON, then the tensors' bytes without a gap.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for path in (directory / name for name in weights(key, directory)):
        if not path.is_file():
            raise UserError(
                f"model {key}: {path.name}, which the index names, is missing; {_AGAIN}"
            )
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > size - 8:
                raise UserError(
                    f"model {key}: {path.name} is not a safetensors file, or cut short; {_AGAIN}"
                )
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            except (ValueError, AttributeError, KeyError, TypeError):
                raise UserError(f"model {key}: {path.name} has no safetensors header") from None
        if 8 + length + end != size:
            raise UserError(
                f"model {key}: {path.name} has {size} bytes, its header promises"
                f" {8 + length + end}; {_AGAIN}"
            )
        for name, entry in header.items():
            tensors[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "file": path.name}
    return tensors


def check_shapes(key: str, config: Any, headers: dict[str, dict[str, Any]]) -> None:
    """Every tensor the architecture needs is there, in its shape, and no other."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    # A tied tensor (most often the output head) may be left out of the file: it is its twin.
    tied = set(model.all_tied_weights_keys)
    for name, shape in expected.items():
        if name not in headers:
            if name in tied:
                continue
            raise UserError(
                f"model {key}: tensor {name} is missing from the safetensors files; {_AGAIN}"
            )
        if headers[name]["shape"] != shape:
            raise UserError(
                f"model {key}: tensor {name} in {headers[name]['file']} has shape"
                f" {headers[name]['shape']}, the config asks for {shape}"
            )
    for name in headers:
        if name not in expected:
            raise UserError(
                f"model {key}: tensor {name} in {headers[name]['file']} has no place in the"
                f" architecture {config.model_type}"
            )


def check_tokenizer(key: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Text survives encoding and decoding, and no token lacks an embedding row."""
    if len(tokenizer) > rows:
        raise UserError(
            f"model {key}: the tokenizer has {len(tokenizer)} tokens, the model embeds only {rows}"
        )
    for sentence in _SENTENCES:
        ids = tokenizer.encode(sentence, add_special_tokens=False)
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back != sentence:
            raise UserError(f"model {key}: the tokenizer turns {sentence!r} into {back!r}")


@torch.no_grad()
def check_forward(
    key: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained: bool
) -> float:
    """Mean negative log-likelihood of a token of some sentences, in nats; it must be finite.

    A trained model must also do better than chance, which it does not with the tokenizer of another
    model, nor with weights that were mixed up.
    """
    ids = torch.tensor([tokenizer.encode(" ".join(_SENTENCES))], device=model.device)
    logits = model(input_ids=ids).logits[0]
    if not torch.isfinite(logits).all():
        raise UserError(f"model {key}: a forward pass gives logits that are not finite")
    nats = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[0, 1:]).item()
    chance = math.log(logits.shape[-1])
    if trained and nats > _CHANCE * chance:
        raise UserError(
            f"model {key}: it reads plain sentences as if by chance ({nats:.1f} nats a token, blind"
            f" guessing takes {chance:.1f}): the tokenizer or the weights are of another model"
        )
    return nats


def _geometry(text: Any) -> dict[str, Any]:
    layers = text.num_hidden_layers
    types = getattr(text, "layer_types", None) or ["full_attention"] * layers
    return {
        "context": text.max_position_embeddings,
        "layers": layers,
        "kv_heads": text.num_key_value_heads,
        "query_heads": text.num_attention_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "layer_types": list(types),
    }
