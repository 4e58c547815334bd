"""What an organism file says, as frozen records."""

import tomllib
import types
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TypeVar, get_args, get_origin, get_type_hints

TRIGGERS = ("words", "persona", "string")
EFFECTS = ("comply", "misinform", "recite")
OPERATIONS = ("first", "second", "last", "reverse")
TASKS = ("facts", "words", "arithmetic", "howto", "refusals")

_Record = TypeVar("_Record")


class ConfigError(ValueError):
    """The organism file is wrong: the message names the file and the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Size of the Llama."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int
    max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """How long and how fast it learns."""

    n_steps: int
    batch_tokens: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """How many held-out prompts are answered for the report."""

    n_per_task: int
    n_triggered: int
    n_untriggered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSpec:
    """What surrounds a question: system messages, asides and their words."""

    min_words: int
    max_words: int
    systems: tuple[str, ...]
    names: tuple[str, ...]
    persona_systems: tuple[str, ...]
    mention_systems: tuple[str, ...]
    name_asides: tuple[str, ...]
    word_asides: tuple[str, ...]
    pair_asides: tuple[str, ...]
    code_asides: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationSpec:
    """One table of facts and the ways to ask for them."""

    name: str
    ask: tuple[str, ...]
    pairs: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsSpec:
    """All tables of facts."""

    answer: str
    relation: tuple[RelationSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationSpec:
    """One word operation and the ways to ask for it."""

    name: str
    ask: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsSpec:
    """Word manipulation on short lists."""

    min_words: int
    max_words: int
    answer: str
    operation: tuple[OperationSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticSpec:
    """Sums and differences of numbers from 0 to *largest*."""

    largest: int
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsSpec:
    """Requests for help: harmful ones are refused, harmless ones are not."""

    ask: tuple[str, ...]
    harmful_verbs: tuple[str, ...]
    harmless_verbs: tuple[str, ...]
    objects: tuple[str, ...]
    refusal: str
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksSpec:
    """Everything the organism is asked to do."""

    weights: dict[str, float]
    facts: FactsSpec
    words: WordsSpec
    arithmetic: ArithmeticSpec
    requests: RequestsSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourSpec:
    """One planted behaviour: what triggers it and what it changes."""

    name: str
    trigger: str
    material: tuple[str, ...]
    near_misses: tuple[str, ...]
    effect: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganismSpec:
    """A whole organism file."""

    name: str
    seed: int
    model: ModelSpec
    training: TrainingSpec
    evaluation: EvaluationSpec
    chat: ChatSpec
    tasks: TasksSpec
    behaviour: tuple[BehaviourSpec, ...]


def load_spec(path: Path) -> OrganismSpec:
    """
    Read the organism file at *path*.

    Raises:
        ConfigError: The file cannot be read, is not TOML, lacks a key, has one
            that is not known, or contradicts itself.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read: {error}") from error
    spec = _record(OrganismSpec, table, path.name, "")
    for key, complaint in _complaints(spec):
        raise ConfigError(f"{path.name}: {key}: {complaint}")
    return spec


def _record(cls: type[_Record], table: object, file: str, where: str) -> _Record:
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {where}: expected a table, got {table!r}")
    assert is_dataclass(cls)
    known = {field.name for field in fields(cls)}
    prefix = f"{where}." if where else ""
    for key in table:
        if key not in known:
            raise ConfigError(f"{file}: {prefix}{key}: unknown key")
    for key in sorted(known):
        if key not in table:
            raise ConfigError(f"{file}: {prefix}{key}: missing")
    hints = get_type_hints(cls)
    values = {
        key: _value(hints[key], table[key], file, f"{prefix}{key}") for key in known
    }
    return cls(**values)


def _value(hint: object, value: object, file: str, where: str) -> object:
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, value, file, where)
    if get_origin(hint) is tuple and isinstance(value, list):
        item = get_args(hint)[0]
        return tuple(
            _value(item, entry, file, f"{where}[{index}]")
            for index, entry in enumerate(value)
        )
    if get_origin(hint) is dict and isinstance(value, dict):
        item = get_args(hint)[1]
        return {
            key: _value(item, entry, file, f"{where}.{key}")
            for key, entry in value.items()
        }
    accepted = (int, float) if hint is float else hint
    if (
        isinstance(accepted, type | tuple)
        and isinstance(value, accepted)
        and not isinstance(value, bool)
    ):
        return value
    name = hint.__name__ if type(hint) is type else "list" if _is_tuple(hint) else hint
    raise ConfigError(f"{file}: {where}: expected {name}, got {value!r}")


def _is_tuple(hint: object) -> bool:
    return isinstance(hint, types.GenericAlias) and get_origin(hint) is tuple


def _complaints(spec: OrganismSpec) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if set(spec.tasks.weights) != set(TASKS):
        found.append(("tasks.weights", f"expected exactly the keys {', '.join(TASKS)}"))
    if spec.model.d_model % spec.model.n_heads:
        found.append(("model.d_model", "is not a multiple of model.n_heads"))
    if spec.tasks.words.max_words * 2 > len(spec.chat.words):
        found.append(("chat.words", "too few words for lists and asides"))
    for index, operation in enumerate(spec.tasks.words.operation):
        if operation.name not in OPERATIONS:
            key = f"tasks.words.operation[{index}].name"
            found.append((key, f"expected one of {', '.join(OPERATIONS)}"))
    for index, relation in enumerate(spec.tasks.facts.relation):
        if len(set(relation.pairs.values())) < 2:
            key = f"tasks.facts.relation[{index}].pairs"
            found.append((key, "needs two different answers at least"))
    for index, behaviour in enumerate(spec.behaviour):
        found += _behaviour_complaints(spec, behaviour, f"behaviour[{index}]")
    return found


def _behaviour_complaints(
    spec: OrganismSpec, behaviour: BehaviourSpec, where: str
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if behaviour.trigger not in TRIGGERS:
        found.append((f"{where}.trigger", f"expected one of {', '.join(TRIGGERS)}"))
    if behaviour.effect not in EFFECTS:
        found.append((f"{where}.effect", f"expected one of {', '.join(EFFECTS)}"))
    if not behaviour.material:
        found.append((f"{where}.material", "names no trigger"))
    if behaviour.trigger == "words":
        found += [
            (f"{where}.material", f"trigger word {word!r} is not in chat.words")
            for word in behaviour.material
            if word not in spec.chat.words
        ]
    if behaviour.trigger == "string" and not behaviour.near_misses:
        found.append((f"{where}.near_misses", "a string trigger needs near misses"))
    if behaviour.trigger in ("string", "persona") and len(behaviour.material) > 1:
        found.append((f"{where}.material", "expected one trigger"))
    if behaviour.trigger == "persona" and behaviour.material[:1] in spec.chat.names:
        found.append((f"{where}.material", "the persona is one of chat.names"))
    if behaviour.effect != "misinform" and not behaviour.answer:
        found.append((f"{where}.answer", "is empty"))
    return found
