"""What the fixture `quantkit_accuracy` is: measures tensors and compares them with a baseline, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantkit import __version__
from quantkit.testing.baseline import HIGHER_IS_BETTER, Baseline, Change, Entry, make_entry

if TYPE_CHECKING:
    from quantkit.kernels import Deviation

UPDATE = "--quantkit-update"


class Accuracy:
    """Call it once for each tensor; the test fails at its end if any became worse than the baseline.

    quantkit_accuracy(name, weights) quantizes with quantkit in the format under test. `packed=` takes bytes that your
    own encoder wrote in that format instead, or a QuantizedTensor of it, `decoded=` the weights that came out of
    anything else.
    """

    def __init__(self, test: str, format: str, baseline: Baseline, shown_path: str) -> None:
        self.format = format
        """The format under test, "q4_k" or "int4_g64" ..."""
        self.test = test
        self.baseline = baseline
        self._shown_path = shown_path
        self.measured: dict[str, Entry] = {}
        self._worst: dict[str, str] = {}

    def __call__(
        self,
        name: str,
        weights: Any,
        *,
        importance: Any | None = None,
        packed: Any | None = None,
        decoded: Any | None = None,
    ) -> Deviation:
        """Measure one tensor.

        Args:
            name: of the tensor in the baseline; once in a test.
            weights: (rows, cols) or (experts, rows, cols), as quantkit.kernels.quantize takes them.
            importance: (cols,) or (experts, cols): the quantization and all metrics but max_abs are weighted by it.
            packed: uint8 (..., row_bytes), if not quantkit but your encoder made the bytes; a QuantizedTensor, which
                group formats ("int4_g64") need, as their words say nothing without scales and biases.
            decoded: of the shape of weights, if they are not in a format of quantkit at all.

        Returns:
            The metrics, for bounds of your own.

        Raises:
            UsageError: shapes, formats or names that do not fit.
            NonFiniteError: a value is NaN or infinite; its place is named.
        """
        from quantkit.errors import UsageError
        from quantkit.kernels import QuantizedTensor
        from quantkit.kernels.arrays import real_array, widened
        from quantkit.testing.metrics import figures, measure

        if name in self.measured:
            raise UsageError(f"quantkit_accuracy was called for {name!r} twice", hint="Each tensor has its own name.")
        if packed is not None and decoded is not None:
            raise UsageError("quantkit_accuracy takes packed or decoded, not both")
        array, type = real_array(weights, "weights")
        if decoded is None:
            if packed is None:
                packed = QuantizedTensor.quantize(weights, self.format, importance=importance)
            elif not isinstance(packed, QuantizedTensor):
                packed = QuantizedTensor(packed, self.format)
            if packed.format != self.format:
                raise UsageError(f"packed is in {packed.format}, and the test is of {self.format}")
            decoded = packed.dequantize()
        found = measure(weights, decoded, importance=importance)
        self.measured[name] = make_entry(figures(found), array.shape, array.tobytes())
        at = found.max_abs_index
        value, became = widened(array[at][None], type)[0], widened(*real_array(decoded, "decoded"))[at]
        self._worst[name] = f"{self._place(at, array.shape[-1])}: {value:.6g} became {became:.6g}"
        return found

    def _place(self, index: tuple[int, ...], cols: int) -> str:
        from quantkit.kernels.formats import find_format
        from quantkit.kernels.group_format import find_group_format

        group = find_group_format(self.format)
        size = group.group_cols(cols) if group else max(32, find_format(self.format).block_size)
        block, element = divmod(index[-1], size)
        expert = f"expert {index[0]}, " if len(index) == 3 else ""
        row = f"row {index[-2]}, " if len(index) > 1 else ""
        return f"{expert}{row}block {block}, element {element}"

    def complaint(self) -> str:
        """Why the test has to fail; empty where it need not."""
        if not self.measured:
            return f"{self.test} measured nothing: it has to call quantkit_accuracy(name, weights)"
        stored = self.baseline.results.get(self.test)
        if stored is None:
            found = "does not exist" if not self.baseline.exists else f"knows nothing of {self.test}"
            return self._advise(f"no baseline: {self._shown_path} {found}", "To make it")
        missing = [name for name in self.measured if name not in stored]
        gone = [name for name in stored if name not in self.measured]
        reshaped = [
            f"{name} ({stored[name]['shape']}, now {entry['shape']})"
            for name, entry in self.measured.items()
            if name in stored and stored[name]["shape"] != entry["shape"]
        ]
        for what, names in (
            ("tensors that it does not know", missing),
            ("tensors that were not measured", gone),
            ("tensors of another shape", reshaped),
        ):
            if names:
                return self._advise(f"{self._shown_path} does not fit {self.test}: {what}: {', '.join(names)}")
        tables = [
            self._table(name, stored[name], changes)
            for name, changes in self._changes(stored).items()
            if any(change.worse for change in changes)
        ]
        if not tables:
            return ""
        title = (
            f"{self.format} is less accurate than {self._shown_path} says\n"
            f"(baseline of quantkit {self.baseline.version}, this is {__version__}; "
            f"{len(tables)} of {len(self.measured)} tensors are worse)\n\n"
        )
        return self._advise(title + "\n\n".join(tables) + "\n")

    def improvements(self) -> list[str]:
        """Tensors that are better than the baseline by more than the tolerance, and not worse in anything."""
        changes = self._changes(self.baseline.results.get(self.test, {}))
        return [name for name, of in changes.items() if any(c.better for c in of) and not any(c.worse for c in of)]

    def update(self) -> None:
        """Put what was measured into the baseline (in memory)."""
        self.baseline.results[self.test] = self.measured

    def _changes(self, stored: dict[str, Entry]) -> dict[str, list[Change]]:
        both = {name: entry for name, entry in self.measured.items() if name in stored}
        return {name: self.baseline.compare(stored[name], entry) for name, entry in both.items()}

    def _table(self, name: str, stored: Entry, changes: list[Change]) -> str:
        entry = self.measured[name]
        lines = [f"  {name} ({entry['shape']})"]
        lines.append(f"    {'metric':<16}{'baseline':>12}{'now':>12}{'change':>11}   allowed")
        for change in changes:
            sign = "-" if change.metric in HIGHER_IS_BETTER else "+"
            lines.append(
                f"    {change.metric:<16}{change.baseline:>12.6g}{change.now:>12.6g}{change.percent:>+9.2f} %"
                f"   {sign}{change.tolerance_percent:g} %{'   WORSE' if change.worse else ''}"
            )
        lines.append(f"    worst element: {self._worst[name]}")
        if stored["weights_sha256"] != entry["weights_sha256"]:
            lines.append("    The weights themselves are not those of the baseline.")
        return "\n".join(lines)

    @staticmethod
    def _advise(what: str, then: str = "If that is meant") -> str:
        return f"{what}\n{then}, run pytest with {UPDATE} and commit the file."
