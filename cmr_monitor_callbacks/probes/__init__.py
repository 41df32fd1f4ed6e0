"""How numbers leave a model."""

from cmr_monitor_callbacks.probes.explicit import CMRProbe

__all__ = ["CMRProbe"]
