"""The documentation says what the code does: tables, snippets, examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import cmr_monitor_callbacks
from cmr_monitor_callbacks import CMRMonitorCallback

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(
        cmr_monitor_callbacks.__path__, prefix="cmr_monitor_callbacks."
    )
]


def snippets(page: str) -> list[str]:
    """The Python snippets of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", ["cmr_monitor_callbacks", *MODULES])
def test_the_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_public_names_are_documented_and_listed_in_order() -> None:
    names = cmr_monitor_callbacks.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(cmr_monitor_callbacks, name).__doc__, name


def test_type_checkers_see_every_public_name_where_it_is_loaded_from() -> None:
    tree = ast.parse(Path(cmr_monitor_callbacks.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: str(node.module).removeprefix("cmr_monitor_callbacks.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == cmr_monitor_callbacks._HOMES
    assert sorted(seen) == cmr_monitor_callbacks.__all__


def test_the_tables_of_metrics_are_those_of_the_catalogue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_metrics_table.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "docs" / "make_metrics_table.py"), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().out


def test_the_first_snippet_of_the_readme_makes_a_trainer(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(snippets("README.md")[0], names)
    assert isinstance(names["trainer"], pl.Trainer)
    assert any(isinstance(c, CMRMonitorCallback) for c in names["trainer"].callbacks)


class Buffer(list[torch.Tensor]):
    """A buffer with the attributes that the README's snippet reads."""

    capacity = 10
    nbytes = 0


def test_the_readmes_own_model_and_reading_snippets_run(tmp_path: Path) -> None:
    names: dict[str, Any] = {"nn": nn}
    [model_snippet] = [s for s in snippets("README.md") if "class MemoryLayer" in s]
    exec(model_snippet, names)
    layer_class = names["MemoryLayer"]

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.memory = layer_class(4)
            self.memory.buffer = Buffer()
            self.memory.capture = lambda x: (52, 50, 45, 0)
            self.head = nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.head(self.memory(batch)).mean()

        validation_step = training_step

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 2})
    loader = torch.utils.data.DataLoader(torch.ones(4, 2))
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(Module(), loader, loader)
    assert callback.snapshot.value("storage_efficiency", layer=4) == pytest.approx(0.9)

    import rich

    [reading] = [s for s in snippets("README.md") if "callback.snapshot.value" in s]
    exec(reading, {"callback": callback, "rich": rich})


def test_the_plain_loop_of_the_docs_runs() -> None:
    [snippet] = [s for s in snippets("docs/probes.md") if "track_performance" in s]
    model = nn.Linear(2, 1)
    names = {"model": model, "loader": [torch.ones(1, 2)] * 3, "train_step": lambda m, b: m(b)}
    exec(snippet, names)
    assert names["monitor"].current_step == 2  # type: ignore[attr-defined]


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
