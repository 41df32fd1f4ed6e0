"""``python -m cmr_monitor_callbacks.cli`` is ``cmr-monitor``."""

from cmr_monitor_callbacks.cli import main

if __name__ == "__main__":
    main()
