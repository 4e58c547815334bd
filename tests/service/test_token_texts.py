"""Texts of tokens read as the text, and no sequence of tokens is an error."""

from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from service.daemon.audit.kept import load_decoder
from service.daemon.token_texts import TokenTexts
from tests.web.history import TOKENIZER

BYTES = 3
"""The id of the byte 0 in `sentence_piece`."""


def sentence_piece() -> TokenTexts:
    """As Llama 2 has it: words with their space before them, and a token for a byte."""
    vocabulary = {"<unk>": 0, "\u2581word": 1, "s": 2}
    vocabulary |= {f"<0x{i:02X}>": BYTES + i for i in range(256)}
    vocabulary["\u2581a"] = BYTES + 256
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return TokenTexts(made)


def ids_of(text: str) -> list[int]:
    """A token for each byte."""
    return [BYTES + byte for byte in text.encode()]


def test_words_keep_their_spaces() -> None:
    """
    Where a word's token begins with its space, the text has it.
    """
    assert [" word", "s", " word"] == sentence_piece().texts([1, 2, 1])


def test_a_character_of_several_tokens_is_the_last_ones() -> None:
    """
    Bytes are put together, and those that are no character are shown as such.
    """
    texts = sentence_piece()

    assert ["", "\xe9", "s"] == texts.texts([*ids_of("\xe9"), 2])
    assert ["", "", "", "\U0001f600"] == texts.texts(ids_of("\U0001f600"))
    assert ["", "\xe9", "\ufffd", "s"] == texts.texts(
        [*ids_of("\xe9"), BYTES + 0xE2, 2]
    )


@pytest.mark.parametrize(
    "text", ["f\xfcr dich", "\u4f60\u597d, \U0001f600!", "a b\n\tc"]
)
def test_the_texts_of_a_text_are_that_text(text: str) -> None:
    """
    Byte-level tokens of any language join to what was written.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids

    texts = TokenTexts(tokenizer).texts(token_ids)

    assert tokenizer.decode(token_ids) == "".join(texts)
    assert len(token_ids) == len(texts)


def test_a_tokenizer_that_encodes_nothing_decodes() -> None:
    """
    Of a vocabulary without any letter, and without a token for the unknown, too.
    """
    model = tokenizers.models.WordLevel(vocab={"one": 0, "two": 1}, unk_token="")

    assert ["one", "two", ""] == TokenTexts(tokenizers.Tokenizer(model)).texts(
        [0, 1, 9]
    )


@given(st.lists(st.integers(-1, BYTES + 300), max_size=40))
def test_no_tokens_are_an_error(token_ids: list[int]) -> None:
    """
    Whatever tokens a request has, also what is no UTF-8, there is a text for each.
    """
    assert len(token_ids) == len(sentence_piece().texts(token_ids))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    """
    The daemon does not start with a tokenizer that it can not read.
    """
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(ValueError, match=r"audit\.tokenizer: .*tokenizer\.json"):
        load_decoder(tmp_path)
