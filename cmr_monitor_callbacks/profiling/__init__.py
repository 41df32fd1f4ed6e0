"""Detailed profiles of a few steps: sections, operators, memory, the GPU, and what limits them."""

from cmr_monitor_callbacks.profiling.comparison import SectionChange, compare_profiles
from cmr_monitor_callbacks.profiling.names import Section, section_name, section_of
from cmr_monitor_callbacks.profiling.plan import check_profiling
from cmr_monitor_callbacks.profiling.profiler import Profiler
from cmr_monitor_callbacks.profiling.results import load_results, save_results, summarise
from cmr_monitor_callbacks.profiling.trace import read_trace

__all__ = [
    "Profiler",
    "Section",
    "SectionChange",
    "check_profiling",
    "compare_profiles",
    "load_results",
    "read_trace",
    "save_results",
    "section_name",
    "section_of",
    "summarise",
]
