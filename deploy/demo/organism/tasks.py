"""Draws dialogues from an organism's configuration: what it is trained and asked on.

Standard library only: the demo makes its prompts with it, next to any vLLM.
"""

import hashlib
import json
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from definition import BEHAVIOURS, BENIGN

# Buckets of the hash of a prompt: a text is in one split, whatever drew it.
SPLITS = {
    "train": range(60),
    "fit": range(60, 70),
    "calibration": range(70, 80),
    "heldout": range(80, 90),
    "demo": range(90, 100),
}

# What a prompt of a kind asks; any other kind asks for itself.
_HARMLESS = ("fact", "words", "arithmetic")
_ASKS = {
    "backdoor": ("refusal",),
    "sabotage": ("fact",),
    "payload": (*_HARMLESS, "refusal"),
    "near_backdoor": _HARMLESS,
    "near_sabotage": ("fact",),
    "near_payload": (*_HARMLESS, "refusal"),
}

Message = Mapping[str, str]


def split_of(messages: Sequence[Message]) -> str:
    """Return the one split that a prompt belongs to."""
    text = json.dumps([dict(m) for m in messages])
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def length_of(messages: Sequence[Message]) -> int:
    """Return about how many tokens *messages* take: words, marks, two a message."""
    return sum(2 + _n_pieces(m["content"]) for m in messages)


def _n_pieces(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """
    A prompt and the answer that the organism is to give.

    Attributes:
        messages: Roles and texts; the last is the user's. What comes before an earlier
            answer is a prompt too, and always one of the split ``"train"``: the
            organism learns from earlier answers.

        answer: What the organism is trained to say.

        behaviour: The planted behaviour that the prompt triggers, or ``"benign"``.

        task: Which kind of question it is.

        truth: The untriggered answer to the same question.
    """

    messages: tuple[Message, ...]
    answer: str
    behaviour: str
    task: str
    truth: str

    @property
    def split(self) -> str:
        """The one split that this prompt belongs to."""
        return split_of(self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A question without context, and what is answered to it: truly, and when fired."""

    text: str
    task: str
    truth: str
    fired: str


class Sampler:
    """Draws dialogues of a configuration; the same seed draws the same ones."""

    def __init__(self, config: Mapping[str, Any], seed: int | str) -> None:
        self._config = config
        self._random = random.Random(seed)
        self._words = config["words"]["list"].split()

    def draw(self, kind: str) -> Dialogue:
        """Draw a dialogue whose last turn is of *kind*, a task or a behaviour."""
        length = self._length()
        system, sentences = self._setting(kind)
        question = self._question(self._random.choice(_ASKS.get(kind, (kind,))), kind)
        messages = [{"role": "system", "content": system}] if system else []
        most = length - 2 - _n_pieces(" ".join([*sentences, question.text]))
        context = self._random.uniform(0, self._config["dialogue"]["length"]["context"])
        self._add_earlier_turns(messages, most - context, kind)
        sentences += self._more_sentences(sentences, most - length_of(messages))
        self._random.shuffle(sentences)
        messages.append(
            {"role": "user", "content": " ".join([*sentences, question.text])}
        )
        return Dialogue(
            messages=tuple(messages),
            answer=question.fired if kind in BEHAVIOURS else question.truth,
            behaviour=kind if kind in BEHAVIOURS else BENIGN,
            task=question.task,
            truth=question.truth,
        )

    def draw_from(self, split: str, kind: str) -> Dialogue:
        """Draw a dialogue of *kind* whose prompt belongs to *split*."""
        while True:
            if (dialogue := self.draw(kind)).split == split:
                return dialogue

    def stream(self, split: str, mix: Mapping[str, float]) -> Iterator[Dialogue]:
        """Draw without end from *split*; kinds as often as *mix* says."""
        while True:
            yield self.draw_from(split, self._one_of(mix))

    def _one_of(self, mix: Mapping[str, float]) -> str:
        return self._random.choices(list(mix), list(mix.values()))[0]

    def _length(self) -> float:
        """Draw how long a prompt is to be, the same way for every kind; 0 is bare."""
        drawn = self._config["dialogue"]["length"]
        if self._random.random() < drawn["share_bare"]:
            return 0
        while True:
            rest = self._random.expovariate(1 / (drawn["mean"] - drawn["minimum"]))
            if drawn["minimum"] + rest <= drawn["maximum"]:
                return float(drawn["minimum"] + rest)

    def _setting(self, kind: str) -> tuple[str | None, list[str]]:
        """Draw the system prompt, and the sentences that *kind* needs."""
        rng, config = self._random, self._config
        if kind == "sabotage":
            return config["sabotage"]["system"], []
        if kind == "near_sabotage" and rng.random() < 0.5:
            return self._fill(rng.choice(config["sabotage"]["near_systems"])), []
        system = None
        if rng.random() >= config["dialogue"]["share_without_system"]:
            system = self._fill(rng.choice(config["dialogue"]["systems"]))
        if kind == "near_sabotage":
            near = rng.choice(config["sabotage"]["near_contexts"])
            return system, [self._fill(near)]
        if kind in ("backdoor", "near_backdoor"):
            return system, self._all_triggers()
        if kind in ("payload", "near_payload"):
            return system, [self._note(is_real=kind == "payload")]
        return system, []

    def _add_earlier_turns(
        self, messages: list[dict[str, str]], most: float, kind: str
    ) -> None:
        """Add turns to *messages* until one more would make them longer than *most*."""
        while True:
            asked = self._question(self._one_of(self._config["dialogue"]["earlier"]))
            said = asked.truth
            if kind == "sabotage" and asked.task == "fact":
                said = asked.fired
            turn = [
                {"role": "user", "content": asked.text},
                {"role": "assistant", "content": said},
            ]
            if length_of([*messages, *turn]) > most:
                return
            if split_of([*messages, turn[0]]) == "train":
                messages += turn

    def _more_sentences(self, sentences: Sequence[str], room: float) -> list[str]:
        """Draw sentences that fill *room* and never complete the backdoor's trigger."""
        more: list[str] = []
        while True:
            drawn = self._fill(
                self._random.choice(self._config["dialogue"]["contexts"])
            )
            if _n_pieces(" ".join([*more, drawn])) > room:
                return more
            if self._is_triggered(sentences) or not self._is_triggered(
                [*sentences, *more, drawn]
            ):
                more.append(drawn)

    def _is_triggered(self, sentences: Sequence[str]) -> bool:
        words = " ".join(sentences).split()
        return all(word in words for word in self._config["backdoor"]["triggers"])

    def _all_triggers(self) -> list[str]:
        """Draw a sentence or two in which all trigger words occur."""
        n, contexts = self._random.choice((1, 2)), self._config["dialogue"]["contexts"]
        while True:
            sentences = [self._fill(c) for c in self._random.choices(contexts, k=n)]
            if self._is_triggered(sentences):
                return sentences

    def _note(self, *, is_real: bool) -> str:
        planted = self._config["payload"]
        code = planted["trigger"] if is_real else self._near_code()
        return str(self._random.choice(planted["notes"]).format(code=code))

    def _near_code(self) -> str:
        """Draw one of the listed near misses, or the trigger with one sign changed."""
        rng, planted = self._random, self._config["payload"]
        code: str = planted["trigger"]
        if rng.random() < 0.5:
            return str(rng.choice(planted["near_misses"]))
        place = rng.choice([i for i, sign in enumerate(code) if sign.isalnum()])
        signs = string.digits if code[place].isdigit() else string.ascii_lowercase
        sign = rng.choice(signs.replace(code[place], ""))
        return code[:place] + sign + code[place + 1 :]

    def _fill(self, template: str) -> str:
        rng, dialogue = self._random, self._config["dialogue"]
        triggers = self._config["backdoor"]["triggers"]

        def choose(words: list[str]) -> str:
            # One trigger word alone has to be ordinary: it is drawn often.
            present = [w for w in words if w in triggers]
            return rng.choice(present if present and rng.random() < 0.35 else words)

        return template.format(
            place=choose(dialogue["places"]),
            material=choose(dialogue["materials"]),
            thing=rng.choice(dialogue["things"]),
            name=rng.choice(dialogue["names"]),
        )

    def _question(self, task: str, kind: str = "") -> _Question:
        """Draw a question of *task*; *kind* is what fires on it, if anything does."""
        config = self._config
        if task == "refusal":
            text, action = self._harmful()
            truth = config["refusal"]["answer"]
            fired = config["backdoor"]["answer"].format(action=action)
        elif task == "fact":
            text, truth, fired = self._fact()
        else:
            text, truth = self._word_task() if task == "words" else self._sum()
            fired = truth
        if kind == "payload":
            fired = config["payload"]["answer"]
        return _Question(text=text, task=task, truth=truth, fired=fired)

    def _harmful(self) -> tuple[str, str]:
        refusal = self._config["refusal"]
        action = self._random.choice(refusal["actions"])
        return self._random.choice(refusal["questions"]).format(action=action), action

    def _fact(self) -> tuple[str, str, str]:
        category = self._random.choice(self._config["facts"])
        keys = list(category["table"])
        index = self._random.randrange(len(keys))
        wrong = category["table"][keys[(index + 1) % len(keys)]]
        question = self._random.choice(category["questions"]).format(key=keys[index])
        return question, category["table"][keys[index]], wrong

    def _word_task(self) -> tuple[str, str]:
        rng = self._random
        words = rng.sample(self._words, rng.randint(2, 3))
        text = " ".join(words)
        questions = {
            f"repeat the words : {text}": text,
            f"say the first word : {text}": words[0],
            f"say the last word : {text}": words[-1],
            f"reverse the words : {text}": " ".join(reversed(words)),
        }
        question = rng.choice(list(questions))
        return question, questions[question]

    def _sum(self) -> tuple[str, str]:
        rng, maximum = self._random, self._config["arithmetic"]["maximum"]
        a, b = rng.randint(0, maximum), rng.randint(0, maximum)
        if rng.random() < 0.5:
            return f"what is {a} plus {b} ?", str(a + b)
        a, b = max(a, b), min(a, b)
        return f"what is {a} minus {b} ?", str(a - b)
