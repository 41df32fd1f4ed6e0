"""Puts the presets on the search path of every Hydra application on this machine's environment.

Hydra finds plugins in the namespace package ``hydra_plugins`` by itself.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from cmr_monitor_callbacks.config.presets import config_root


class CMRMonitorSearchPathPlugin(SearchPathPlugin):
    """Makes ``+cmr_monitor=default|minimal|strict|quiet`` work; the application's own files win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the directory of the presets."""
        search_path.append(provider="cmr-monitor-callbacks", path=f"file://{config_root()}")
