"""Makes the sinks that a configuration asks for."""

from prometheus_client import CollectorRegistry

from service.config import Config, ConfigError
from service.daemon.drills import Drills
from service.daemon.sinks.follower import FollowerSink, SinkLimits
from service.daemon.sinks.metrics import SinkMetrics
from service.daemon.sinks.sinks import Sinks
from service.daemon.sinks.webhook import Webhook, secret_key


def sinks_of(config: Config, registry: CollectorRegistry) -> Sinks:
    """
    Return the sinks, not started.

    Raises:
        ConfigError: A secret cannot be read.
    """
    drills, metrics = Drills(), SinkMetrics(registry)
    sinks = []
    if config.webhook.url:
        wanted = config.webhook
        try:
            key = secret_key(config.webhook_secret())
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"webhook.secret_file: {error}") from error
        limits = SinkLimits(
            queue_flags=wanted.queue_flags, give_up_seconds=wanted.give_up_seconds
        )
        receiver = Webhook(wanted.url, key, wanted.timeout_seconds)
        sinks.append(
            FollowerSink(
                "webhook", receiver, config.audit_path, limits, metrics, drills
            )
        )
    return Sinks(sinks, drills)
