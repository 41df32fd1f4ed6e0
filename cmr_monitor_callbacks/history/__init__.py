"""The embedded store: every window of a run, exactly, in one SQLite file beside its logs.

`HistoryWriter` fills it off the training thread, `RunHistory` reads it, also while the run goes on.
"""

from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.history.keeper import Keeper
from cmr_monitor_callbacks.history.reading import RunHistory
from cmr_monitor_callbacks.history.schema import HistoryError
from cmr_monitor_callbacks.history.series import Moment, Series
from cmr_monitor_callbacks.history.sessions import RunInfo
from cmr_monitor_callbacks.history.store import HistoryStore
from cmr_monitor_callbacks.history.writer import HistoryWriter

__all__ = [
    "ErrorRecord",
    "HistoryError",
    "HistoryStore",
    "HistoryWriter",
    "Keeper",
    "Moment",
    "RunHistory",
    "RunInfo",
    "Series",
]
