"""The configuration file: TOML to frozen dataclasses, and nothing unknown."""

import json
import tomllib
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.address import Address, parse_address
from service.toml_section import ConfigError, refuse_unknown, section_of

__all__ = ["SECTIONS", "Config", "ConfigError", "flat", "load_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """[daemon]: where engines and operators reach it."""

    listen: str = "unix:/run/innerwatch/innerwatch.sock"
    """``unix:/path`` or ``host:port``; the socket gets mode 0600."""

    allow_insecure_tcp: bool = False
    """Whether *listen* may be reachable from other machines, in the clear."""

    shutdown_seconds: float = field(default=5.0, metadata={"above": 0})
    """How long a stop waits for what was received to be scored and stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """[metrics]: where Prometheus scrapes."""

    host: str = "127.0.0.1"
    """Address that /metrics and /healthz listen on."""

    port: int = field(default=9464, metadata={"least": 0, "most": 65535})
    """Its port; 0 takes a free one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorsConfig:
    """[detectors]: what is watched for."""

    bundle: str = "/etc/innerwatch/bundle"
    """Folder of the detector bundle. Relative to the configuration file."""

    digest: str = ""
    """The bundle's digest, as `innerwatch check` prints it; empty takes any."""

    discovery_rate: float = field(default=0.0, metadata={"least": 0, "below": 1})
    """
    Bound of the share of benign requests among the discoveries; 0 for none. A request
    is one by its p-value and those before it (e-LOND); flags do not depend on it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """[audit]: the record."""

    directory: str = "/var/lib/innerwatch/audit"
    """Folder of the record, made if absent. Relative to the configuration file."""

    keep: str = field(
        default="token_ids",
        metadata={"choices": ("nothing", "hash", "token_ids", "text")},
    )
    """What is kept of a flagged request's tokens: a keyed hash, the ids, the text."""

    tokenizer: str = ""
    """For ``keep = "text"``: tokenizer.json or its folder. Relative to this file."""

    keys: str = ""
    """Folder of the signing key and the hash key; empty for *directory*."""

    retention_days: float = field(default=184.0, metadata={"least": 0})
    """Older records are taken away, their hashes stay; 0 keeps all."""

    verify_hours: float = field(default=24.0, metadata={"least": 0})
    """Time between two verifications beside the daemon; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig:
    """[ingest]: how much is held in memory, and when silence is blindness."""

    queue_batches: int = field(default=4096, metadata={"least": 1})
    """Batches that wait to be scored. When full, senders are made to wait."""

    ring_mib: int = field(default=64, metadata={"least": 64, "most": 2048})
    """Shared memory for what an engine on this host has sent and is not read yet."""

    drain_batches: int = field(default=256, metadata={"least": 1})
    """Most batches in one transaction of the record."""

    max_live_requests: int = field(default=16384, metadata={"least": 1})
    """Live requests; beyond them the oldest are finished as they are."""

    max_positions: int = field(default=1048576, metadata={"least": 1})
    """Longest sequence that is believed, in tokens."""

    history_mib: int = field(default=64, metadata={"least": 1})
    """Memory for the scores of the last tokens, which a flag's record shows, and as
    much again for the steps that they came in."""

    shadow_mib: int = field(default=256, metadata={"least": 0})
    """Memory for the evidence of the tokens in the prefix cache, for each engine."""

    max_idle_steps: int = field(default=100000, metadata={"least": 1})
    """A request that no step mentioned for so long is finished as it is."""

    blind_after_seconds: float = field(default=5.0, metadata={"above": 0})
    """Silence of a connected engine for so long is blindness."""

    reconnect_grace_seconds: float = field(default=30.0, metadata={"above": 0})
    """How long an engine's requests wait for it to connect again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryConfig:
    """[canary]: prompts with known columns, sent to the server to prove the path."""

    server: str = ""
    """vLLM's OpenAI API, ``http://127.0.0.1:8000``; empty sends none on a schedule."""

    interval_seconds: float = field(default=300.0, metadata={"above": 0})
    """Time between two runs of the bundle's canaries."""

    timeout_seconds: float = field(default=10.0, metadata={"above": 0})
    """How long the server may take for one."""

    model: str = ""
    """As the server names it; empty takes its first."""

    api_key_file: str = ""
    """File that holds the server's API key. Relative to the configuration file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """[webhook]: who is told of every flag that is in the record."""

    url: str = ""
    """``http://`` or ``https://``; empty tells nobody."""

    secret_file: str = ""
    """File with the key that notices are signed with. Relative to the file."""

    timeout_seconds: float = field(default=5.0, metadata={"above": 0})
    """How long the receiver may take for one."""

    queue_flags: int = field(default=100000, metadata={"least": 1})
    """Flags of the record that wait for it; beyond them the oldest are left out."""

    give_up_seconds: float = field(default=3600.0, metadata={"above": 0})
    """How long one flag is tried, before it is left out and the next one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OTLPConfig:
    """[otlp]: an OpenTelemetry collector that gets every flag as an event."""

    url: str = ""
    """Of OTLP over HTTP, ``http://127.0.0.1:4318/v1/logs``; empty sends none."""

    timeout_seconds: float = field(default=5.0, metadata={"above": 0})
    """How long the collector may take for one."""

    queue_flags: int = field(default=100000, metadata={"least": 1})
    """As [webhook]'s."""

    give_up_seconds: float = field(default=3600.0, metadata={"above": 0})
    """As [webhook]'s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """[web]: the audit page."""

    enabled: bool = False
    """
    Whether it is served. What is on it can be read by whoever reaches its port, on
    loopback by every user of the machine; the record itself is its owner's.
    """

    host: str = "127.0.0.1"
    """Address that it listens on; beyond loopback only with *allow_insecure*."""

    port: int = field(default=9465, metadata={"least": 0, "most": 65535})
    """Its port; 0 takes a free one and logs it."""

    allow_insecure: bool = False
    """Whether *host* may be reachable from other machines, in the clear."""

    public_host: str = ""
    """The name that a reverse proxy serves it by; requests for others are refused."""

    user_header: str = ""
    """Header in which a reverse proxy names the reviewer; empty asks for a name."""

    tokenizer: str = ""
    """tokenizer.json or its folder; empty takes that of [audit], or shows ids."""

    reservation_seconds: float = field(default=600.0, metadata={"above": 0})
    """How long a flag in the review queue is kept for whom it was shown to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file, a section a field."""

    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    detectors: DetectorsConfig = field(default_factory=DetectorsConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    webhook: WebhookConfig = field(default_factory=WebhookConfig)
    otlp: OTLPConfig = field(default_factory=OTLPConfig)
    web: WebConfig = field(default_factory=WebConfig)
    folder: Path = Path()
    """Where the file lies; not a key. Relative paths start here."""

    @property
    def bundle_path(self) -> Path:
        """The detector bundle's folder."""
        return self.folder / self.detectors.bundle

    @property
    def bundle_digest(self) -> str | None:
        """The digest that the bundle must have, or None for any."""
        return self.detectors.digest or None

    def canary_key(self) -> str:
        """
        Read the server's API key; "" if there is none.

        Raises:
            ConfigError: The file cannot be read.
        """
        if not self.canary.api_key_file:
            return ""
        return self._secret("canary.api_key_file", self.canary.api_key_file)

    def webhook_secret(self) -> str:
        """
        Read the key of the webhook.

        Raises:
            ConfigError: The file cannot be read, or none is named.
        """
        if not self.webhook.secret_file:
            raise ConfigError(
                "webhook.secret_file: expected a file with the key, got none"
            )
        return self._secret("webhook.secret_file", self.webhook.secret_file)

    def _secret(self, where: str, name: str) -> str:
        path = self.folder / name
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: {path}: {error}") from error

    @property
    def audit_path(self) -> Path:
        """The record's folder."""
        return self.folder / self.audit.directory


SECTIONS: dict[str, type] = {
    "daemon": DaemonConfig,
    "metrics": MetricsConfig,
    "detectors": DetectorsConfig,
    "audit": AuditConfig,
    "ingest": IngestConfig,
    "canary": CanaryConfig,
    "webhook": WebhookConfig,
    "otlp": OTLPConfig,
    "web": WebConfig,
}
"""Every section of the file and the record it becomes."""


def load_config(path: Path) -> Config:
    """
    Read *path*.

    Raises:
        ConfigError: It cannot be read, is not TOML, or has a key or a value that is
            not expected.
    """
    try:
        text = path.read_bytes().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    _rename(document)
    refuse_unknown(document, SECTIONS, f"{path}: ", "section")
    sections: dict[str, Any] = {
        name: section_of(cls, document.get(name, {}), f"{path}: {name}")
        for name, cls in SECTIONS.items()
    }
    config = Config(folder=path.resolve().parent, **sections)
    _check_listen(config.daemon, f"{path}: daemon.listen")
    _check_url(config.webhook.url, f"{path}: webhook.url")
    _check_url(config.otlp.url, f"{path}: otlp.url")
    _check_web(config.web, f"{path}: web.host")
    return config


def flat(config: Config) -> dict[str, str]:
    """Return every key with its value as JSON; of what may be secret, a hash."""
    found: dict[str, str] = {}
    for section in SECTIONS:
        table = getattr(config, section)
        for one in fields(table):
            value = json.dumps(getattr(table, one.name), default=str)
            if one.name.endswith(("secret", "password", "token", "url")):
                value = f"sha256:{sha256(value.encode()).hexdigest()}"
            found[f"{section}.{one.name}"] = value
    return found


_TOKEN_IDS = {"ids": "token_ids", "hash": "hash", "none": "nothing"}


def _rename(document: dict[str, Any]) -> None:
    """Read ``audit.token_ids`` of before 0.2 as `AuditConfig.keep`."""
    audit = document.get("audit")
    if isinstance(audit, dict) and "keep" not in audit:
        old = audit.get("token_ids")
        if isinstance(old, str) and old in _TOKEN_IDS:
            audit["keep"] = _TOKEN_IDS[audit.pop("token_ids")]


def _check_listen(daemon: DaemonConfig, where: str) -> None:
    try:
        address = parse_address(daemon.listen)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not (address.is_loopback or daemon.allow_insecure_tcp):
        raise ConfigError(
            f"{where}: expected a unix socket or a loopback address unless "
            f"daemon.allow_insecure_tcp is true, got {daemon.listen!r}"
        )


def _check_url(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_fine = is_fine and parts.port != 0
    except ValueError:
        is_fine = False
    if "@" in url.partition("://")[2].partition("/")[0]:
        # They would not be sent; and not repeated here, where a log has them.
        raise ConfigError(f"{where}: expected no user or password in it, got some")
    if url and not is_fine:
        raise ConfigError(f"{where}: expected http://host or https://host, got {url!r}")


def _check_web(web: WebConfig, where: str) -> None:
    if not (Address(host=web.host).is_loopback or web.allow_insecure):
        raise ConfigError(
            f"{where}: expected a loopback address unless web.allow_insecure is "
            f"true, got {web.host!r}"
        )
