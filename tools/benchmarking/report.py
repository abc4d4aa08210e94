"""Rows of measurements as a table, csv, json and a plot."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def add_ratios(rows: list[dict], rates: dict[str, float]) -> None:
    """Add what a reader compares: time over ours, and the part of the machine's rate reached.

    Args:
        rows (list[dict]): See :func:`benchmarking.compare.compare`; changed.
        rates (dict[str, float]): Measured operations per second of a matrix product, by dtype.
    """
    ours = {
        (r['arch'], r['mode'], r['size'], r['dtype']): r for r in rows if r['contender'] == 'ours'
    }
    for row in rows:
        for other in ours.values():
            if (other['mode'], other['size']) != (row['mode'], row['size']):
                continue
            if row['arch'] not in ('', other['arch']):
                continue
            row[f'times_ours_{other["arch"]}_{other["dtype"]}'] = (
                row['median_ms'] / other['median_ms']
            )
        operations = row.get('run_multiply_adds', row.get('multiply_adds'))
        if row['mode'] == 'infer' and row['dtype'] in rates and operations is not None:
            done = 2 * operations
            row['matmul_rate_reached'] = done / (row['median_ms'] / 1e3) / rates[row['dtype']]


def table(rows: list[dict]) -> str:
    """The main columns as aligned text."""
    head = [
        'contender',
        'arch',
        'dtype',
        'mode',
        'size',
        'median ms',
        'quartiles',
        'peak MB',
        'saved MB',
        'of matmul rate',
        'times ours',
    ]
    lines = [head]
    for row in rows:
        times = [
            f'{value:.2f} ({key.removeprefix("times_ours_")})'
            for key, value in row.items()
            if key.startswith('times_ours_')
        ]
        lines.append(
            [
                row['contender'],
                row['arch'],
                row['dtype'],
                row['mode'],
                row['size'],
                f'{row["median_ms"]:.1f}',
                f'{row["q1_ms"]:.1f}-{row["q3_ms"]:.1f}',
                _megabytes(row.get('peak_bytes')),
                _megabytes(row.get('saved_bytes')),
                f'{row["matmul_rate_reached"]:.2f}' if 'matmul_rate_reached' in row else '-',
                ', '.join(times),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines)


def _megabytes(size: int | None) -> str:
    return '-' if size is None else f'{size / 1e6:.0f}'


def write(rows: list[dict], facts: dict, folder: Path) -> None:
    """Write benchmark.csv, benchmark.json and benchmark.png into a folder.

    Args:
        rows (list[dict]): Measurements.
        facts (dict): Machine, versions, command.
        folder (Path): Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'benchmark.json').write_text(json.dumps(dict(facts, rows=rows), indent=1) + '\n')
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / 'benchmark.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    _plot(rows, folder / 'benchmark.png')


#: Colours of the bars: the models themselves, other forms of them, other models.
_COLORS = {'ours': 'tab:green', 'published': 'darkgray', 'reference': 'lightgray'}
_RIVAL_COLOR = 'tab:blue'


def _plot(rows: list[dict], path: Path) -> None:
    """A panel of bars from zero for each mode and size."""
    from matplotlib.figure import Figure

    panels = {}
    for row in rows:
        panels.setdefault((row['mode'], row['size']), []).append(row)
    heights = [len(panel) + 3 for panel in panels.values()]
    figure = Figure(figsize=(9, 0.22 * sum(heights)), layout='constrained')
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, ((mode, size), panel) in zip(grid[:, 0], panels.items()):
        names = [' '.join(filter(None, (r['contender'], r['arch'], r['dtype']))) for r in panel]
        medians = [r['median_ms'] for r in panel]
        spread = [
            [m - r['q1_ms'] for m, r in zip(medians, panel)],
            [r['q3_ms'] - m for m, r in zip(medians, panel)],
        ]
        colors = [_COLORS.get(r['contender'], _RIVAL_COLOR) for r in panel]
        axes.barh(range(len(panel)), medians, xerr=spread, color=colors)
        axes.set_yticks(range(len(panel)), names, fontsize=7)
        axes.set_ylim(len(panel) - 0.4, -0.6)
        axes.set_title(f'{mode}, {size}', fontsize=9, loc='left')
        axes.spines[['top', 'right']].set_visible(False)
    grid[-1, 0].set_xlabel('milliseconds (median, quartiles)')
    figure.savefig(path, dpi=110)
