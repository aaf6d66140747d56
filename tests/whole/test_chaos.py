"The promises hold under traffic and random kill -9. `make chaos` is the long version."

import pytest

from infra_scripts.checks import chaos


def test_every_promise_is_kept_when_processes_are_killed(capsys):
    status = chaos.main(["--seconds", "15", "--seed", "7"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "every promise was kept" in said and "a Lambda worker" in said


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_promise_is_kept_for_a_minute(seed, capsys):
    assert chaos.main(["--seconds", "60", "--seed", str(seed)]) == 0, capsys.readouterr().out
