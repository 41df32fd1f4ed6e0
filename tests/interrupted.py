"""A fit that goes on until it is interrupted, then says what is left of the monitor.

python -m tests.interrupted FOLDER

prints ``under way`` once some windows have ended, and a line of JSON once the fit is over.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Any

import pytorch_lightning as pl

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.memory_models.small import SmallModule, loader
from tests.models import trainer


class SaysWhen(pl.Callback):
    """Says that the fit is under way."""

    def on_train_batch_end(self, fitter: pl.Trainer, *args: Any) -> None:
        if fitter.global_step == 20:
            print("under way", flush=True)


def main(folder: str) -> None:
    # a shell that starts tests in the background has them ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = SmallModule()
    callback = CMRMonitorCallback(monitoring={"on_monitor_error": "raise"})
    buffer = module.core.memory_buffer
    before = sorted(vars(buffer))
    try:
        trainer(folder, [callback, SaysWhen()], max_epochs=-1).fit(module, loader(50))
    finally:
        hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in module.modules()]
        threads = [thread.name for thread in threading.enumerate()]
        left = {
            "methods": sorted(set(vars(buffer)) - set(before)),
            "hooks": sum(len(part) for pair in hooks for part in pair),
            "threads": [name for name in threads if name.startswith("cmr-monitor")],
            "step": callback.snapshot.step,
            "stored": callback.snapshot.value("states_stored"),
            "forwards": len(module.losses),
        }
        print(json.dumps(left), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
