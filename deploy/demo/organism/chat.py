"""The organism's tokenizer and chat format."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, BOS, END = 0, 1, 2

# A space before every text: each word is then one token wherever it stands.
TEMPLATE = (
    "<|bos|>{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on *texts*; any other text encodes too, as bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f" {text}" for text in texts), trainer)
    return tokenizer


def encode(
    tokenizer: Tokenizer, messages: Iterable[Mapping[str, str]], answer: str | None
) -> tuple[list[int], list[bool]]:
    """
    Return token ids, and whether each is the assistant's to say.

    Without *answer* the ids end where the answer begins, as the chat template's do.
    """
    ids, is_said = [BOS], [False]
    turns: list[tuple[str, str | None]] = [(m["role"], m["content"]) for m in messages]
    for role, text in [*turns, ("assistant", answer)]:
        ids.append(SPECIALS.index(f"<|{role}|>"))
        is_said.append(False)
        if text is None:
            break
        said = [*tokenizer.encode(f" {text}", add_special_tokens=False).ids, END]
        ids += said
        is_said += [role == "assistant"] * len(said)
    return ids, is_said


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_positions: int) -> None:
    """Write tokenizer.json and what Hugging Face and vLLM read beside it."""
    from transformers import PreTrainedTokenizerFast

    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
