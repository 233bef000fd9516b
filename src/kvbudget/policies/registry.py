"""The methods by name, and what planning has to know of each. Imports no torch.

A method is one file of this package and one entry here. Modules are named, not imported, so that a
cell depends on the code of its own method alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvbudget.errors import UserError
from kvbudget.options import Option, arguments, auto, choice, count, share, suggest

#: Maps from hidden states that a calibration may hold.
HIDDEN_MAPS = ("hidden", "kvzap")

ATTENTION, WINDOW = "received:Attention", "received:Window"


def _always(*signals: str) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """Signals that a method has whatever its options."""
    return lambda options: signals


_NONE = _always()


@dataclass(frozen=True)
class Method:
    """What is known of a method without its code.

    Attributes:
        module: where its class is, as `module:Class` in this package.
        options: its own options.
        calibrated: whether it takes a calibration of the model's heads.
        rereads: tokens of the context that it reads again at a time, before it evicts anything;
            0 for a method that evicts as it reads.
        stays: the option and its value with which keys keep their positions; None if they always
            do.
        elsewhere: whether a library of others measures it, in an environment of its own (`make
            peers`); then there is no cache of ours.
        signals: from all its options to the signals by which it watches a prompt being read, each
            as `module:Class` in this package.
        hidden_map: from all its options to the map of its calibration by which it scores hidden
            states, an entry of `HIDDEN_MAPS`; None for a method that sees keys and values alone.
    """

    module: str
    options: Mapping[str, Option] = field(default_factory=dict)
    calibrated: bool = False
    rereads: int = 0
    stays: tuple[str, Any] | None = None
    elsewhere: bool = False
    signals: Callable[[Mapping[str, Any]], tuple[str, ...]] = _NONE
    hidden_map: Callable[[Mapping[str, Any]], str | None] = lambda options: None

    @property
    def holds_context(self) -> bool:
        """Whether the whole context is held until all of it has been read."""
        return self.rereads > 0

    @property
    def facts(self) -> list[Any]:
        """What a result depends on beside the method's code and options."""
        return [self.module, self.rereads]

    def moves_keys(self, options: Mapping[str, Any]) -> bool:
        """Whether keys are moved to other positions; `options` are all of the method's."""
        return self.stays is not None and options[self.stays[0]] != self.stays[1]


_SAFEGUARD = share(
    1.0,
    "α, the share of its budget that each head is sure of; the rest is pooled over its layer "
    "(AdaKV; 0.2 as published).",
)

_POOLING = choice(
    "max",
    "What a token takes of its neighbours' attention: the most, as in the authors' LongBench runs, "
    "or the mean, their code's default.",
    ("max", "mean"),
)

_FLOOR = share(0.0, "Share of an equal budget that every head gets; 0 as published.")

_REPEATED = 2048  # tokens that KVzip and KVzip+ repeat at a time, as published

#: The signals that a rule of Head-Aware may need beside keys and values.
_OF_RULE = {
    "predicted": (),
    "diversity": (),
    "attention": (ATTENTION,),
    "window": (WINDOW,),
    "recency": (),
}


def _of_features(options: Mapping[str, Any]) -> str | None:
    hidden = options["rule"] == "predicted" and options["features"] == "hidden"
    return "hidden" if hidden else None


METHODS: dict[str, Method] = {
    "full": Method(
        "full:Full",
        {"phi": auto("First position of the target (Group Position Encoding); auto is the last.")},
        stays=("phi", "auto"),
    ),
    "h2o": Method("h2o:H2O", signals=_always(ATTENTION)),
    "streaming-llm": Method(
        "streaming_llm:StreamingLLM",
        {
            "positions": choice(
                "cache",
                "Positions inside the cache, as published, or those of the text.",
                ("cache", "absolute"),
            )
        },
        stays=("positions", "absolute"),
    ),
    "snapkv": Method(
        "snapkv:SnapKV",
        {"safeguard": _SAFEGUARD, "pooling": _POOLING},
        signals=_always(WINDOW),
    ),
    "keydiff": Method("keydiff:KeyDiff", {"safeguard": _SAFEGUARD}),
    "kvzip": Method("kvzip:KVzip", {"floor": _FLOOR}, rereads=_REPEATED),
    "kvzip-plus": Method("kvzip_plus:KVzipPlus", {"floor": _FLOOR}, rereads=_REPEATED),
    "kvzap": Method(
        "kvzap:KVzap",
        {
            "safeguard": _SAFEGUARD,
            "window": count(128, "Last tokens that every head keeps, half of the budget at most."),
            "floor": _FLOOR,
        },
        calibrated=True,
        hidden_map=lambda options: "kvzap",
    ),
    "expected-attention": Method(
        "expected_attention:ExpectedAttention",
        {
            "safeguard": _SAFEGUARD,
            "epsilon": share(
                0.0,
                "Attention that every token is given before it is weighed by the norm of its value "
                "(the leaderboard of kvpress has 0.01 as a variant).",
            ),
        },
        signals=_always("expected_attention:Expected"),
    ),
    "tova": Method("tova:TOVA", signals=_always("tova:Newest")),
    "pyramidkv": Method(
        "pyramidkv:PyramidKV",
        {
            "beta": count(20, "Beside its window, the last layer gets the mean budget over beta."),
            "pooling": _POOLING,
        },
        signals=_always(WINDOW),
    ),
    "kvpress": Method(
        "peer:Peer",
        {
            "press": choice(
                "SnapKVPress",
                "Class of kvpress: of those that learn nothing and fetch nothing.",
                (
                    "SnapKVPress",
                    "ExpectedAttentionPress",
                    "TOVAPress",
                    "KeyDiffPress",
                    "KnormPress",
                    "ObservedAttentionPress",
                    "StreamingLLMPress",
                    "PyramidKVPress",
                    "CompactorPress",
                    "LeverageScorePress",
                    "NonCausalAttnPress",
                    "LagKVPress",
                    "CURPress",
                    "KVzipPress",
                    "KVgradPress",
                    "RandomPress",
                ),
            ),
            "arguments": arguments("Its own, beside the compression ratio."),
            "safeguard": _SAFEGUARD,
        },
        elsewhere=True,
    ),
    "head-aware": Method(
        "head_aware:HeadAware",
        {
            "allocation": choice(
                "floored",
                "Where the budgets of heads come from.",
                ("floored", "predicted", "curves", "class", "uniform"),
            ),
            "loss": choice(
                "answer",
                "Loss curves of the answer's likelihood, of the attention output's norm, or of "
                "attention mass.",
                ("answer", "output", "mass"),
            ),
            "rule": choice("predicted", "The score by which a head keeps tokens.", _OF_RULE),
            "features": choice(
                "group",
                "What scores are predicted from: keys and values of all KV heads of the layer, or "
                "of the head alone, or the hidden state.",
                ("group", "own", "hidden"),
            ),
            "safeguard": share(
                None,
                "α, the share of its budget that each head is sure of; the rest is pooled over its "
                "layer. By default 1, or 0.5 without a calibration.",
            ),
            "recent": count(8, "Last tokens that every head keeps."),
        },
        calibrated=True,
        signals=lambda options: _OF_RULE[options["rule"]],
        hidden_map=_of_features,
    ),
}


def method(name: str) -> Method:
    """A method by name. Raises `UserError` for an unknown one."""
    if name not in METHODS:
        raise UserError(
            f"unknown method {name!r}{suggest(name, METHODS)}; known are {', '.join(METHODS)}"
        )
    return METHODS[name]


def module_of(name: str) -> str:
    """Full module name of a method."""
    return located(method(name).module)[0]


def located(name: str) -> tuple[str, str]:
    """The full name of the module, and the name in it, of a `module:Class` of this package."""
    module, _, cls = name.partition(":")
    return f"{__package__}.{module}", cls
