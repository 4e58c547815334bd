# A token's text depends on those around it: SentencePiece takes the space from the
# first of a text, and a character of several bytes may be several tokens. Tokenizers'
# own DecodeStream knows that, and raises on what is no UTF-8, which anybody can send:
# <https://github.com/vllm-project/vllm/issues/17448>. Nothing here raises.
"""The text of each token, so that all of them together read as the text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_NAME = "tokenizer.json"
_MAX_KEPT = 1 << 18  # More than any vocabulary that is in use.
_MOST_PARTS = 8  # Tokens of one character: 4 bytes, and what stands around them.
_PART = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """
    Decodes tokens; what was decoded once is remembered. For any thread.

    A character that several tokens make is the text of the last one, and the others
    have none. Bytes that are no character are U+FFFD.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}
        # Something that every text may stand behind; not encoded, which may raise.
        letters = [tokenizer.token_to_id(text) for text in ("\u2581a", "a")]
        self._before = [i for i in letters if i is not None][:1]
        self._before_text = self._decode(self._before)

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Read *path*, a ``tokenizer.json`` or the folder that holds one.

        Raises:
            ValueError: There is none, or it is none.
        """
        from tokenizers import Tokenizer

        file = path / FILE_NAME if path.is_dir() else path
        try:
            return cls(Tokenizer.from_str(file.read_text()))
        except Exception as error:
            # Of the library's own kind, which is no other than Exception.
            raise ValueError(f"{file}: {error}") from error

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Return a text for each of *token_ids*; "" for one that is not known."""
        ids = [i if i >= 0 else None for i in token_ids]  # -1: nobody knows which.
        found = ["" if i is None else self._text((i,)) for i in ids]
        start = 0
        while start < len(found):
            if _PART not in found[start]:
                start += 1
                continue
            stop = start + 1
            while stop < len(found) and _PART in found[stop]:
                stop += 1
            self._join(token_ids, found, start, stop)
            start = stop
        return found

    def _join(
        self, token_ids: Sequence[int], found: list[str], start: int, stop: int
    ) -> None:
        """Write into *found* what tokens from *start* to *stop* are together."""
        while start < stop:
            for end in range(start + 2, min(start + _MOST_PARTS, stop) + 1):
                text = self._text(tuple(token_ids[start:end]))
                if _PART not in text:
                    found[start : end - 1] = [""] * (end - 1 - start)
                    found[end - 1] = text
                    start = end
                    break
            else:
                start += 1  # It is no character, with whatever follows.

    def _text(self, ids: tuple[int, ...]) -> str:
        text = self._known.get(ids)
        if text is None:
            whole = self._decode([*self._before, *ids])
            if whole.startswith(self._before_text):
                text = whole[len(self._before_text) :]
            else:
                text = self._decode(ids)
            if len(self._known) < _MAX_KEPT:
                self._known[ids] = text
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text
