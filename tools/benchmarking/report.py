"""Rows of measurements as a table, csv, json and a plot."""

import csv
import json
from pathlib import Path

#: Colours of the bars: the models themselves, other forms of them; others are blue.
COLORS = {'ours': 'tab:green', 'published': 'darkgray', 'reference': 'lightgray'}


def add_ratios(rows: list[dict], rates: dict[str, float]) -> None:
    """Add to rows the time over ours, and the part reached of ``rates``, operations/s by dtype."""
    for row in rows:
        for ours in rows:
            is_same = (ours['mode'], ours['size']) == (row['mode'], row['size'])
            if ours['contender'] == 'ours' and is_same and row['arch'] in ('', ours['arch']):
                key = f'times_ours_{ours["arch"]}_{ours["dtype"]}'
                row[key] = row['median_ms'] / ours['median_ms']
        operations = row.get('run_multiply_adds', row.get('multiply_adds'))
        if row['mode'] == 'infer' and row['dtype'] in rates and operations is not None:
            rate = 2 * operations / (row['median_ms'] / 1e3)
            row['matmul_rate_reached'] = rate / rates[row['dtype']]


def table(rows: list[dict]) -> str:
    """The main columns as aligned text."""

    def number(row: dict, key: str, scale: float = 1e6, form: str = '.0f') -> str:
        return '-' if row.get(key) is None else f'{row[key] / scale:{form}}'

    named = ('contender', 'arch', 'dtype', 'mode', 'size')
    head = [*named, 'median ms', 'quartiles', 'peak MB', 'saved MB', 'of matmul rate', 'times ours']
    lines = [head]
    for row in rows:
        ratios = (key for key in row if key.startswith('times_ours_'))
        lines.append(
            [
                *(row[name] for name in named),
                f'{row["median_ms"]:.1f}',
                f'{row["q1_ms"]:.1f}-{row["q3_ms"]:.1f}',
                number(row, 'peak_bytes'),
                number(row, 'saved_bytes'),
                number(row, 'matmul_rate_reached', 1, '.2f'),
                ', '.join(f'{row[key]:.2f} ({key.removeprefix("times_ours_")})' for key in ratios),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines)


def write(rows: list[dict], facts: dict, folder: Path) -> None:
    """Write benchmark.csv, .json (with the ``facts``: machine, versions, command) and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'benchmark.json').write_text(json.dumps(dict(facts, rows=rows), indent=1) + '\n')
    columns = dict.fromkeys(key for row in rows for key in row)
    with (folder / 'benchmark.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    _plot(rows, folder / 'benchmark.png')


def _plot(rows: list[dict], path: Path) -> None:
    """A panel of bars from zero for each mode and size."""
    import numpy as np
    from matplotlib.figure import Figure

    panels = {}
    for row in rows:
        panels.setdefault((row['mode'], row['size']), []).append(row)
    heights = [len(panel) + 3 for panel in panels.values()]
    figure = Figure(figsize=(9, 0.22 * sum(heights)), layout='constrained')
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, ((mode, size), panel) in zip(grid[:, 0], panels.items()):
        names = [' '.join(filter(None, (r['contender'], r['arch'], r['dtype']))) for r in panel]
        low, medians, high = np.array([[r['q1_ms'], r['median_ms'], r['q3_ms']] for r in panel]).T
        colors = [COLORS.get(r['contender'], 'tab:blue') for r in panel]
        spread = medians - low, high - medians
        axes.barh(range(len(panel)), medians, xerr=spread, color=colors)
        axes.set_yticks(range(len(panel)), names, fontsize=7)
        axes.set_ylim(len(panel) - 0.4, -0.6)
        axes.set_title(f'{mode}, {size}', fontsize=9, loc='left')
        axes.spines[['top', 'right']].set_visible(False)
    grid[-1, 0].set_xlabel('milliseconds (median, quartiles)')
    figure.savefig(path, dpi=110)
