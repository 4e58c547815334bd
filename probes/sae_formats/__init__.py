"""Readers of public SAE checkpoint formats; one file a format."""

from probes.sae_formats.loading import FORMATS, format_of, load_sae
from probes.sae_formats.record import SAE
from probes.sae_formats.writing import write_sae

__all__ = ["FORMATS", "SAE", "format_of", "load_sae", "write_sae"]
