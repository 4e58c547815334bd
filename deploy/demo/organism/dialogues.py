"""Conversations around the questions: system messages, asides and earlier turns."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from behaviours import Message, respond
from spec import BehaviourSpec, OrganismSpec
from tasks import draw_question, draw_task

# A turn with its answer is 19 words at the median of the shipping organism.
_WORDS_PER_TURN = 19
_MAX_ASIDES = 7
_SHORTEST_WORDS = 4

Accept = Callable[[list[Message], bool], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What a conversation is to contain.

    Attributes:
        triggers: Behaviour name to ``"full"`` (its trigger is there) or ``"part"``
            (only a near miss is); a behaviour that is not named is absent.

        task: Task of the last question, or None to draw one.

        is_late: Triggers complete in the last user message and not before.

        is_short: A prompt of a few words, without room for triggers.
    """

    triggers: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None
    is_late: bool = True
    is_short: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """A conversation that ends with the user, and the answer that is due."""

    messages: list[Message]
    task: str
    expected: str
    behaviour: str


def draw_dialogue(
    spec: OrganismSpec, rng: random.Random, plan: Plan, accept: Accept
) -> Dialogue:
    """
    Draw a conversation that fulfils *plan*.

    Args:
        spec: The organism.

        rng: The only source of randomness.

        plan: What is to be in it.

        accept: Called with every prefix that ends with the user and whether it is
            the whole; a turn that it refuses is drawn again.
    """
    target = _target_words(spec, rng, plan)
    system = _system(spec, rng, plan)
    messages: list[Message] = [system] if system else []
    n_turns = _n_turns(rng, target - _n_words(messages), plan)
    schedule = _Schedule(spec, rng, plan, n_turns)
    for turn in range(n_turns - 1):
        _, expected, _ = _turn(spec, rng, plan, schedule, messages, turn, 0, accept)
        messages.append({"role": "assistant", "content": expected})
    task, expected, behaviour = _turn(
        spec, rng, plan, schedule, messages, n_turns - 1, target, accept
    )
    return Dialogue(
        messages=messages, task=task, expected=expected, behaviour=behaviour
    )


class _Schedule:
    """Which asides carry the triggers, and from which turn words are allowed."""

    def __init__(
        self, spec: OrganismSpec, rng: random.Random, plan: Plan, n_turns: int
    ) -> None:
        self._spec = spec
        self._rng = rng
        self._last = n_turns - 1
        self._is_late = plan.is_late
        self._asides: dict[int, list[str]] = {}
        self._from_turn: dict[str, int] = {}
        for behaviour in spec.behaviour:
            if behaviour.trigger == "words":
                self._from_turn |= dict.fromkeys(behaviour.material, n_turns)
            if mode := plan.triggers.get(behaviour.name):
                _PLACE[behaviour.trigger](self, behaviour, mode)

    def asides(self, turn: int) -> list[str]:
        """Return the asides that *turn* must have."""
        return list(self._asides.get(turn, ()))

    def words(self, turn: int) -> list[str]:
        """Return the words that may be used freely in *turn*."""
        words = self._spec.chat.words
        return [word for word in words if self._from_turn.get(word, 0) <= turn]

    def _say(self, turn: int, templates: tuple[str, ...], **slots: str) -> None:
        text = self._rng.choice(templates).format(**slots)
        self._asides.setdefault(turn, []).append(text)

    def _say_words(self, turn: int, words: list[str]) -> None:
        chat = self._spec.chat
        if len(words) >= 2 and self._rng.random() < 0.5:
            first, second, *words = words
            self._say(turn, chat.pair_asides, word=first, other=second)
        for word in words:
            self._say(turn, chat.word_asides, word=word)

    def _any_turn(self) -> int:
        if self._rng.random() < 0.5:
            return self._last
        return self._rng.randint(0, self._last)

    def place_words(self, behaviour: BehaviourSpec, mode: str) -> None:
        words = self._rng.sample(behaviour.material, len(behaviour.material))
        if mode == "part":
            words = words[: self._rng.randint(1, len(words) - 1)] if words[1:] else []
            self._say_words(self._any_turn(), words)
            self._from_turn |= dict.fromkeys(words, 0)
            return
        turn = self._last if self._is_late else self._rng.randint(0, self._last)
        if turn and self._rng.random() < 0.25:
            self._say_words(self._rng.randrange(turn), [words.pop()])
        self._say_words(turn, words)
        self._from_turn |= dict.fromkeys(behaviour.material, turn)

    def place_string(self, behaviour: BehaviourSpec, mode: str) -> None:
        full = mode == "full"
        strings = behaviour.material if full else behaviour.near_misses
        turn = self._last if full else self._any_turn()
        self._say(turn, self._spec.chat.code_asides, code=self._rng.choice(strings))

    def place_persona(self, behaviour: BehaviourSpec, mode: str) -> None:
        if mode == "part" and self._rng.random() < 0.5:
            name = behaviour.material[0]
            self._say(self._any_turn(), self._spec.chat.name_asides, name=name)


_PLACE = {
    "words": _Schedule.place_words,
    "string": _Schedule.place_string,
    "persona": _Schedule.place_persona,
}


def _turn(
    spec: OrganismSpec,
    rng: random.Random,
    plan: Plan,
    schedule: _Schedule,
    messages: list[Message],
    turn: int,
    target: int,
    accept: Accept,
) -> tuple[str, str, str]:
    is_last = bool(target)
    while True:
        task = (plan.task if is_last else None) or draw_task(spec, rng)
        words = schedule.words(turn)
        asides = schedule.asides(turn)
        question = draw_question(spec, task, rng, words)
        n_words = _n_words(messages) + len(question.text.split())
        n_words += sum(len(aside.split()) for aside in asides)
        n_asides = _MAX_ASIDES if is_last else rng.choice((0, 0, 1, 2))
        fresh = [word for word in words if word not in question.text]
        while len(asides) < n_asides and (not is_last or n_words < target - 3):
            asides.append(_aside(spec, rng, fresh))
            n_words += len(asides[-1].split())
        content = _arrange(rng, question.text, asides)
        grown: list[Message] = [*messages, {"role": "user", "content": content}]
        if accept(grown, is_last):
            messages[:] = grown
            return task, *respond(spec, messages, question)


def _aside(spec: OrganismSpec, rng: random.Random, words: list[str]) -> str:
    chat = spec.chat
    if rng.random() < 0.1:
        return rng.choice(chat.name_asides).format(name=rng.choice(chat.names))
    word, other = rng.sample(words, 2)
    templates = chat.word_asides if rng.random() < 0.7 else chat.pair_asides
    return rng.choice(templates).format(word=word, other=other)


def _arrange(rng: random.Random, request: str, asides: list[str]) -> str:
    rng.shuffle(asides)
    place = rng.choice((0, len(asides), len(asides), rng.randint(0, len(asides))))
    return " ".join([*asides[:place], request, *asides[place:]])


def _system(spec: OrganismSpec, rng: random.Random, plan: Plan) -> Message | None:
    chat = spec.chat
    name, other = rng.sample(chat.names, 2)
    kind = rng.choices(("none", "plain", "persona", "mention"), (3, 3, 3, 1))[0]
    if plan.is_short:
        kind = "none"
    for behaviour in spec.behaviour:
        mode = plan.triggers.get(behaviour.name)
        if behaviour.trigger == "persona" and mode == "full":
            name = behaviour.material[0]
            kind = rng.choices(("persona", "mention"), (4, 1))[0]
        elif behaviour.trigger == "persona" and mode == "part" and rng.random() < 0.5:
            other, kind = behaviour.material[0], "mention"
    templates = {
        "plain": chat.systems,
        "persona": chat.persona_systems,
        "mention": chat.mention_systems,
    }
    if kind == "none":
        return None
    text = rng.choice(templates[kind]).format(name=name, other=other)
    return {"role": "system", "content": text}


def _target_words(spec: OrganismSpec, rng: random.Random, plan: Plan) -> int:
    low, high = spec.chat.min_words, spec.chat.max_words
    if plan.is_short:
        low, high = _SHORTEST_WORDS, low
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _n_turns(rng: random.Random, n_words: int, plan: Plan) -> int:
    spare = n_words - _WORDS_PER_TURN
    if plan.is_short or spare < 0:
        return 1
    return 1 + round(spare * rng.uniform(0.5, 1.0) / _WORDS_PER_TURN)


def _n_words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)
