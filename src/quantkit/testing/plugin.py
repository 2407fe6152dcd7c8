"""The pytest plugin: a test fails when the accuracy of a quantization becomes worse than a stored baseline.

pytest finds it by itself where quantkit is installed, so every run of pytest there imports this module: numpy, and all
of quantkit that needs it, is imported when a test uses the fixture.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from quantkit.testing.accuracy import UPDATE, Accuracy
from quantkit.testing.baseline import Baseline, BaselineError

MARKER = "quantkit_formats"
_ACCURACY = pytest.StashKey[Accuracy]()
_BASELINES = pytest.StashKey[dict[Path, Baseline]]()
_CHANGED = pytest.StashKey[set[Path]]()
_BETTER = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quantkit", "accuracy of quantized weights")
    group.addoption(
        "--quantkit-format",
        action="append",
        default=[],
        metavar="FORMAT",
        help="run tests that use quantkit_accuracy with this format, whatever their marker says (repeatable)",
    )
    group.addoption(
        UPDATE,
        action="store_true",
        help="store what tests measure with quantkit_accuracy as their baseline, beside the test file",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MARKER}(*formats): the formats that a test with the fixture quantkit_accuracy is run with"
    )
    config.stash[_BASELINES], config.stash[_CHANGED], config.stash[_BETTER] = {}, set(), []
    if config.getoption("quantkit_update") and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError(f"{UPDATE} writes one file from all tests: run it without -n (pytest-xdist)")
    if config.getoption("quantkit_format"):
        _known(config.getoption("quantkit_format"), "--quantkit-format")


def _known(formats: list[str], where: str) -> list[str]:
    """The formats, each once. UsageError of pytest if one is not known."""
    from quantkit.errors import UsageError
    from quantkit.kernels.formats import find_format
    from quantkit.kernels.group_format import find_group_format

    try:
        return list(dict.fromkeys((find_group_format(name) or find_format(name)).name for name in formats))
    except UsageError as error:
        raise pytest.UsageError(f"{where}: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "quantkit_format" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker(MARKER)
    formats = metafunc.config.getoption("quantkit_format") or list(marker.args if marker else ())
    if not formats:
        pytest.fail(
            f"{metafunc.definition.nodeid} has no format\n"
            f'Mark it with @pytest.mark.{MARKER}("q4_k", "q8_0"), or run pytest with --quantkit-format q4_k.',
            pytrace=False,
        )
    metafunc.parametrize("quantkit_format", _known(formats, metafunc.definition.nodeid))


@pytest.fixture
def quantkit_format(request: pytest.FixtureRequest) -> str:
    """The format that the test is run with: one of the marker's, or of --quantkit-format."""
    return str(request.param)


@pytest.fixture
def quantkit_accuracy(request: pytest.FixtureRequest, quantkit_format: str) -> Accuracy:
    """Call it as quantkit_accuracy(name, weights) for each tensor: see quantkit.testing.accuracy.Accuracy."""
    config, node = request.config, request.node
    path = Path(request.path)
    baselines = config.stash[_BASELINES]
    if path not in baselines:
        try:
            baselines[path] = Baseline.beside(path)
        except BaselineError as error:
            pytest.fail(str(error), pytrace=False)
    baseline = baselines[path]
    try:
        shown = str(baseline.path.relative_to(config.rootpath))
    except ValueError:
        shown = str(baseline.path)
    test = node.nodeid.split("::", 1)[1]
    accuracy = Accuracy(test, quantkit_format, baseline, shown)
    node.stash[_ACCURACY] = accuracy
    return accuracy


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """After the body, so that one run names all tensors that became worse."""
    result = yield
    accuracy = pyfuncitem.stash.get(_ACCURACY, None)
    if accuracy is None:
        return result
    config = pyfuncitem.config
    if config.getoption("quantkit_update") and accuracy.measured:
        accuracy.update()
        config.stash[_CHANGED].add(Path(pyfuncitem.path))
        return result
    complaint = accuracy.complaint()
    if complaint:
        pytest.fail(complaint, pytrace=False)
    if accuracy.improvements():
        config.stash[_BETTER].append(pyfuncitem.nodeid)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    for path in session.config.stash[_CHANGED]:
        session.config.stash[_BASELINES][path].write()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    changed = config.stash[_CHANGED]
    for path in sorted(changed):
        baseline = config.stash[_BASELINES][path]
        terminalreporter.write_line(f"quantkit: wrote {baseline.path} ({len(baseline.results)} results)")
    better = config.stash[_BETTER]
    if better:
        terminalreporter.write_line(
            f"quantkit: more accurate than the baseline: {', '.join(better)}; {UPDATE} would hold them to it"
        )
