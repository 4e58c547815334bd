"""The text of a request's tokens, for a page that has only their ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from service.config import ConfigError
from service.daemon.token_texts import TokenTexts


class ShownTexts:
    """Every token has something that can be shown."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Read *path*, a tokenizer.json or its folder.

        Raises:
            ConfigError: There is none, or it is none.
        """
        try:
            return cls(TokenTexts.load(path))
        except ValueError as error:
            raise ConfigError(f"web.tokenizer: {error}") from error

    def texts(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """
        Return a text for each of *token_ids*.

        Of one that is not known it is the id, of one that the engine did not name "?",
        and of the first ones of a character "".
        """
        found = self._texts.texts(token_ids)
        for i, token_id in enumerate(token_ids):
            if token_id < 0:
                found[i] = "?"
            elif not found[i] and not self._texts.texts([token_id])[0]:
                found[i] = f"[{token_id}]"
        return tuple(found)
