"""Makes the sinks that a configuration asks for."""

from prometheus_client import CollectorRegistry

from service.config import Config, ConfigError, OTLPConfig, WebhookConfig
from service.daemon.drills import Drills
from service.daemon.sinks.follower import FollowerSink, Receiver, SinkLimits
from service.daemon.sinks.metrics import SinkMetrics
from service.daemon.sinks.otlp import OTLP
from service.daemon.sinks.sinks import Sinks
from service.daemon.sinks.webhook import Webhook, secret_key


def sinks_of(config: Config, registry: CollectorRegistry, *, version: str) -> Sinks:
    """
    Return the sinks, not started.

    Raises:
        ConfigError: A secret cannot be read.
    """
    drills, metrics = Drills(), SinkMetrics(registry)

    def sink(
        name: str, receiver: Receiver, wanted: WebhookConfig | OTLPConfig
    ) -> FollowerSink:
        limits = SinkLimits(
            queue_flags=wanted.queue_flags, give_up_seconds=wanted.give_up_seconds
        )
        return FollowerSink(name, receiver, config.audit_path, limits, metrics, drills)

    sinks = []
    if config.webhook.url:
        sinks.append(sink("webhook", _webhook(config), config.webhook))
    if config.otlp.url:
        otlp = OTLP(config.otlp.url, config.otlp.timeout_seconds, version=version)
        sinks.append(sink("otlp", otlp, config.otlp))
    return Sinks(sinks, drills)


def _webhook(config: Config) -> Webhook:
    secret = config.webhook_secret()
    try:
        key = secret_key(secret)
    except ValueError as error:
        raise ConfigError(f"webhook.secret_file: {error}") from error
    return Webhook(config.webhook.url, key, config.webhook.timeout_seconds)
