"""What a study may write under `models:`. Imports no torch: it also runs while rules are parsed."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kvbudget.errors import UserError

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+")

#: The file beside the weights that says where they came from.
SOURCE = "source.json"
ARCHITECTURES = ("llama", "qwen2", "gemma3")
#: Keys of an entry that describe a model and do not change its files.
DESCRIPTIVE = ("title", "context", "gated", "size")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model's files would tell, for a forecast before they are there.

    `sliding_layers` of the `layers` attend to the last `sliding_window` tokens alone. `download`
    is in bytes; by default two a parameter.
    """

    parameters: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    sliding_layers: int = 0
    sliding_window: int = 0
    download: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One entry of `models:`.

    `title` is the name printed in the paper, `context` the longest prompt the study may ask for,
    in tokens (None: whatever the model's own config says). `gated` says that a licence must be
    accepted first, and `size` is for forecasts.
    """

    source: ClassVar[str]
    #: Whether files must match a recorded hash (`workflow/models.lock.yaml`) before use.
    locked: ClassVar[bool] = True

    title: str | None = None
    context: int | None = None
    gated: bool = False
    size: Size | None = None

    def note(self) -> str:
        """Content of the file beside the weights that says where they came from."""
        note = {"source": self.source} | dataclasses.asdict(self)
        # They do not change the files: a new title must not ask for a new entry in the lock.
        for name in DESCRIPTIVE:
            del note[name]
        return json.dumps(note, indent=1) + "\n"

    def validate(self) -> None:
        """Raise ValueError with the offending key and the remedy."""
        if self.context is not None:
            _positive(self, "context")


@dataclass(frozen=True, kw_only=True)
class Pypi(ModelSpec):
    """A GGUF file shipped, whole or cut into `parts`, inside Python wheels."""

    source: ClassVar[str] = "pypi"

    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str

    def validate(self) -> None:
        super().validate()
        _packages(self.packages)
        _strings("parts", self.parts)
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError("sha256 must be the 64 hex digits of the joined file")


@dataclass(frozen=True, kw_only=True)
class Hub(ModelSpec):
    """A repository of the Hugging Face hub at a pinned commit."""

    source: ClassVar[str] = "hub"

    repo: str
    revision: str

    def validate(self) -> None:
        super().validate()
        _repository(self.repo)
        if not _COMMIT.fullmatch(self.revision):
            raise ValueError("revision must be a full commit of 40 hex digits, not a branch or tag")


@dataclass(frozen=True, kw_only=True)
class ModelScope(ModelSpec):
    """A repository of ModelScope at a named revision (its tags or commits)."""

    source: ClassVar[str] = "modelscope"

    repo: str
    revision: str

    def validate(self) -> None:
        super().validate()
        _repository(self.repo)
        # Its client makes a folder of that name.
        if self.revision in ("master", "main") or not _NAME.fullmatch(self.revision):
            raise ValueError(
                "revision must be the name of a tag or a commit, not a branch that moves"
            )


@dataclass(frozen=True, kw_only=True)
class Local(ModelSpec):
    """A directory of safetensors that the user already has."""

    source: ClassVar[str] = "local"
    # The user answers for these files, and a lock shared through the repository could not know
    # them. Their digest still goes into `verified.json` and into every record made with them.
    locked: ClassVar[bool] = False

    path: str

    def validate(self) -> None:
        super().validate()
        if not self.path.startswith("/"):
            raise ValueError("path must be absolute")


@dataclass(frozen=True, kw_only=True)
class Random(ModelSpec):
    """A tiny model with random weights and a byte-level tokenizer: for tests, it knows nothing."""

    source: ClassVar[str] = "random"
    # Made on this machine from `seed`, not received from anyone: there is nothing to compare it
    # with, and the bits of random numbers may differ between versions of torch.
    locked: ClassVar[bool] = False

    architecture: str = "llama"
    seed: int = 0
    layers: int = 2
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    context: int | None = 4096
    #: Only gemma3 has sliding-window layers.
    sliding_window: int = 128

    def validate(self) -> None:
        super().validate()
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}")
        for name in ("layers", "query_heads", "kv_heads", "head_dim", "context", "sliding_window"):
            _positive(self, name)
        if self.query_heads % self.kv_heads:
            raise ValueError("query_heads must be a multiple of kv_heads")
        if self.head_dim % 2:
            raise ValueError("head_dim must be even: rotary positions turn pairs")


SOURCES: dict[str, type[ModelSpec]] = {
    cls.source: cls for cls in (Pypi, Hub, ModelScope, Local, Random)
}


def parse(key: str, spec: Mapping[str, Any]) -> ModelSpec:
    """Turn the mapping under `models: {key}` into the dataclass of its source.

    Raises:
        UserError: naming the model, the key at fault and what would be right.
    """
    where = f"models: {key}"
    if not _KEY.fullmatch(key):
        raise UserError(f"{where}: use lower-case letters, digits, '.', '_' and '-' in the name")
    if not isinstance(spec, Mapping):
        raise UserError(f"{where}: expected a mapping with the key 'source'")
    source = spec.get("source")
    if source not in SOURCES:
        raise UserError(f"{where}: unknown source {source!r}; use one of {', '.join(SOURCES)}")
    cls = SOURCES[source]
    given = {name: value for name, value in spec.items() if name != "source"}
    if isinstance(given.get("size"), Mapping):
        given["size"] = _make(f"{where}: size", Size, given["size"], "a size")
    parsed = _make(where, cls, given, f"source {source}")
    try:
        parsed.validate()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return parsed


def _make(where: str, cls: type, given: Mapping[str, Any], what: str) -> Any:
    """An instance of a dataclass from a mapping, each key checked."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in given:
        if name not in fields:
            raise UserError(
                f"{where}: unknown key {name!r} for {what}; it knows {', '.join(fields)}"
            )
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in given:
            raise UserError(f"{where}: key {name!r} is required for {what}")
    for name, value in given.items():
        _check_type(where, name, value, fields[name].type)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _check_type(where: str, name: str, value: Any, annotation: Any) -> None:
    expected, right = {
        str: ("a string", isinstance(value, str)),
        str | None: ("a string", value is None or isinstance(value, str)),
        int: ("an integer", type(value) is int),
        bool: ("true or false", isinstance(value, bool)),
        Size | None: ("a mapping", value is None or isinstance(value, Size)),
        int | None: ("an integer", value is None or type(value) is int),
        tuple[str, ...]: ("a list of strings", isinstance(value, list | tuple)),
    }[annotation]
    if not right:
        raise UserError(f"{where}: {name} must be {expected}, not {value!r}")


def _positive(spec: ModelSpec, name: str) -> None:
    value = getattr(spec, name)
    if value is None or value < 1:
        raise ValueError(f"{name} must be at least 1")


def _strings(name: str, values: tuple[str, ...]) -> None:
    if not values or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{name} must be a list of at least one non-empty string")


def _packages(packages: tuple[str, ...]) -> None:
    _strings("packages", packages)
    for package in packages:
        if not _PINNED.fullmatch(package):
            raise ValueError(f"package {package!r} must be pinned, as in name==1.2.3")


def _repository(repo: str) -> None:
    owner, _, name = repo.partition("/")
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)):
        raise ValueError(f"repo {repo!r} must read owner/name")
