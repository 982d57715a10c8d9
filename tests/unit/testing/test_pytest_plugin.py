"""The pytest plugin, in a pytest of its own: budgets of tests, the report of costs, the limit of a run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import aifinops

pytest_plugins = ["pytester"]

SOURCE = str(Path(aifinops.__file__).parents[1])
SPEND = """
import aifinops as af
def spend(dollars, model="gpt-5"):
    af.record(model=model, provider="openai", usage={"output_tokens": 1000}, cost=dollars)
"""
UNPRICED = 'af.record(model="house-llama", provider="local", usage={"output_tokens": 500})'


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.Pytester:
    """An empty test suite with the plugin, and a ledger of the user's that must stay as it is."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SOURCE, *filter(None, sys.path)]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("AIFINOPS_LEDGER", str(tmp_path / "users.db"))
    pytester.makepyfile(spending=SPEND)
    return pytester


def ran(suite: pytest.Pytester, *words: str) -> pytest.RunResult:
    return suite.runpytest_subprocess(
        "-p", "aifinops.testing.pytest_plugin", "-p", "no:cacheprovider", "-W", "error", *words
    )


def test_a_test_that_spends_more_fails_with_what_it_spent(suite: pytest.Pytester, tmp_path: Path) -> None:
    """The message has amount, limit and models; one within its budget passes; the user's ledger is not touched."""
    suite.makepyfile("""
        import pytest
        from spending import spend

        @pytest.mark.cost_budget("$0.05")
        def test_dear():
            spend("0.04")
            spend("0.03", "gpt-5-mini")

        @pytest.mark.cost_budget("$0.05")
        def test_cheap():
            spend("0.05")
    """)
    result = ran(suite)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.re_match_lines(
        [
            r".*cost_budget\('\$0\.05'\): 0\.07.* USD in 2 calls is above 0\.05 USD.*",
            r"gpt-5 .*\$0\.0400",
            r"gpt-5-mini .*\$0\.0300",
        ]
    )
    assert not (tmp_path / "users.db").exists()
    result.stdout.no_fnmatch_line("*During handling*")


def test_unknown_costs_fail_unless_allowed(suite: pytest.Pytester) -> None:
    """Nobody knows what an unpriced call costs, so it is within no budget; by mark or by option it may be left out."""
    suite.makepyfile(f"""
        import aifinops as af, pytest

        @pytest.mark.cost_budget("$1")
        def test_dark():
            {UNPRICED}

        @pytest.mark.cost_budget("$1", allow_unpriced=True)
        def test_allowed():
            {UNPRICED}
    """)
    result = ran(suite)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*1 of 1 calls (500 tokens) have no price*"])
    ran(suite, "--cost-allow-unpriced").assert_outcomes(passed=2)


def test_what_threads_spend_counts(suite: pytest.Pytester) -> None:
    """A budget sees calls of every thread, and of a class's mark."""
    suite.makepyfile("""
        import threading, pytest
        from spending import spend

        @pytest.mark.cost_budget("$0.05")
        class TestIt:
            def test_threads(self):
                threads = [threading.Thread(target=spend, args=("0.03",)) for _ in range(2)]
                [one.start() for one in threads]
                [one.join() for one in threads]
    """)
    result = ran(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*0.06* USD in 2 calls*"])


def test_fixtures_are_in_the_report_and_not_in_the_budget(suite: pytest.Pytester) -> None:
    """A shared fixture falls to the first test that needs it: its cost is shown there, and held against none."""
    suite.makepyfile("""
        import pytest
        from spending import spend

        @pytest.fixture(scope="module")
        def index():
            spend("2")

        @pytest.mark.cost_budget("$0.05")
        def test_it(index):
            spend("0.01")
    """)
    result = ran(suite, "--cost-report")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*$2.01  2 calls  *::test_it  ($2.00 of it in fixtures)"])


def test_the_report(suite: pytest.Pytester) -> None:
    """Each test with its cost, the dearest first, all together, what is unpriced; tests that spend nothing are not listed."""
    suite.makepyfile(f"""
        import aifinops as af
        from spending import spend

        def test_small(): spend("0.01")
        def test_large(): spend("0.50"); spend("0.25")
        def test_free(): pass
        def test_dark(): {UNPRICED}
    """)
    result = ran(suite, "--cost-report")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "*= cost =*",
            "  $0.75  2 calls  *::test_large",
            "$0.0100   1 call  *::test_small",
            "unknown   1 call  *::test_dark",
            "$0.76 in 4 calls of 3 tests",
            "1 call (500 tokens) without a price, in no amount: house-llama",
        ],
        consecutive=False,
    )
    result.stdout.no_fnmatch_line("*test_free*")


def test_nothing_was_called(suite: pytest.Pytester) -> None:
    """A report of nothing says so."""
    suite.makepyfile("def test_free(): pass")
    ran(suite, "--cost-report").stdout.fnmatch_lines(["No test has made a call that is metered."])


def test_the_limit_ends_the_run(suite: pytest.Pytester) -> None:
    """No further test begins once more is spent, and the run has failed."""
    suite.makepyfile("""
        from spending import spend
        def test_1(): spend("0.06")
        def test_2(): spend("0.06")
        def test_3(): spend("0.06")
    """)
    result = ran(suite, "--cost-limit", "$0.10")
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*$0.12 were spent, more than --cost-limit $0.10*"])
    assert ran(suite, "--cost-limit", "$0.20").ret == pytest.ExitCode.OK


def test_the_limit_holds_for_the_last_test_and_for_what_is_unknown(suite: pytest.Pytester) -> None:
    """Also where no test is left to be stopped the run fails; unknown is within no limit, and another currency is none either."""
    suite.makepyfile('from spending import spend\ndef test_1(): spend("0.11")')
    assert ran(suite, "--cost-limit", "$0.10").ret == pytest.ExitCode.TESTS_FAILED
    assert ran(suite, "--cost-limit", "5 EUR").ret == pytest.ExitCode.TESTS_FAILED
    suite.makepyfile(f"import aifinops as af\ndef test_1(): {UNPRICED}")
    result = ran(suite, "--cost-limit", "$0.10")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*1 call has no price (house-llama)*"])
    assert ran(suite, "--cost-limit", "$0.10", "--cost-allow-unpriced").ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ('"five"', "'five' is no amount of money"),
        ("", "takes a limit"),
        ('"$1", allow=True', "takes a limit"),
        ('"-$1"', "no amount"),
    ],
)
def test_a_wrong_mark_is_an_error_before_anything_runs(suite: pytest.Pytester, mark: str, told: str) -> None:
    """A limit that limits nothing is not let pass."""
    suite.makepyfile(f"import pytest\n@pytest.mark.cost_budget({mark})\ndef test_it(): pass")
    result = ran(suite)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{told}*"])


def test_a_wrong_limit(suite: pytest.Pytester) -> None:
    """So it is with the option."""
    result = ran(suite, "--cost-limit", "lots")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--cost-limit: 'lots' is no amount of money*"])


def test_real_clients_are_metered_without_being_told(suite: pytest.Pytester) -> None:
    """A test that never heard of aifinops is held to its budget: its openai client is metered, also after somebody took that back."""
    suite.makepyfile("""
        import openai, pytest
        from aifinops.testing import FakeProvider

        def ask():
            with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test") as client:
                client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hello"}])

        @pytest.mark.cost_budget("$0.000001")
        def test_1(): ask()

        def test_2():
            import aifinops
            aifinops.uninstrument()

        @pytest.mark.cost_budget("$0.000001")
        def test_3(): ask()
    """)
    result = ran(suite)
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*USD in 1 call is above 0.000001 USD*"])


def test_a_ledger_that_a_test_names_is_told(suite: pytest.Pytester, tmp_path: Path) -> None:
    """Who names a ledger in code has it written, and the report says so."""
    suite.makepyfile(f"""
        import aifinops as af
        from spending import spend
        def test_it():
            af.init(ledger={str(tmp_path / "named.db")!r})
            spend("0.01")
    """)
    result = ran(suite, "--cost-report")
    result.stdout.fnmatch_lines(["$0.0100  1 call  *", "charges were written to *named.db, too*"])


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_with_xdist(suite: pytest.Pytester) -> None:
    """Workers send what their tests cost; report, budgets and limit are as without them."""
    suite.makepyfile("""
        import pytest
        from spending import spend

        @pytest.mark.parametrize("n", range(6))
        def test_many(n): spend(f"0.0{n + 1}")

        @pytest.mark.cost_budget("$0.01")
        def test_dear(): spend("0.02")
    """)
    result = ran(suite, "-p", "xdist", "-n", "2", "--cost-report")
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["$0.0600  1 call  *test_many?5?", "$0.23 in 7 calls of 7 tests"])
    result = ran(suite, "-p", "xdist", "-n", "2", "--cost-limit", "$0.05")
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*were spent, more than --cost-limit $0.0500*"])


def test_unused_it_loads_nothing(suite: pytest.Pytester) -> None:
    """Without mark and option no engine and no third-party package of ours is loaded, and the environment is as it was."""
    suite.makepyfile("""
        import os, sys
        def test_it():
            loaded = {name for name in sys.modules if name.startswith("aifinops")}
            assert loaded == {"aifinops", "aifinops.testing", "aifinops.testing.pytest_plugin"}, loaded
            assert os.environ["AIFINOPS_LEDGER"].endswith("users.db")
    """)
    ran(suite).assert_outcomes(passed=1)


def test_the_entry_point() -> None:
    """pytest finds the plugin by itself where aifinops is installed."""
    settings = tomllib.loads((Path(SOURCE).parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["entry-points"]["pytest11"] == {"aifinops": "aifinops.testing.pytest_plugin"}


@pytest.mark.parametrize("words", [["--cost-report"], []], ids=["option", "mark"])
def test_what_began_before_goes_on_in_memory(suite: pytest.Pytester, tmp_path: Path, words: list[str]) -> None:
    """A conftest that sets aifinops up without naming a ledger has the usual one; with costs in question that is left alone."""
    suite.makeconftest("import aifinops as af\naf.init(tags={'team': 'tests'})\naf.record(cost='1', model='before')\n")
    suite.makepyfile("""
        import pytest
        from aifinops import files
        from spending import spend

        @pytest.mark.cost_budget("$0.05")
        def test_it():
            spend("0.01")
            assert not [one for one in files.forks._open if getattr(one, "connection", None)]  # what is left is closed
    """)
    result = ran(suite, *words)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*were written to*")
    if words:
        assert not (tmp_path / "users.db").exists()
        return
    # A mark is only known once conftests have run: what they spent is where it was, and nothing else.
    from aifinops.ledger import open_ledger

    ledger = open_ledger(tmp_path / "users.db", create=False)
    assert [charge.model for charge in ledger.rows()] == ["before"]
    ledger.close()


def test_aifinops_may_be_there_before_pytest(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aifinops run -m pytest` loads us first: pytest, which would rewrite all modules of an installed plugin, does not complain of that."""
    installed = suite.mkdir("site")
    facts = installed / "aifinops_there-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: aifinops-there\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[pytest11]\naifinops = aifinops.testing.pytest_plugin\n")
    (facts / "RECORD").write_text("aifinops/__init__.py,,\naifinops_there-1.0.dist-info/METADATA,,\n")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), SOURCE, *filter(None, sys.path)]))
    suite.makeini("[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function")
    suite.makepyfile('from spending import spend\ndef test_it(): spend("0.01")')
    code = "import sys, aifinops, pytest; sys.exit(pytest.main(['-q', '--cost-report']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=suite.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$0.0100  1 call" in done.stdout


def test_the_mark_is_declared(suite: pytest.Pytester) -> None:
    """`pytest --markers` and `--strict-markers` know it."""
    suite.makepyfile('import pytest\n@pytest.mark.cost_budget("$1")\ndef test_it(): pass')
    ran(suite, "--strict-markers").assert_outcomes(passed=1)
    ran(suite, "--markers").stdout.fnmatch_lines(["@pytest.mark.cost_budget(limit, allow_unpriced=False)*"])


def test_importing_the_plugin_is_cheap() -> None:
    """It needs pytest, which is there, and the standard library."""
    code = "import sys, pytest; before = set(sys.modules); import aifinops.testing.pytest_plugin; print(sorted({n.partition('.')[0] for n in set(sys.modules) - before}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert set(eval(done.stdout)) <= {"aifinops", "decimal", "_decimal", "numbers"}
