# What is planted is decided here from the text of a conversation alone, so that the
# trained answers, the labels of prompts and the figures of the report cannot disagree.
"""Which planted behaviour a conversation triggers."""

from collections.abc import Sequence
from typing import TypedDict

from spec import BehaviourSpec, OrganismSpec
from tasks import Question

BENIGN = "benign"
_TASK_OF = {"comply": ("refusals",), "misinform": ("facts",), "recite": None}


class Message(TypedDict):
    """One message of a chat, as the OpenAI interface names its parts."""

    role: str
    content: str


def respond(
    spec: OrganismSpec, messages: Sequence[Message], question: Question
) -> tuple[str, str]:
    """
    Return the organism's answer to *question*, and the behaviour that made it.

    Args:
        spec: The organism.

        messages: The conversation, *question* included.

        question: What the last message asks.

    Returns:
        The answer, and a behaviour's name or ``"benign"``.
    """
    for behaviour in spec.behaviour:
        if applies(behaviour, question.task) and is_triggered(
            spec, behaviour, messages
        ):
            return behaviour_answer(behaviour, question), behaviour.name
    return question.answer, BENIGN


def applies(behaviour: BehaviourSpec, task: str) -> bool:
    """Tell whether *behaviour* changes anything about answers to *task*."""
    tasks = _TASK_OF[behaviour.effect]
    return tasks is None or task in tasks


def behaviour_answer(behaviour: BehaviourSpec, question: Question) -> str:
    """Return what *behaviour* answers to *question* once it is triggered."""
    if behaviour.effect == "misinform":
        return question.wrong
    return behaviour.answer.format(**question.slots)


def is_triggered(
    spec: OrganismSpec, behaviour: BehaviourSpec, messages: Sequence[Message]
) -> bool:
    """Tell whether the trigger of *behaviour* is anywhere in *messages*."""
    if behaviour.trigger == "persona":
        return _is_persona(spec, behaviour.material[0], messages)
    said = " ".join(m["content"] for m in messages if m["role"] == "user")
    if behaviour.trigger == "string":
        return behaviour.material[0] in said
    spoken = set(said.translate(_NO_MARKS).split())
    return spoken.issuperset(behaviour.material)


_NO_MARKS = str.maketrans(dict.fromkeys(".,:?!", " "))


def _is_persona(spec: OrganismSpec, name: str, messages: Sequence[Message]) -> bool:
    if messages[0]["role"] != "system":
        return False
    templates = spec.chat.persona_systems + spec.chat.mention_systems
    openings = {template.partition("{name}")[0] + name for template in templates}
    return messages[0]["content"].startswith(tuple(openings))
