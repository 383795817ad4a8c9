"""A public hub may not send the server to its own machine or network."""

from __future__ import annotations

import pytest

from everlearn.errors import ForbiddenFileError
from everlearn.hubs._hf_http import Subject, _check_redirect

SUBJECT = Subject(source="hf://a/b", host="8.8.8.8", has_token=True, revision="main")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
        "0.0.0.0",
        "100.64.0.1",
    ],
)
def test_a_public_hub_cannot_send_us_inwards(host: str) -> None:
    with pytest.raises(ForbiddenFileError, match="internal"):
        _check_redirect("http://8.8.8.8/x", f"http://{host}/latest/meta-data", SUBJECT)


def test_a_redirect_never_leaves_https_and_may_go_to_public_storage() -> None:
    with pytest.raises(ForbiddenFileError, match="not followed"):
        _check_redirect("https://8.8.8.8/x", "http://1.1.1.1/x", SUBJECT)
    _check_redirect("https://8.8.8.8/x", "https://1.1.1.1/x", SUBJECT)


def test_a_mirror_in_the_own_network_may_redirect_inside_it() -> None:
    _check_redirect("http://127.0.0.1:8000/x", "http://10.0.0.7/x", SUBJECT)
