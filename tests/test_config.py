"""Settings: presets, protocols, files, ranges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from case.config import (
    PRESETS,
    PROTOCOLS,
    Settings,
    TrainConfig,
    make_settings,
    make_train_config,
    read_toml,
    settings_from,
    to_dict,
    to_toml,
)
from case.errors import CaseError


def test_defaults_are_the_released_thumos14_values() -> None:
    s = make_settings()
    assert s == Settings()
    assert (s.num_segments, s.batch_size, s.lr, s.weight_decay, s.max_steps) == (750, 16, 1e-4, 5e-4, 3600)
    assert (s.num_clusters, s.w_clu, s.w_cls, s.prior_sigma, s.gce_q) == (16, 1.0, 0.3, 10.0, 0.7)
    assert (s.outer_ratio, s.score_weight, s.nms_length_offset, s.prior_ranks) == (0.15, 0.2, 1.0, "argsort")
    assert len(s.labels) == 20
    assert s.labels[0] == "BaseballPitch"


def test_every_deviation_is_a_setting_that_the_protocols_set_differently() -> None:
    released, corrected = make_settings(protocol="released"), make_settings(protocol="corrected")
    changed = {f.name for f in dataclasses.fields(Settings) if getattr(released, f.name) != getattr(corrected, f.name)}
    assert changed == set(PROTOCOLS["corrected"]) - {"score_weight"} | {"protocol"}
    single = make_settings(protocol="corrected", prior_sigma=10.0)
    assert single.prior_sigma == 10.0
    assert single.prior_ranks == "true"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_presets_survive_toml(tmp_path: Path, preset: str, protocol: str) -> None:
    config = make_train_config({"preset": preset, "protocol": protocol, "data": "x/y", "seed": 3, "lr": 2e-5})
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert make_train_config(read_toml(path)) == config


def test_settings_from_many_forms() -> None:
    @dataclasses.dataclass
    class Other:
        num_clusters: int = 6
        lr: float = 1e-3

    expected = make_settings(num_clusters=6, lr=1e-3)
    assert settings_from(Other()) == expected
    assert settings_from({"num_clusters": 6, "lr": 1e-3}) == expected
    assert settings_from(expected) is expected
    assert settings_from(None) == make_settings()
    assert settings_from({"preset": "activitynet12", "protocol": "corrected"}).num_classes == 100
    assert settings_from(to_dict(expected)) == expected
    assert (
        settings_from(SimpleNamespace(num_clusters=np.int64(6), lr=np.float64(1e-3), seed=3, device="cpu")) == expected
    )
    assert settings_from({"tiou": np.array([0.5, 0.75])}).tiou == (0.5, 0.75)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_cluster": 3}, "unknown setting 'num_cluster'"),
        ({"labels": ["a"]}, "unknown setting 'labels'"),
        ({"preset": "thumos"}, "unknown preset 'thumos'"),
        ({"protocol": "fixed"}, "unknown protocol 'fixed'"),
        ({"num_segments": 0}, "num_segments must be greater than 0, got 0"),
        ({"num_segments": 10**11}, "num_segments must not exceed 16777216, got 100000000000"),
        ({"threads": 10**11}, "threads must not exceed 4096"),
        ({"preset": ["thumos14"]}, r"preset must be text, got \['thumos14'\]"),
        ({"output": 5}, "output must be text, got 5"),
        ({"data": 5}, "data must be text, got 5"),
        ({"modalities": ["rgb.v2", "flow"]}, "modalities must not hold dots"),
        (
            {"modalities": ["keys", "flow"]},
            "modalities must not hold dots or words of Python's dictionaries, got 'keys'",
        ),
        ({"class_threshold": 7}, r"class_threshold must lie in \[0, 1\], got 7.0"),
        ({"act_thresholds": [0.5, 5.0]}, r"act_thresholds must hold numbers in \[0, 1\]"),
        ({"tiou": [0.5, 0.5]}, r"tiou must hold thresholds in \(0, 1\], each once"),
        ({"num_segments": 7.5}, "num_segments must be a whole number, got 7.5"),
        ({"num_segments": "many"}, "num_segments must be a whole number, got 'many'"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"keep_first_sample": 1}, "keep_first_sample must be true or false"),
        ({"gce_q": 1.5}, r"gce_q must lie in \(0, 1\]"),
        ({"prior_ranks": "sorted"}, "prior_ranks must be one of argsort, true"),
        ({"nms_threshold": 1.5}, "nms_threshold must lie in"),
        ({"class_names": ["a", "b"]}, "class_names must hold num_classes = 20 names, got 2"),
        ({"modalities": []}, "modalities must name at least one"),
        ({"tiou": [0.0]}, "tiou must hold thresholds"),
        ({"act_thresholds": []}, "act_thresholds must hold"),
        ({"tiou": 0.5}, "tiou must be a list, got 0.5"),
        ({"tiou": [0.1, "a"]}, "tiou must be a number, got 'a'"),
        ({"act_thresholds": "x"}, "act_thresholds must be a list, got 'x'"),
        ({"class_names": 3}, "class_names must be a list, got 3"),
        ({"betas": [0.9]}, "betas must be two numbers"),
        ({"nms_sigma": float("inf")}, "nms_sigma must be a finite number"),
        ({"ot_iters": 0}, "ot_iters must be greater than 0"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CaseError, match=message) as error:
        make_train_config(values)
    assert "\n" not in str(error.value)


def test_wrong_config_files(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    with pytest.raises(CaseError, match="config file not found"):
        read_toml(path)
    path.write_text("lr = ")
    with pytest.raises(CaseError, match="cannot read it as TOML"):
        read_toml(path)
    path.write_text("learning_rate = 1.0")
    with pytest.raises(CaseError, match="unknown setting 'learning_rate'"):
        read_toml(path)


def test_the_run_knows_its_settings() -> None:
    config = make_train_config({"num_clusters": 4, "seed": 9})
    assert config.settings == make_settings(num_clusters=4)
    assert isinstance(config, TrainConfig)
    assert config.output == Path("runs/case")
