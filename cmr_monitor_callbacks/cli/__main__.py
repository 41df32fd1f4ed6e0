"""``python -m cmr_monitor_callbacks.cli`` is ``cmr-monitor``."""

from cmr_monitor_callbacks.cli import main

main()
