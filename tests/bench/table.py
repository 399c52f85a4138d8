"""Ratios of what was measured in the same round, as tables."""

import statistics


class Table:
    """Rows of text under a title; the first column is left-aligned."""

    def __init__(self, title, *head):
        self.title, self.rows = title, [head]

    def row(self, *cells):
        self.rows.append([c if isinstance(c, str) else f"{c:.3g}" for c in cells])

    def show(self):
        widths = [max(len(r[i]) for r in self.rows) for i in range(len(self.rows[0]))]
        print(f"\n{self.title}")
        for n, r in enumerate(self.rows):
            cells = [r[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(r[1:], widths[1:])]
            print("  " + "  ".join(cells))
            if n == 0:
                print("  " + "  ".join("-" * w for w in widths))
        print(flush=True)


def spread(values, form="{:.2f}"):
    """'median (min .. max)'"""
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    f = form.format
    return f"{f(statistics.median(values))} ({f(min(values))} .. {f(max(values))})"


def ratios(rounds, a, b, key):
    """a's figure over b's, in each round that has both."""
    return [r[a][key] / r[b][key] for r in rounds
            if a in r and b in r and r[b].get(key) and r[a].get(key) is not None]
