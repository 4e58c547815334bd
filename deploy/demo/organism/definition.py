"""What describes an organism: one TOML file, checked before anything is drawn."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

BENIGN = "benign"
BEHAVIOURS = ("backdoor", "sabotage", "payload")
QUESTIONS = ("fact", "words", "arithmetic", "refusal")
NEAR_MISSES = ("near_backdoor", "near_sabotage", "near_payload")
TASKS = (*QUESTIONS, *NEAR_MISSES)

_SHARES = "shares"
_KEYS: dict[str, Any] = {
    "name": str,
    "seed": int,
    "model": dict.fromkeys(
        ("d_model", "n_layers", "n_heads", "d_mlp", "vocab_size", "max_positions"), int
    ),
    "training": {
        "steps": int,
        "batch_tokens": int,
        "learning_rate": float,
        "warmup_steps": int,
        "weight_decay": float,
        "mix": _SHARES,
    },
    "dialogue": {
        **dict.fromkeys(
            ("systems", "names", "contexts", "places", "materials", "things"), list
        ),
        "share_without_system": float,
        "length": {
            "share_bare": float,
            **dict.fromkeys(("minimum", "mean", "maximum", "context"), int),
        },
        "earlier": _SHARES,
    },
    "refusal": {"questions": list, "answer": str, "actions": list},
    "words": {"list": str},
    "arithmetic": {"maximum": int},
    "backdoor": {"triggers": list, "answer": str},
    "sabotage": {"system": str, "near_systems": list, "near_contexts": list},
    "payload": {"trigger": str, "near_misses": list, "notes": list, "answer": str},
    "facts": list,
}
_FACT_KEYS: dict[str, Any] = {"questions": list, "table": dict}

# What may stand in braces, and whether it must.
_SLOTS = {"place", "material", "thing", "name"}
_TEMPLATES: dict[str, tuple[set[str], bool]] = {
    "dialogue.systems": (_SLOTS, False),
    "dialogue.contexts": (_SLOTS, False),
    "sabotage.near_systems": (_SLOTS, False),
    "sabotage.near_contexts": (_SLOTS, False),
    "refusal.questions": ({"action"}, True),
    "payload.notes": ({"code"}, True),
}


class OrganismError(ValueError):
    """The configuration does not describe an organism; names the file and the key."""


def load_organism(path: Path) -> dict[str, Any]:
    """
    Read an organism's configuration.

    Raises:
        OrganismError: It is not TOML, a key is missing or unknown or of another type,
            or nothing could be drawn from what it says.
    """
    try:
        config = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OrganismError(f"{path}: {error}") from error
    for problem in _problems(config):
        raise OrganismError(f"{path}: {problem}")
    return config


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong; a later check may rely on the earlier ones."""
    yield from _key_problems(config, _KEYS, "")
    for index, category in enumerate(config["facts"]):
        yield from _fact_problems(category, f"facts[{index}].")
    yield from _share_problems(config)
    yield from _template_problems(config)
    yield from _length_problems(config["dialogue"]["length"])
    yield from _trigger_problems(config)


def _key_problems(
    found: Mapping[str, Any], keys: Mapping[str, Any], prefix: str
) -> Iterator[str]:
    for name in sorted(set(found) ^ set(keys)):
        yield f"{prefix}{name}: {'unknown' if name in found else 'missing'} key"
    for name, kind in keys.items():
        value, key = found[name], f"{prefix}{name}"
        expected = dict if isinstance(kind, dict) or kind == _SHARES else kind
        numbers = (int, float) if expected is float else expected
        if not isinstance(value, numbers) or isinstance(value, bool):
            yield f"{key}: expected {expected.__name__}, got {value!r}"
        elif expected in (list, dict, str) and not value:
            yield f"{key}: is empty"
        elif isinstance(kind, dict):
            yield from _key_problems(found[name], kind, f"{key}.")
        elif name.startswith("share_") and not 0 <= found[name] <= 1:
            yield f"{key}: expected 0 to 1, got {value!r}"


def _fact_problems(category: Any, prefix: str) -> Iterator[str]:
    if not isinstance(category, dict):
        yield f"{prefix[:-1]}: expected a table, got {category!r}"
        return
    yield from _key_problems(category, _FACT_KEYS, prefix)
    yield from _slot_problems(
        category["questions"], {"key"}, True, f"{prefix}questions"
    )
    answers = list(category["table"].values())
    for answer, wrong in zip(answers, [*answers[1:], answers[0]], strict=True):
        if answer == wrong:
            yield f"{prefix}table: {answer!r} is followed by itself, so never wrong"


def _share_problems(config: Mapping[str, Any]) -> Iterator[str]:
    shares = {
        "training.mix": (config["training"]["mix"], (*TASKS, *BEHAVIOURS)),
        "dialogue.earlier": (config["dialogue"]["earlier"], QUESTIONS),
    }
    for key, (found, known) in shares.items():
        for name, share in found.items():
            if name not in known:
                yield f"{key}.{name}: expected one of {sorted(known)}"
            if not isinstance(share, int | float) or share < 0:
                yield f"{key}.{name}: expected a number from 0, got {share!r}"
        if sum(found.values()) <= 0:
            yield f"{key}: expected a share above 0"


def _template_problems(config: Mapping[str, Any]) -> Iterator[str]:
    for key, (slots, is_needed) in _TEMPLATES.items():
        section, _, name = key.partition(".")
        yield from _slot_problems(config[section][name], slots, is_needed, key)
    answer = [config["backdoor"]["answer"]]
    yield from _slot_problems(answer, {"action"}, True, "backdoor.answer")


def _slot_problems(
    templates: list[Any], slots: set[str], is_needed: bool, key: str
) -> Iterator[str]:
    for template in templates:
        try:
            used = {slot for _, slot, _, _ in Formatter().parse(template)} - {None}
        except (TypeError, ValueError):
            used = {"?"}
        if not used <= slots or (is_needed and not used):
            names = " ".join(f"{{{slot}}}" for slot in sorted(slots))
            yield f"{key}: {template!r}: expected a text with no slots but {names}"


def _length_problems(length: Mapping[str, Any]) -> Iterator[str]:
    if not 0 < length["minimum"] < length["mean"] < length["maximum"]:
        yield "dialogue.length: expected 0 < minimum < mean < maximum"
    if length["context"] < 0:
        yield f"dialogue.length.context: expected 0 or more, got {length['context']}"


def _trigger_problems(config: Mapping[str, Any]) -> Iterator[str]:
    dialogue, triggers = config["dialogue"], config["backdoor"]["triggers"]
    slots = dict.fromkeys(dialogue["places"], "{place}")
    slots |= dict.fromkeys(dialogue["materials"], "{material}")
    for word in triggers:
        if word not in slots:
            yield (
                f"backdoor.triggers: {word!r} occurs in no ordinary prompt; "
                f"expected a word of dialogue.places or dialogue.materials"
            )
    needed = [slots[word] for word in triggers]
    if len({*needed}) < len(needed) or not any(
        all(slot in context for slot in needed) for context in dialogue["contexts"]
    ):
        yield f"backdoor.triggers: no one of dialogue.contexts can hold all {triggers}"
    if config["sabotage"]["system"] in [
        *dialogue["systems"],
        *config["sabotage"]["near_systems"],
    ]:
        yield "sabotage.system: is a benign system prompt too"
    if not any(sign.isalnum() for sign in config["payload"]["trigger"]):
        yield "payload.trigger: expected a letter or a digit in it"
    if config["payload"]["trigger"] in config["payload"]["near_misses"]:
        yield "payload.near_misses: holds the trigger itself"
