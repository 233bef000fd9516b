"""What a configuration may ask for beyond what its schema says: one check a function.

All raise `UserError`, naming the place in the configuration, the fault and the remedy.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kvbudget import options
from kvbudget.cache.budget import MINIMUM, SINKS
from kvbudget.errors import UserError
from kvbudget.options import suggest
from kvbudget.policies import registry as methods
from kvbudget.study import titles
from kvbudget.tasks import registry as tasks

#: Folders of results/ and paper/ that are no study's.
_SHARED = frozenset(
    ["bench", "calibrations", "cells", "code", "logs", "models", "published", "sections", "text"]
)
#: A needle, its surroundings and the chat template take this many tokens.
MIN_LENGTH = 200
#: Keys of a method that the cache takes, whatever the policy.
OF_ANY_METHOD = frozenset(
    {"policy", "title", "prefill_chunk", "stride", "bits", "value_bits", "bounded"}
)
#: Key of a calibrated method that is measured with several seeds of its calibration.
SEEDS = "calibration_seeds"
#: Keys of a task that say what it is called, how much of it there is, and on which text.
OF_ANY_TASK = frozenset({"kind", "title", "samples", "haystack"})


def check_name(study: str) -> None:
    """A study's folders in results/ and paper/ are its own."""
    if study in _SHARED or study.endswith("-draft"):
        raise UserError(
            f"study: folders of the name {study!r} belong to all studies or to a draft; choose "
            "another name"
        )


def check_titles(table: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Titles can be printed, and told from each other."""
    owners: dict[str, str] = {}
    for name, entry in entries.items():
        title = str(entry.get("title", name))
        titles.check(f"{table}: {name}: title", title)
        other = owners.setdefault(title, name)
        if other != name:
            raise UserError(f"{table}: {other} and {name} have one title, {title!r}; change one")


def method_options(method: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method's policy: those of its entry, and defaults."""
    own = methods.method(method["policy"]).options
    return {name: method.get(name, option.default) for name, option in own.items()}


def least_budget(method: Mapping[str, Any]) -> int:
    """Tokens that every head keeps: attention sinks, and as many recent ones as the method says."""
    return max(MINIMUM, SINKS + method_options(method).get("recent", 0))


def bounded_of(method: Mapping[str, Any], kind: str) -> str:
    """What the budget bounds of a method on a kind of task: what its entry says, or else the
    context alone, but all of a text that is read through the cache throughout."""
    return method.get("bounded", "always" if tasks.kind(kind).throughout else "context")


def budget_of(where: str, budget: str | int, length: int, prompt: int, least: int) -> str | int:
    """A budget in its one spelling: an int of tokens or a string such as `12.5%`."""
    if isinstance(budget, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", budget)):
        share = float(match[1])
        if not 0 < share <= 100:
            raise UserError(f"{where}: a share must be above 0% and at most 100%")
        tokens = round(share / 100 * prompt)
        budget = f"{share:g}%"
    else:
        if not re.fullmatch(r"\d+", str(budget)):
            raise UserError(f"{where}: give tokens as in 256, or a share as in '20%'")
        budget = tokens = int(budget)
        if tokens >= length:
            raise UserError(
                f"{where}: at length {length} nothing would be evicted; "
                "use a smaller budget or a longer length"
            )
    if tokens < least:
        raise UserError(
            f"{where}: at length {length} that is {tokens} tokens, under the {least} that "
            "attention sinks and recent tokens take; use a larger budget or a longer length"
        )
    return budget


def check_method(
    name: str, method: Mapping[str, Any], calibrations: Mapping[str, Mapping[str, Any]]
) -> None:
    """A method has options of its policy alone, and they go together."""
    where = f"methods: {name}"
    known(f"{where}: policy", method["policy"], methods.METHODS, "kvbudget.policies")
    policy = methods.method(method["policy"])
    own = {key: value for key, value in method.items() if key not in OF_ANY_METHOD}
    if policy.calibrated and "calibration" in own:
        known(f"{where}: calibration", own.pop("calibration"), calibrations, "calibrations")
    if policy.calibrated:
        own.pop(SEEDS, None)
    given = options.filled(where, own, policy.options)
    if policy.elsewhere:
        _check_elsewhere(where, method)
    if method.get("prefill_chunk") and policy.holds_context:
        raise UserError(
            f"{where}: policy {method['policy']!r} needs the whole context before it "
            "evicts; drop prefill_chunk"
        )
    if "bits" in method and policy.moves_keys(given):
        option, still = policy.stays
        raise UserError(
            f"{where}: bits: keys that move inside the cache cannot be quantised; use "
            f"{option}: {still}"
        )
    if "value_bits" in method and "bits" not in method:
        raise UserError(f"{where}: value_bits needs bits, which says how keys are stored")
    if "bounded" in method and method["policy"] == "full":
        raise UserError(f"{where}: policy 'full' has no budget that could be bounded; drop bounded")


def check_map(method: str, hidden_map: str | None, calibration: Mapping[str, Any]) -> None:
    """The calibration of a method holds the map from hidden states that it scores by."""
    if hidden_map is not None and hidden_map not in calibration["hidden_maps"]:
        raise UserError(
            f"methods: {method}: its calibration has no map {hidden_map!r} from hidden states; add "
            f"hidden_maps: [{hidden_map}] to calibration, or to the entry of calibrations that it "
            "names"
        )


def check_calibration(where: str, entry: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """A calibration is made of a text that there is."""
    if "haystack" in entry:
        known(f"{where}: haystack", entry["haystack"], config["haystacks"], "haystacks")


def _check_elsewhere(where: str, method: Mapping[str, Any]) -> None:
    """A library of others has none of our cache's options."""
    ours = OF_ANY_METHOD - {"policy", "title"}
    if found := sorted(ours.intersection(method)):
        raise UserError(
            f"{where}: {found[0]} is an option of our caches, and policy {method['policy']!r} is "
            "measured without them; drop it"
        )


def check_task(name: str, task: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """A task has options of its kind alone, and a text that it can use."""
    known(f"tasks: {name}: kind", task["kind"], tasks.KINDS, "kvbudget.tasks")
    own = {key: value for key, value in task.items() if key not in OF_ANY_TASK}
    options.filled(f"tasks: {name}", own, tasks.options_of(task["kind"]))
    _check_haystack(name, task, config)


def _check_haystack(name: str, task: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    haystack = task.get("haystack", config["haystack"])
    where = f"tasks: {name}"
    known(f"{where}: haystack", haystack, config["haystacks"], "haystacks")
    if (
        tasks.kind(task["kind"]).protocol == "translation"
        and "translation" not in config["haystacks"][haystack]
    ):
        raise UserError(
            f"{where}: haystack {haystack!r} has no translation; name a parallel text by "
            "the task's key haystack"
        )


def check_experiment(experiment: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """An experiment names what there is, and its methods can do its tasks at its lengths."""
    where = f"experiments: {experiment['name']}"
    for table in ("models", "tasks", "methods"):
        for key in experiment[table]:
            known(f"{where}: {table}", key, config[table], f"{table}:")
    own_lengths = experiment.get("lengths_by_model", {})
    for key in own_lengths:
        known(f"{where}: lengths_by_model", key, experiment["models"], f"{where}: models")
    for order in experiment.get("orders", []):
        _check_order(f"{where}: orders", order, experiment, config)
    for model in experiment["models"]:
        for length in own_lengths.get(model, experiment["lengths"]):
            check_length(where, config, model, length)
            for method in experiment["methods"]:
                policy = methods.method(config["methods"][method]["policy"])
                reader = f"{where}: method {method!r}"
                check_repetition(reader, config, model, length, policy.rereads)
    for task in experiment["tasks"]:
        for method in experiment["methods"]:
            here, kind = f"{where}: task {task!r}", config["tasks"][task]["kind"]
            _check_fits(here, kind, method, config["methods"][method])


def _check_order(
    where: str, order: Iterable[str], experiment: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """An order is of methods that the experiment measures at its budgets."""
    for key in order:
        known(where, key, experiment["methods"], "the experiment's methods:")
        if config["methods"][key]["policy"] == "full":
            raise UserError(
                f"{where}: method {key!r} has no budget at which it could be compared with the "
                "next; take it out of the order"
            )


def _check_fits(where: str, kind: str, name: str, method: Mapping[str, Any]) -> None:
    """Not every method can do what a kind of task asks of it."""
    if methods.method(method["policy"]).elsewhere and (
        tasks.kind(kind).throughout or tasks.kind(kind).protocol != "questions"
    ):
        raise UserError(
            f"{where}: method {name!r} compresses a context once, before it is asked about, and "
            f"{kind} asks for more; use a task with questions, or another method"
        )
    if tasks.kind(kind).throughout and methods.method(method["policy"]).holds_context:
        raise UserError(
            f"{where}: method {name!r} needs the whole context before it evicts, and {kind} is "
            "bounded throughout; use another method"
        )
    if tasks.kind(kind).throughout and bounded_of(method, kind) != "always":
        raise UserError(
            f"{where}: method {name!r} bounds the context alone, and {kind} is bounded throughout; "
            "drop bounded, or use another task"
        )
    if tasks.kind(kind).protocol == "translation":
        _check_streaming(where, name, method)


def check_repetition(
    reader: str, config: Mapping[str, Any], model: str, length: int, rereads: int
) -> None:
    """What is read again, `rereads` tokens at a time, fits the model's context beside itself."""
    context = config["models"][model].get("context")
    if rereads and context is not None and length + min(length, rereads) > context:
        raise UserError(
            f"{reader} reads a context of {length} tokens twice, over the {context} tokens of "
            f"model {model!r}; use a shorter length or another model"
        )


def _check_streaming(where: str, name: str, method: Mapping[str, Any]) -> None:
    """Source and target are numbered apart: no method may have positions of its own."""
    policy = methods.method(method["policy"])
    given = method_options(method)
    if policy.moves_keys(given):
        option, still = policy.stays
        raise UserError(
            f"{where}: method {name!r} cannot stream with {option}: {given[option]}; "
            f"use {option}: {still}"
        )


def check_length(where: str, config: Mapping[str, Any], model: str, length: int) -> None:
    """A length holds a needle, and the model can read it."""
    if length < MIN_LENGTH:
        raise UserError(f"{where}: length {length} is too short; use at least {MIN_LENGTH} tokens")
    context = config["models"][model].get("context")
    if context is not None and length > context:
        raise UserError(
            f"{where}: length {length} is over the context of model {model!r} ({context} tokens); "
            "drop the length, restrict it with lengths_by_model, or use another model"
        )


def known(where: str, key: str, table: Iterable[str], place: str) -> None:
    """A key is in a table of the configuration."""
    if key not in table:
        names = list(table)
        raise UserError(
            f"{where}: there is no {key!r}{suggest(key, names)}; {place} has {', '.join(names)}"
        )
