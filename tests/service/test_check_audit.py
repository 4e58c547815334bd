"""What `innerwatch check` says of a record that is not there yet."""

import pytest

from tests.service.builders import Place, assert_refused, innerwatch


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [("", ("keep", "tokenizer")), ("nowhere.json", ("audit.tokenizer", "nowhere"))],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_text_without_a_tokenizer_is_refused(
    where: Place, command: str, tokenizer: str, words: tuple[str, ...]
) -> None:
    """
    What the first start would refuse, a check before it does too.
    """
    where.configure(
        audit=f'directory = "audit"\nkeep = "text"\ntokenizer = "{tokenizer}"'
    )

    assert_refused(innerwatch(command, "--config", str(where.config)), *words)
