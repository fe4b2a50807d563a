"""Tables of one session of the comparison: medians over its rounds, with the least and the most.

    python benchmarks/compare/report.py [--session NAME] [--readme README.md]

A ratio is that of the medians; behind it are the least and the most of the ratios within a round, whose engines ran one
after the other.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from engines import ENGINES
from rows import Row, latest_session, read_rows, rows_of
from workload import SCENARIOS

RESULTS = Path(__file__).parent.parent / "results"
BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
OURS = [name for name, engine in ENGINES.items() if engine.ours]

Rounds = dict[str, float]
"""A figure of one engine, by round."""


def rounds_of(rows: list[Row], engine: str, scenario: str) -> Rounds:
    """Tokens per second of a scenario."""
    rated = [row for row in rows if row["engine"] == engine and scenario in row["rates"]]
    return {row["round"]: row["rates"][scenario] for row in rated}


def _spread(values: list[float], unit: str = "") -> str:
    """Median, with the least and the most where there are several."""
    digits = 1 if statistics.median(values) < 20 else 0
    text = f"{statistics.median(values):,.{digits}f}{unit}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _ratio(ours: Rounds, peers: list[Rounds]) -> str:
    """How many times the best of the others."""
    peers = [peer for peer in peers if peer]
    if not ours or not peers:
        return ""
    best = max(peers, key=lambda peer: statistics.median(peer.values()))
    of_medians = statistics.median(ours.values()) / statistics.median(best.values())
    within = [ours[number] / best[number] for number in ours.keys() & best.keys()]
    spread = f" ({min(within):.1f} to {max(within):.1f})" if len(within) > 1 else ""
    return f"{of_medians:.1f}x{spread}"


def _line(title: str, figures: dict[str, Rounds], *, ratio: bool = True) -> str:
    cells = [_spread(list(figures[name].values())) if figures[name] else "" for name in ENGINES]
    peers = [figures[name] for name in ENGINES if name not in OURS]
    ratios = [_ratio(figures[name], peers) for name in OURS] if ratio else []
    if len([text for text in ratios if text]) > 1:
        ratios[1:] = [f"int8 KV {text}" for text in ratios[1:]]
    return f"| {title} | " + " | ".join(cells) + " | " + ", ".join(filter(None, ratios)) + " |"


def _memory_lines(rows: list[Row]) -> list[str]:
    lines = []
    for is_long, context in ((False, "context 128"), (True, "context 1,024")):
        figures: dict[str, Rounds] = {name: {} for name in ENGINES}
        for row in rows:
            if row["rates"] and all(SCENARIOS[name].is_long == is_long for name in row["rates"]):
                figures[row["engine"]][row["round"]] = row["peak_rss_bytes"] / 1e6
        if any(figures.values()):
            lines.append(_line(f"peak memory of the process, MB, {context}", figures, ratio=False))
    return lines


def model_table(rows: list[Row], http_rows: list[Row]) -> str:
    """Everything about one model, as Markdown."""
    lines = ["| tokens per second | " + " | ".join(ENGINES) + " | Realm / best other |"]
    lines.append("|---|" + "---:|" * (len(ENGINES) + 1))
    for scenario in SCENARIOS.values():
        figures = {name: rounds_of(rows, name, scenario.name) for name in ENGINES}
        if any(figures.values()):
            lines.append(_line(scenario.title, figures))
    for title, key, ratio in (
        (
            "over HTTP: {clients} clients, {prompt_tokens}-token prompts, {max_tokens} tokens each",
            "tokens_per_second",
            True,
        ),
        ("the same, ms to the first token (median)", "ttft_ms_p50", False),
        ("the same, ms between two tokens (median)", "itl_ms_p50", False),
    ):
        served = [row for row in http_rows if key in row]
        if served:
            figures = {name: {r["round"]: r[key] for r in served if r["engine"] == name} for name in ENGINES}
            lines.append(_line(title.format_map(served[0]), figures, ratio=ratio))
    lines += _memory_lines(rows)
    for name, error in {row["engine"]: row["error"] for row in rows if "error" in row}.items():
        lines += ["", f"{name} can't run this file: `{error}`"]
    return "\n".join(lines)


def quality_table(rows: list[Row]) -> str:
    """How near each engine's distributions are to float32's, from the newest row of each model."""
    newest = {row["model"]: row for row in rows}
    lines = ["| | " + " | ".join(f"{name}" for name in newest) + " |"]
    lines.append("|---|" + "---:|" * len(newest))
    for engine in dict.fromkeys(judged["engine"] for row in newest.values() for judged in row["rows"]):
        found = [[j for j in row["rows"] if j["engine"] == engine] for row in newest.values()]
        cells = [f"{j[0]['mean_kl']:.4f}, {j[0]['top1_agreement']:.1%}" if j else "" for j in found]
        lines.append(f"| {engine} | " + " | ".join(cells) + " |")
    judged = " and ".join(f"{row['num_positions']:,}" for row in newest.values())
    commits = ", ".join(sorted({row["commit"] for row in newest.values()}))
    how = f"{judged} tokens of a novel judged by `benchmarks/quality.py`, commit {commits}"
    about = f"Mean KL divergence from the same file in float32, and how often the likeliest token is the same ({how}):"
    return "\n".join([about, "", *lines])


def report(rows: list[Row], http_rows: list[Row]) -> str:
    """Where and how it was measured, and a table for each model."""
    everything = rows + http_rows
    newest = max(everything, key=lambda row: row["time"])
    machine = newest["machine"]
    commits = ", ".join(sorted({row["commit"] for row in everything}))
    versions = {row["engine"]: row["version"] for row in everything if "version" in row}
    where = f"{machine['cpu']}, {newest['num_threads']} threads, {newest['time'][:10]}, commit {commits}"
    how = "each engine alone on the machine, in turns; medians, with the least and the most of the rounds"
    lines = [f"{where}; {how}.", ""]
    lines += [
        f"- {name} {versions.get(name, '')}: {engine.note}." for name, engine in ENGINES.items() if name in versions
    ]
    for model in dict.fromkeys(row["model"] for row in everything):
        lines += ["", f"**{model}**", ""]
        lines.append(
            model_table([r for r in rows if r["model"] == model], [r for r in http_rows if r["model"] == model])
        )
    return "\n".join(lines)


def print_report(path: Path, http_path: Path, session: str | None) -> None:
    """Print the tables of one session."""
    rows, http_rows = rows_of(path, session), rows_of(http_path, session)
    if not rows and not http_rows:
        raise SystemExit(f"there are no rows of session {session!r} in {path} and {http_path}")
    print(report(rows, http_rows))


def write_between_marks(path: Path, text: str) -> None:
    """Put `text` in place of what stands between the marks."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path} has no {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS / "compare.jsonl")
    parser.add_argument("--http-rows", type=Path, default=RESULTS / "compare_http.jsonl")
    parser.add_argument("--quality-rows", type=Path, default=RESULTS / "quality.jsonl", help="for the page only")
    parser.add_argument("--session", help="default: that of the newest row")
    parser.add_argument("--readme", type=Path, help="also write it between the marks in this page")
    args = parser.parse_args()
    session = args.session or latest_session(args.rows, args.http_rows)
    print_report(args.rows, args.http_rows, session)
    if args.readme:
        tables = report(rows_of(args.rows, session), rows_of(args.http_rows, session))
        plot = "![Decode rates of each engine over batch sizes](docs/decode.svg)"
        write_between_marks(args.readme, f"{plot}\n\n{tables}\n\n{quality_table(read_rows(args.quality_rows))}")


if __name__ == "__main__":
    main()
