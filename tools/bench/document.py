"""Records as text: a line while measuring, and the document of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from records import Record, Run

HEAD = """# Kernels against their peers

{machine}; {code}. Put together from runs of `tools/bench/kernels.py` on one machine and one state of the kernels.
Figures in one row come from one run, in which the sides took turns, each in a process of its own, and are medians.

- GOP/s and GFLOP/s: a multiply-add counts as two. GB/s of products: bytes of packed weights.
- One row and eight go through at least 512 MB of weights, so that no cache helps; more take one matrix. Every side has
  a copy of its own of those weights, repacked or not, and huge pages where the system gives them, as the ceiling of
  reading has: pages of 4 KB are read up to a third slower on a virtual machine, and which kind an allocator happens to
  give is no property of a kernel. They are copied anew three times, and the middle of three medians counts, because
  where memory happens to lie is up to a tenth of a rate.
- Share: of what the limit beside it allows. The limit was sampled between the same turns, because a virtual machine's
  speed changes while one looks at it. For `fast` it is the tier's int8 peak from registers or the reading of the
  weights from memory, whichever takes longer, and for one row also the same kernel's rate on a matrix that stays in
  cache. For `exact` it is numpy's float32 BLAS on the same shape, with weights that were decoded beforehand.
- Ratio: quantkit over the best peer in the row, plain or repacked; quantkit has a row for each. Peers are built for the
  tier's instructions, or for fewer where there is no such build: see their flags.
- †: while this row was measured the machine gave less than {steady:.0%} of the best that was seen of that limit.
- Error: of the product, relative to that of the decoded weights in float64; weights and activations are normal.

## Sides, and what they use of the processor by their own account

{sides}

## Ceilings: the best seen, in 10⁹ operations or bytes a second

{ceilings}"""
TIERS = ("scalar", "avx2", "neon", "avx512")
STEADY = 0.75
MATMUL, EXPERTS = "y = x Wᵀ, 5120 × 8192", "512 rows, each times the matrix of one expert"


def line(record: Record) -> str:
    """One measurement."""
    case = [record.part, record.format, f"{record.threads} thr"]
    case += [_plural(record.n, "row")] * (record.n > 0) + [f"{record.experts} experts"] * (record.experts > 0)
    case += ["importance"] * record.importance
    shown = [f"{' '.join(case):44}", f"{record.contender + ' ' * bool(record.mode) + record.mode:24}"]
    shown.append(f"{record.rate:8.1f} {record.unit}")
    if record.share is not None:
        shown.append(f"{record.share:6.1%} of {record.limit}")
    if record.error is not None:
        shown.append(f"error {record.error:.4f}")
    return "  ".join(shown)


def markdown(run: Run) -> str:
    """The document."""
    threads = sorted({record.threads for record in run.records})
    tiers = sorted({_tier(run, one.contender) for one in run.records if is_ours(one)}, key=TIERS.index)
    lines = [_head(run)]
    for count in threads:
        for tier in reversed(tiers):
            lines += _products(run, count, tier)
    for count in threads:
        lines += _exact(run, count)
    for count in threads:
        lines += _codecs(run, count) + _groups(run, count)
    return "\n".join(lines) + "\n"


def is_ours(record: Record) -> bool:
    return record.contender.startswith("quantkit")


def ours_of(tier: str) -> tuple[str, str]:
    """quantkit with weights as they are, and repacked."""
    return f"quantkit {tier}", f"quantkit {tier} repacked"


def _tier(run: Run, label: str) -> str:
    return str(run.contenders[label]["tier"])


def peers_of(run: Run, tier: str) -> list[str]:
    """Builds of ggml and ik_llama.cpp to hold a tier against: those of its own tier, or else of the nearest below."""
    chosen = []
    for name in ("ggml", "ik_llama.cpp"):
        for repacked in (False, True):
            same = [
                label
                for label, one in run.contenders.items()
                if one["name"] == name and bool(one.get("repacked")) is repacked
            ]
            able = [label for label in same if TIERS.index(_tier(run, label)) <= TIERS.index(tier)]
            if able:
                chosen.append(max(able, key=lambda label: TIERS.index(_tier(run, label))))
    return chosen


def best_peer(records: Iterable[Record], peers: Sequence[str]) -> Record | None:
    """The quickest of the peers' records."""
    return min((one for one in records if one.contender in peers), key=lambda one: one.seconds, default=None)


def cases(run: Run, part: str, threads: int) -> list[list[Record]]:
    """The sides of every case, in the order in which they were measured."""
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in run.records:
        if (record.part, record.threads) == (part, threads):
            found.setdefault(record.case, []).append(record)
    return list(found.values())


def cached_rate(run: Run, one: Record) -> float | None:
    """GB/s of the same kernel on one row and a matrix in cache."""
    if (one.part, one.n) != ("matmul", 1):
        return None
    wanted = ("cached", one.format, one.threads, one.contender)
    return next((r.rate for r in run.records if (r.part, r.format, r.threads, r.contender) == wanted), None)


def disturbed(run: Run, one: Record) -> bool:
    """Whether others took a good part of the machine, by the ceiling that was sampled in the same rounds."""
    best = run.ceilings.get(str(one.threads), {}).get(one.limit)
    return bool(best and one.limit_rate and one.limit_rate < STEADY * best)


def limited(run: Run, one: Record) -> tuple[float, str]:
    """(share, what of): the lesser of the ceiling's and, for one row, the rate in cache."""
    assert one.share is not None
    cached = cached_rate(run, one)
    if cached and cached < one.rate / one.share:
        return one.rate / cached, f"in cache: {_number(cached)}"
    return one.share, one.limit


def _number(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(row) + " |" for row in (head, marks, *rows)]


def _title(text: str, threads: int) -> list[str]:
    return ["", f"## {text}, {_plural(threads, 'thread')}", ""]


def _head(run: Run) -> str:
    sides = []
    for label, one in run.contenders.items():
        uses = " ".join(one["flags"]) or (f"tier {one['tier']}" if one["tier"] else "")
        sides.append(f"- {label}: {'; '.join(filter(None, (one['version'], one['threading'], uses)))}")
    names = sorted({name for found in run.ceilings.values() for name in found})
    counts = sorted(run.ceilings, key=int)
    rows = [[name, *(_number(run.ceilings[count].get(name, 0) / 1e9) for count in counts)] for name in names]
    ceilings = "\n".join(_table(["", *(_plural(int(count), "thread") for count in counts)], rows))
    return HEAD.format(steady=STEADY, machine=run.machine, code=run.code, sides="\n".join(sides), ceilings=ceilings)


def _products(run: Run, threads: int, tier: str) -> list[str]:
    """`fast` against ggml and ik_llama.cpp: matrices, then experts."""
    lines: list[str] = []
    for part, title in (("matmul", MATMUL), ("experts", EXPERTS)):
        rows = []
        for case in cases(run, part, threads):
            found = {one.contender: one for one in case if one.mode != "exact"}
            for label in ours_of(tier):
                if label in found:
                    rows += _product(run, tier, label, found)
        if rows:
            head = ["", "", f"quantkit {tier}", *peers_of(run, tier), "ratio", "share", "of", "error", "best peer's"]
            lines += [*_title(f"{title}: `fast`, tier {tier}", threads), *_table(head, rows)]
    return lines


def _product(run: Run, tier: str, label: str, found: Mapping[str, Record]) -> list[list[str]]:
    one, peers = found[label], peers_of(run, tier)
    best = best_peer(found.values(), peers)
    if best is None or one.share is None:
        return []
    share, limit = limited(run, one)
    name = f"{one.format}, {one.experts} experts" if one.experts else f"{one.format}, {_plural(one.n, 'row')}"
    name += ", repacked" * one.repacked + " †" * disturbed(run, one)
    rates = [_number(found[label].rate) if label in found else "" for label in peers]
    ratio = f"{best.seconds / one.seconds:.2f}"
    errors = [f"{one.error:.4f}", f"{best.error:.4f}"]
    return [[name, one.unit, f"**{_number(one.rate)}**", *rates, ratio, f"{share:.0%}", limit, *errors]]


def _exact(run: Run, threads: int) -> list[str]:
    rows = []
    for case in cases(run, "matmul", threads):
        blas = next((one for one in case if one.contender == "numpy f32"), None)
        for one in case:
            if blas and is_ours(one) and one.mode == "exact":
                name = f"{one.format}, {_plural(one.n, 'row')}"
                share = f"{blas.seconds / one.seconds:.0%}"
                rows.append([name, one.contender, _number(one.rate), _number(blas.rate), share])
    if not rows:
        return []
    head = ["", "", "exact GFLOP/s", "BLAS GFLOP/s", "share"]
    return [*_title("y = x Wᵀ: `exact` against float32 BLAS", threads), *_table(head, rows)]


def _codecs(run: Run, threads: int) -> list[str]:
    lines: list[str] = []
    for part, title in (("encode", "Encoding: M weights/s"), ("decode", "Decoding: GB/s of float32")):
        measured = cases(run, part, threads)
        present = {one.contender for case in measured for one in case}
        labels = [label for label in run.contenders if label in present]
        ours = [label for label in labels if label.startswith("quantkit")]
        if not measured or not ours:
            continue
        rows = []
        for case in measured:
            found = {one.contender: one for one in case}
            row = [case[0].format + ", importance" * case[0].importance]
            row += [_number(found[label].rate) if label in found else "" for label in labels]
            for label in ours:
                best = best_peer(case, peers_of(run, _tier(run, label)))
                row.append(f"{best.seconds / found[label].seconds:.2f}" if best and label in found else "")
            if part == "decode":
                row += [f"{found[label].share:.0%}" if label in found else "" for label in ours[-1:]]
            rows.append(row)
        head = ["", *labels, *(f"ratio, {_tier(run, label)}" for label in ours)]
        head += ["share of writing"] * (part == "decode")
        lines += [*_title(title, threads), *_table(head, rows)]
    return lines


def _groups(run: Run, threads: int) -> list[str]:
    lines: list[str] = []
    for part, title in (("encode groups", "Group quantization"), ("matmul groups", "Products with groups")):
        rows = []
        for case in cases(run, part, threads):
            quickest = min((one.seconds for one in case if not is_ours(one)), default=None)
            for one in case:
                ratio = f"{quickest / one.seconds:.2f}" if quickest and is_ours(one) else ""
                name = one.format + f", {_plural(one.n, 'row')}" * (one.n > 0)
                rows.append([name, one.contender, f"{_number(one.rate)} {one.unit}", ratio, f"{one.error:.5f}"])
        if rows:
            head = ["", "", "rate", "ratio to the best peer", "error"]
            lines += [*_title(title, threads), *_table(head, rows)]
    return lines
