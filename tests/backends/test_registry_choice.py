"""Choice: the user's wish first, then the score; nothing is chosen quietly."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import InvalidArgument, PluginRejected, Unsupported
from runtime.registry import Discovery, choose, discover

from .conftest import InstallPlugin, plugin_source


def device(score: float, index: int = 0) -> str:
    return f"DeviceInfo({index}, 'fake', 1, {score})"


@pytest.fixture
def five(install_plugin: InstallPlugin) -> Discovery:
    """Five plugins: beta and alpha with the best score, weak, one without a device, one that cannot be imported."""
    install_plugin("beta", plugin_source("beta", probe=f"return [{device(9.0)}, {device(9.0, 1)}]"))
    install_plugin("alpha", plugin_source("alpha", probe=f"return [{device(9.0)}]"))
    install_plugin("weak", plugin_source("weak", probe=f"return [{device(0.5)}]"))
    refusal = "from runtime.errors import PluginRejected\nraise PluginRejected('no device', remedy='install a build')"
    install_plugin("absent", plugin_source("absent", probe=refusal))
    install_plugin("broken", "import no_such_module")
    found = discover()
    mine = ("alpha", "beta", "weak", "absent")
    return Discovery(
        tuple(b for b in found.loaded if b.name in mine), tuple(r for r in found.rejected if r.name == "broken")
    )


def test_auto_takes_the_highest_score_breaks_ties_by_name_and_reports_refusals(five: Discovery) -> None:
    choice = choose(five)
    assert (choice.backend.name, choice.device.index) == ("alpha", 0)
    assert choice.why == "highest score 9 (beta 9, weak 0.5)"
    assert [str(r) for r in choice.refused] == [
        "absent refused: no device",
        "broken refused: import: No module named 'no_such_module'",
    ]


def test_a_named_backend_is_taken_whatever_its_score(five: Discovery) -> None:
    assert choose(five, "weak").backend.name == "weak"
    assert choose(five, "beta:1").device.index == 1
    assert choose(five, "beta", device_index=1).device.index == 1


def test_a_named_backend_that_cannot_run_is_an_error_with_cause_and_remedy(five: Discovery) -> None:
    expected = (
        "backend 'absent' cannot run here: no device; install a build, or use --backend auto; "
        "details: runtime doctor absent"
    )
    for _ in range(2):
        with pytest.raises(PluginRejected) as caught:
            choose(five, "absent")
        assert str(caught.value) == expected
    with pytest.raises(PluginRejected, match="rejected at stage import: No module named 'no_such_module'"):
        choose(five, "broken")
    with pytest.raises(PluginRejected, match="backend 'beta' has no device 7; it has 0, 1"):
        choose(five, "beta:7")


@pytest.mark.parametrize(
    ("wish", "index", "message"),
    [
        (
            "alfa",
            None,
            "there is no backend 'alfa'; did you mean 'alpha'?; installed: absent, alpha, beta, broken, weak",
        ),
        ("beta:x", None, "'x' in backend 'beta:x' is not a device index; write e.g. cuda:0"),
        ("beta:1", 0, "backend 'beta:1' and device index 0 contradict each other"),
        ("auto:0", None, "a device index (0) needs a named backend; write e.g. cuda:0"),
        ("", None, "backend '' has no name; write auto, a name, or name:index"),
    ],
)
def test_a_wish_that_names_nothing_is_refused(five: Discovery, wish: str, index: int | None, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        choose(five, wish, device_index=index)
    assert str(caught.value) == message


def test_when_nobody_can_run_every_reason_is_told(five: Discovery) -> None:
    nobody = Discovery(tuple(b for b in five.loaded if b.name == "absent"), five.rejected)
    with pytest.raises(Unsupported, match="no backend can run here: absent refused: no device; broken refused"):
        choose(nobody)


def test_an_old_refusal_does_not_stand_against_a_named_backend(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    repaired = f"import os\nreturn [{device(1.0)}] if os.path.exists({str(tmp_path)!r} + '/driver') else []"
    install_plugin("mended", plugin_source("mended", probe=repaired))
    found = discover()
    assert found["mended"].probe().refusal == "no device found"
    (tmp_path / "driver").touch()
    assert choose(found, "mended").device.index == 0
