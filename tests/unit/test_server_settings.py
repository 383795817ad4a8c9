"""Settings: where they come from, which one wins, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from everlearn.errors import InvalidError
from everlearn_server.command import serve
from everlearn_server.settings import VARIABLES, Settings, load_settings

ENVIRONMENT_ONLY = {"hub_endpoint", "hub_token", "visible_devices", "library_path"}
"""A token on a command line is everyone's who can list processes; an endpoint goes with it."""


def test_every_setting_has_a_variable_and_an_option() -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    assert {name for name, _ in VARIABLES.values()} == names
    options = {"data_dir" if name == "data" else name for name in inspect.signature(serve).parameters}
    assert options - {"ctx", "version"} == names - ENVIRONMENT_ONLY
    for variable, (name, _) in VARIABLES.items():
        expected = "EVERLEARN_DATA" if name == "data_dir" else f"EVERLEARN_{name.upper()}"
        assert variable == expected or variable.startswith(("HF_", "CUDA_", "LD_"))


def test_each_variable_is_read_as_what_it_is() -> None:
    settings = load_settings(
        {},
        {
            "EVERLEARN_DATA": "/srv/data",
            "EVERLEARN_LISTEN": "[::1]:0",
            "EVERLEARN_METRICS_LISTEN": "localhost:9090",
            "EVERLEARN_WORKERS": "3",
            "EVERLEARN_QUEUE_IMAGES": "7",
            "EVERLEARN_DEVICE": "cuda",
            "EVERLEARN_MAX_BATCH": "8",
            "EVERLEARN_COMMIT_SHARE": "0.5",
            "EVERLEARN_MAX_MESSAGE_BYTES": "1000000",
            "EVERLEARN_HUB_CACHE": "/srv/hub",
            "EVERLEARN_READY_FILE": "ready",
            "EVERLEARN_LOG_LEVEL": "debug",
            "EVERLEARN_LOG_JSON": "true",
            "EVERLEARN_GRACE_S": "1.5",
            "HF_ENDPOINT": "http://mirror",
            "HF_TOKEN": "hf_secret",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert settings == Settings(
        data_dir=Path("/srv/data"),
        listen="[::1]:0",
        metrics_listen="localhost:9090",
        workers=3,
        queue_images=7,
        device="cuda",
        max_batch=8,
        commit_share=0.5,
        max_message_bytes=1_000_000,
        hub_endpoint="http://mirror",
        hub_token="hf_secret",
        hub_offline=True,
        hub_cache=Path("/srv/hub"),
        ready_file=Path("ready"),
        log_level="debug",
        log_json=True,
        grace_s=1.5,
    )
    assert (settings.images_a_pass, settings.providers[0]) == (8, "CUDAExecutionProvider")
    assert "secret" not in repr(settings)


def test_a_flag_wins_over_its_variable_and_a_variable_over_the_default() -> None:
    environment = {"EVERLEARN_WORKERS": "3", "EVERLEARN_QUEUE_IMAGES": "7", "HF_HUB_OFFLINE": "1"}
    settings = load_settings({"workers": 5, "queue_images": None, "hub_offline": False}, environment)
    assert (settings.workers, settings.queue_images, settings.hub_offline) == (5, 7, False)
    assert settings.grace_s == Settings(data_dir=Path()).grace_s


def test_an_empty_variable_is_not_set() -> None:
    assert load_settings({}, {"EVERLEARN_WORKERS": "", "HF_TOKEN": ""}) == load_settings({}, {})


def test_folders_do_not_move_with_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"hub_cache": Path("hub")}, {})
    assert (settings.data_dir, settings.hub_cache) == (tmp_path / "everlearn-data", tmp_path / "hub")


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("EVERLEARN_WORKERS", "two", "a whole number"),
        ("EVERLEARN_WORKERS", "0", "from 1 to 1024"),
        ("EVERLEARN_QUEUE_IMAGES", "0", "at least 1"),
        ("EVERLEARN_MAX_BATCH", "-1", "from 0"),
        ("EVERLEARN_COMMIT_SHARE", "nan", "above 0"),
        ("EVERLEARN_COMMIT_SHARE", "10 %", "a number"),
        ("EVERLEARN_MAX_MESSAGE_BYTES", "10", "64 KiB"),
        ("EVERLEARN_GRACE_S", "-1", "from 0"),
        ("EVERLEARN_GRACE_S", "inf", "from 0"),
        ("EVERLEARN_DEVICE", "tpu", "cpu or cuda"),
        ("EVERLEARN_LOG_LEVEL", "loud", "debug, info"),
        ("EVERLEARN_LOG_JSON", "maybe", "yes or no"),
        ("HF_HUB_OFFLINE", "2", "yes or no"),
        ("EVERLEARN_LISTEN", "8470", "address:port"),
        ("EVERLEARN_LISTEN", ":8470", "address:port"),
        ("EVERLEARN_LISTEN", "::1:8470", "address:port"),
        ("EVERLEARN_LISTEN", "127.0.0.1:65536", "address:port"),
        ("EVERLEARN_METRICS_LISTEN", "abc", "address:port"),
        ("EVERLEARN_METRICS_LISTEN", "9090", "address:port"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(variable: str, text: str, says: str) -> None:
    with pytest.raises(InvalidError, match=says) as refusal:
        load_settings({}, {variable: text})
    assert refusal.value.field in (variable, VARIABLES[variable][0])


def test_a_token_in_the_wrong_variable_is_not_quoted() -> None:
    with pytest.raises(InvalidError) as refusal:
        load_settings({}, {"EVERLEARN_WORKERS": "hf_secret"})
    assert "secret" not in str(refusal.value)
