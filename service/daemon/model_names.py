"""What each engine's model is called: vLLM's label model_name."""

from collections import OrderedDict

from prometheus_client import CollectorRegistry, Gauge

from service.daemon.bounded_labels import OTHER

_MOST_NAMES = 8
_MOST_ENGINES = 4096  # The oldest one's flags would lose their model's name.
_MOST_CHARACTERS = 256


class ModelNames:
    """
    Which engine serves which model. Written by the ingest thread only.

    Attributes:
        shown: Values of the label that are in use; "" until an engine came.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._info = Gauge(
            "innerwatch_model_info",
            "1 for each model_name that an engine served since the start.",
            ("model_name",),
            registry=registry,
        )
        self._names: OrderedDict[str, str] = OrderedDict()
        self.shown: list[str] = [""]

    def see(self, engine: str, name: str) -> bool:
        """Note that *engine* serves *name*; return whether `shown` changed."""
        name = name[:_MOST_CHARACTERS]
        is_new = name not in self.shown
        if is_new and len(self.shown) >= _MOST_NAMES:
            name = OTHER
            is_new = name not in self.shown
        self._names[engine] = name
        self._names.move_to_end(engine)
        if len(self._names) > _MOST_ENGINES:
            self._names.popitem(last=False)
        if is_new:
            self.shown = [*(n for n in self.shown if n), name]
            self._info.labels(name).set(1)
        return is_new

    def of(self, engine: str) -> str:
        """Return the label's value for what *engine* sent; "" if it never said."""
        return self._names.get(engine, "")
