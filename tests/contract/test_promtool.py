"""The engine beside Prometheus' own: the same series, rules and times, and the same states.

What both can say is compared: comparisons, ``for``, ``keep_firing_for``, labels. A gap is no sample
here and there (``no_data: {mode: ok}``), which in Prometheus needs an interval longer than its five
minutes of looking back. Our states are written down as what promtool is to expect of ``ALERTS`` at
every evaluation; it says where it differs.

    CASES=10 python -m pytest tests/contract/test_promtool.py      # ten times as many
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.health import AlertEngine, GivenNumbers, compile_rules
from cmr_monitor_callbacks.health.notation import expand

INTERVAL = 600
RULES, GROUPS = 12, 12
"""In a batch; each rule on each group's series is a case."""
BATCHES = 4 * int(os.environ.get("CASES", "1"))
METRIC = "avg_latency"
CONDITIONS = (">", ">=", "<", "<=", "==", "!=")
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None and os.environ.get("CI"):
        pytest.fail("promtool is missing; on Debian it is in the package prometheus")
    if found is None:
        pytest.skip("promtool is not installed (Debian: package prometheus)")
    return found


def some_span(chance: random.Random) -> str:
    """Whole intervals, parts of one, nothing at all."""
    return chance.choice(["0s", "1s", "599s", "10m", "601s", "20m", "25m", "1h", "95m"])


def some_rule(chance: random.Random, number: int) -> dict[str, Any]:
    return {
        "name": f"rule_{number}",
        "condition": chance.choice(CONDITIONS),
        "limit": chance.choice(LEVELS),
        "for": some_span(chance),
        "keep_firing_for": some_span(chance),
        "layer": chance.choice(["4", "6", "8", "4|6", "4|6|8"]),
        "severity": chance.choice(["warning", "error", "critical"]),
    }


def some_series(chance: random.Random) -> str:
    """Values on the rules' limits and between them, in stretches, with gaps."""
    parts = []
    for _ in range(chance.randint(2, 7)):
        kind = chance.random()
        if kind < 0.25:
            parts.append(f"_x{chance.randint(1, 4)}")
        elif kind < 0.6:
            parts.append(f"{chance.choice(LEVELS)}x{chance.randint(0, 8)}")
        elif kind < 0.8:
            sign = chance.choice("+-")
            parts.append(f"{chance.choice(LEVELS)}{sign}0.25x{chance.randint(1, 6)}")
        else:
            parts.append(str(round(chance.uniform(-0.1, 1.1), 3)))
    return " ".join(parts)


def our_states(
    rules: list[dict[str, Any]], series: dict[int, str]
) -> list[list[tuple[str, str, str, str]]]:
    """Rule, layer, severity and state of every open alert at each evaluation."""
    config = {
        rule["name"]: {
            "metric": METRIC,
            "select": {"layer": rule["layer"]},
            "condition": rule["condition"],
            "thresholds": {rule["severity"]: rule["limit"]},
            "for": rule["for"],
            "keep_firing_for": rule["keep_firing_for"],
            "no_data": {"mode": "ok"},
        }
        for rule in rules
    }
    engine = AlertEngine(compile_rules(parse(AlertConfig, {"rules": config}, "alerts")))
    values = {layer: expand(text) for layer, text in series.items()}
    out = []
    for i in range(1 + max(map(len, values.values()))):
        now = {
            (METRIC, layer, None): value
            for layer, known in values.items()
            if i < len(known) and (value := known[i]) is not None
        }
        numbers = GivenNumbers(now, layers=tuple(series))
        engine.evaluate(numbers, step=i, now=1.7e9 + i * INTERVAL, window=i + 1)
        out.append(
            [
                (
                    state.rule,
                    str(state.layer),
                    state.severity.value if state.severity else "",
                    "firing" if state.phase.fires else "pending",
                )
                for state in engine.open()
            ]
        )
    return out


def batch(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of rules for promtool, and one of tests whose expectations are our states."""
    chance = random.Random(seed)
    rules = [some_rule(chance, i) for i in range(RULES)]
    groups = {
        "groups": [
            {
                "name": "all",
                "rules": [
                    {
                        "alert": rule["name"],
                        "expr": f'{METRIC}{{layer=~"{rule["layer"]}"}} {rule["condition"]} '
                        f"{rule['limit']}",
                        "for": rule["for"],
                        "keep_firing_for": rule["keep_firing_for"],
                        "labels": {"severity": rule["severity"]},
                    }
                    for rule in rules
                ],
            }
        ]
    }
    tests = []
    for _ in range(GROUPS):
        layers = chance.sample([4, 6, 8], chance.randint(1, 3))
        series = {layer: some_series(chance) for layer in layers}
        tests.append(
            {
                "interval": f"{INTERVAL}s",
                "input_series": [
                    {"series": f'{METRIC}{{layer="{layer}"}}', "values": text}
                    for layer, text in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": "ALERTS",
                        "eval_time": f"{i * INTERVAL}s",
                        "exp_samples": [
                            {
                                "labels": f'ALERTS{{alertname="{name}", alertstate="{state}", '
                                f'layer="{layer}", severity="{severity}"}}',
                                "value": 1,
                            }
                            for name, layer, severity, state in states
                        ],
                    }
                    for i, states in enumerate(our_states(rules, series))
                ],
            }
        )
    return groups, {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{INTERVAL}s",
        "tests": tests,
    }


@pytest.mark.parametrize("seed", range(BATCHES))
def test_the_states_are_those_of_prometheus(promtool: str, tmp_path: Path, seed: int) -> None:
    groups, tests = batch(seed)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[:3000] + done.stderr[:3000]
    assert "SUCCESS" in done.stdout


def test_what_is_compared_is_not_empty() -> None:
    """Every condition, every state, alerts that are kept and alerts that end in a gap."""
    seen: set[str] = set()
    cases = 0
    for seed in range(BATCHES):
        groups, tests = batch(seed)
        cases += len(groups["groups"][0]["rules"]) * len(tests["tests"])
        seen |= {rule["expr"].split("} ")[1].split()[0] for rule in groups["groups"][0]["rules"]}
        samples = [
            sample["labels"]
            for test in tests["tests"]
            for time in test["promql_expr_test"]
            for sample in time["exp_samples"]
        ]
        seen |= {state for state in ("pending", "firing") if state in str(samples)}
    assert seen >= {*CONDITIONS, "pending", "firing"}
    assert cases >= 500
