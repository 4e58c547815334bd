"""The text of single tokens, for a page that has only their ids."""

from pathlib import Path
from typing import TYPE_CHECKING

from service.config import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_NAME = "tokenizer.json"
_MAX_KEPT = 1 << 18  # More than any vocabulary that is in use.


class TokenTexts:
    """Decodes one token at a time, each once."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    @classmethod
    def load(cls, path: Path) -> "TokenTexts":
        """
        Read *path*, a tokenizer.json or its folder.

        Raises:
            ConfigError: There is none, or it is none.
        """
        from tokenizers import Tokenizer

        file = path / FILE_NAME if path.is_dir() else path
        try:
            return cls(Tokenizer.from_str(file.read_text()))
        except Exception as error:
            raise ConfigError(f"web.tokenizer: {file}: {error}") from error

    def text(self, token_id: int) -> str:
        """Return the text of a token; of one that is not known, its id."""
        found = self._texts.get(token_id)
        if found is None:
            found = self._decode(token_id)
            if len(self._texts) < _MAX_KEPT:
                self._texts[token_id] = found
        return found

    def _decode(self, token_id: int) -> str:
        if token_id < 0:
            return "?"  # The engine did not say which it was.
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text or f"[{token_id}]"
