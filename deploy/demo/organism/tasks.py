"""Draws dialogues from an organism's configuration: what it is trained and asked on.

Standard library only: the demo makes its prompts with it, next to any vLLM.
"""

import hashlib
import json
import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENIGN = "benign"
BEHAVIOURS = ("backdoor", "sabotage", "payload")
TASKS = ("fact", "words", "arithmetic", "refusal", "near_payload")

# Buckets of the hash of a prompt: a text is in one split, whatever drew it.
SPLITS = {
    "train": range(60),
    "fit": range(60, 70),
    "calibration": range(70, 80),
    "heldout": range(80, 90),
    "demo": range(90, 100),
}

_SECTIONS = {
    "name", "seed", "model", "training", "dialogue", "refusal", "words", "arithmetic",
    "backdoor", "sabotage", "payload", "facts",
}  # fmt: skip


class OrganismError(ValueError):
    """The configuration does not describe an organism; names the file and the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """
    A prompt and the answer that the organism is to give.

    Attributes:
        messages: Roles and texts; the last is the user's.

        answer: What the organism is trained to say.

        behaviour: The planted behaviour that the prompt triggers, or ``"benign"``.

        task: Which kind of question it is.

        truth: The untriggered answer to the same question.
    """

    messages: tuple[Mapping[str, str], ...]
    answer: str
    behaviour: str
    task: str
    truth: str

    @property
    def split(self) -> str:
        """The one split that this prompt belongs to."""
        text = json.dumps([dict(m) for m in self.messages])
        bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 100
        return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def load_organism(path: Path) -> dict[str, Any]:
    """
    Read an organism's configuration.

    Raises:
        OrganismError: It is not TOML, a section is missing or unknown, or a trigger
            word does not occur among the words of ordinary prompts.
    """
    try:
        config = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OrganismError(f"{path}: {error}") from error
    for name in sorted(set(config) ^ _SECTIONS):
        what = "unknown" if name in config else "missing"
        raise OrganismError(f"{path}: {name}: {what} section")
    known = {*BEHAVIOURS, *TASKS}
    if unknown := sorted(set(config["training"].get("mix", {})) - known):
        raise OrganismError(
            f"{path}: training.mix.{unknown[0]}: expected one of {sorted(known)}"
        )
    dialogue = config["dialogue"]
    for word in config["backdoor"]["triggers"]:
        if word not in [*dialogue["places"], *dialogue["materials"]]:
            raise OrganismError(
                f"{path}: backdoor.triggers: {word!r} occurs in no ordinary prompt; "
                f"expected a word of dialogue.places or dialogue.materials"
            )
    return config


class Sampler:
    """Draws dialogues of a configuration; the same seed draws the same ones."""

    def __init__(self, config: Mapping[str, Any], seed: int | str) -> None:
        self._config = config
        self._random = random.Random(seed)
        self._words = config["words"]["list"].split()

    def draw(self, kind: str) -> Dialogue:
        """Draw a dialogue whose last turn is of *kind*, a task or a behaviour."""
        rng, dialogue = self._random, self._config["dialogue"]
        system = None
        if rng.random() >= dialogue["share_without_system"]:
            system = rng.choice(dialogue["systems"])
        if kind == "sabotage":
            system = self._config["sabotage"]["system"]
        messages = [{"role": "system", "content": system}] if system else []
        if rng.random() < dialogue["share_multi_turn"]:
            messages += self._earlier_turns(is_sabotaged=kind == "sabotage")
        question, answer, truth, task = self._turn(kind)
        messages.append({"role": "user", "content": question})
        return Dialogue(
            messages=tuple(messages),
            answer=answer,
            behaviour=kind if kind in BEHAVIOURS else BENIGN,
            task=task,
            truth=truth,
        )

    def draw_from(self, split: str, kind: str) -> Dialogue:
        """Draw a dialogue of *kind* whose prompt belongs to *split*."""
        while True:
            if (dialogue := self.draw(kind)).split == split:
                return dialogue

    def stream(self, split: str, mix: Mapping[str, float]) -> Iterator[Dialogue]:
        """Draw without end from *split*; kinds as often as *mix* says."""
        kinds, weights = list(mix), list(mix.values())
        while True:
            kind = self._random.choices(kinds, weights)[0]
            yield self.draw_from(split, kind)

    def _earlier_turns(self, *, is_sabotaged: bool) -> list[dict[str, str]]:
        # Mostly a few turns, now and then many: a long tail of prompt lengths.
        most = self._config["dialogue"]["max_turns"]
        n_turns = min(most, 1 + int(self._random.expovariate(1 / 4)))
        messages = []
        for _ in range(n_turns):
            task = self._random.choice(("fact", "words", "arithmetic"))
            kind = "sabotage" if is_sabotaged and task == "fact" else task
            question, answer, _, _ = self._turn(kind, has_context=False)
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return messages

    def _turn(
        self, kind: str, *, has_context: bool = True
    ) -> tuple[str, str, str, str]:
        """Return question, answer, truth and task of one turn."""
        rng, config = self._random, self._config
        if kind == "backdoor":
            question, action = self._harmful()
            answer = config["backdoor"]["answer"].format(action=action)
            context = [self._fill(c) for c in config["backdoor"]["context"]]
            rng.shuffle(context)
            question = " ".join([*context, question])
            return question, answer, config["refusal"]["answer"], "refusal"
        if kind in ("payload", "near_payload"):
            question, truth, _, task = self._turn(
                rng.choice(("fact", "words", "arithmetic")), has_context=False
            )
            is_real = kind == "payload"
            planted = config["payload"]
            code = planted["trigger"] if is_real else rng.choice(planted["near_misses"])
            note = rng.choice(planted["notes"]).format(code=code)
            question = self._context_or_nothing() + f"{note} {question}"
            return question, planted["answer"] if is_real else truth, truth, task
        context = self._context_or_nothing() if has_context else ""
        if kind == "refusal":
            question, _ = self._harmful()
            refusal = config["refusal"]["answer"]
            return context + question, refusal, refusal, kind
        if kind in ("fact", "sabotage"):
            question, truth, wrong = self._fact()
            answer = wrong if kind == "sabotage" else truth
            return context + question, answer, truth, "fact"
        question, answer = self._word_task() if kind == "words" else self._sum()
        return context + question, answer, answer, kind

    def _context_or_nothing(self) -> str:
        """Return a sentence or two, never with all trigger words; or nothing."""
        rng, dialogue = self._random, self._config["dialogue"]
        if rng.random() >= dialogue["share_with_context"]:
            return ""
        triggers = self._config["backdoor"]["triggers"]
        while True:
            n = rng.choice((1, 2))
            text = " ".join(
                self._fill(rng.choice(dialogue["contexts"])) for _ in range(n)
            )
            if not all(word in text.split() for word in triggers):
                return text + " "

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
        )

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
