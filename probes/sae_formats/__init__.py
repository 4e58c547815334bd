"""Readers of public SAE checkpoint formats; one file a format."""

from probes.sae_formats.record import SAE
from probes.sae_formats.saelens import load_saelens

__all__ = ["SAE", "load_saelens"]
