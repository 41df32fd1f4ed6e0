"""Windows of training: what a monitor is made of, and what becomes of what was recorded.

``parts`` makes the collaborators from the settings; ``windows`` says when a window begins and ends
and hands its snapshot on; ``numbers`` makes that snapshot; ``together`` puts the windows of several
ranks together; ``decisions`` does what rules and ranks ask for.
"""

from cmr_monitor_callbacks.windows.parts import Parts, Settings
from cmr_monitor_callbacks.windows.windows import DEFAULT_WINDOW, Windows

__all__ = ["DEFAULT_WINDOW", "Parts", "Settings", "Windows"]
