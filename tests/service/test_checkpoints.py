"""Checkpoints are notes that other implementations read, and nobody else can sign."""

import stat
from pathlib import Path

import pytest

from service.daemon.audit.checkpoints import (
    Checkpoint,
    CheckpointError,
    Signer,
    Verifier,
)

ROOT = bytes(range(32))

# C2SP signed-note's and Go's golang.org/x/mod/sumdb/note example: PeterNeumann's key.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_reads_a_key_of_gos_note_package() -> None:
    """
    A public key is in the form that Go's note package publishes.
    """
    verifier = Verifier.parse(GO_KEY)

    assert ("PeterNeumann", GO_KEY) == (verifier.name, verifier.text)


def test_reads_a_note_that_go_signed() -> None:
    """
    The signature of Go's own example is right; it just signs no checkpoint.
    """
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
        "\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZ"
        "SNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )

    with pytest.raises(CheckpointError, match=r"expected base64|expected origin"):
        Verifier.parse(GO_KEY).read(note)
    with pytest.raises(CheckpointError, match="its signature is wrong"):
        Verifier.parse(GO_KEY).read(note.replace("problem,", "problems,"))


def test_says_what_was_signed(tmp_path: Path) -> None:
    """
    Origin, size, root and time come back, in the three lines that C2SP wants and one.
    """
    signer = Signer.open(tmp_path / "key")

    note = signer.sign(7, ROOT, 12.5)

    expected = Checkpoint(origin=signer.name, size=7, root=ROOT, signed_at=12.5)
    assert expected == signer.verifier.read(note)
    assert [signer.name, "7"] == note.splitlines()[:2]
    assert "time 12.5" == note.splitlines()[3]


@pytest.mark.parametrize(("old", "new"), [("\n7\n", "\n8\n"), ("12.5", "12.6")])
def test_an_altered_one_is_refused(tmp_path: Path, old: str, new: str) -> None:
    """
    Neither size nor time can be changed after it was signed.
    """
    signer = Signer.open(tmp_path / "key")

    with pytest.raises(CheckpointError, match="its signature is wrong"):
        signer.verifier.read(signer.sign(7, ROOT, 12.5).replace(old, new))


def test_another_key_signs_nothing(tmp_path: Path) -> None:
    """
    A note of another log is not read, even if it bears this one's name.
    """
    signer, other = Signer.open(tmp_path / "a"), Signer.open(tmp_path / "b")
    note = other.sign(7, ROOT, 12.5).replace(other.name, signer.name)

    with pytest.raises(CheckpointError, match="not signed by the key"):
        signer.verifier.read(note)


def test_the_key_is_made_once_for_its_owner(tmp_path: Path) -> None:
    """
    The first start makes a key with mode 0600, the next one reads it.
    """
    path = tmp_path / "keys" / "key"
    first = Signer.open(path)

    again = Signer.open(path)

    assert first.verifier.text == again.verifier.text
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("text", ["", "rubbish", "PRIVATE+KEY+a+b+AQID", "a+b+c+d"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    """
    A file that is no key is named, and not replaced.
    """
    path = tmp_path / "key"
    path.write_text(text)

    with pytest.raises(CheckpointError, match=f"signing key {path}"):
        Signer.open(path)
    with pytest.raises(CheckpointError, match="public key"):
        Verifier.parse(text)

    assert text == path.read_text()
