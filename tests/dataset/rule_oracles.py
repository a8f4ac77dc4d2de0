"""Each family's rule a second time, on lists of rows in plain Python; nothing of the project is used here."""

from collections.abc import Callable, Sequence

Rows = list[list[int]]
Rule = Sequence[int]


def of_cells(rule: Rule, g: Rows, image: Callable[[int], int]) -> Rows:
    return [[image(c) for c in row] for row in g]


def turn(t: int, g: Rows) -> Rows:
    """0 identity, 1-3 counter-clockwise quarter turns, 4 left-right, 5 up-down, 6 and 7 the diagonals."""
    for _ in range(t if t < 4 else 0):
        g = [list(column) for column in zip(*g, strict=True)][::-1]
    if t == 4:
        return [row[::-1] for row in g]
    if t == 5:
        return g[::-1]
    if t == 6:
        return [list(column) for column in zip(*g, strict=True)]
    return [list(column) for column in zip(*[row[::-1] for row in g[::-1]], strict=True)] if t == 7 else g


def shift(rule: Rule, g: Rows) -> Rows:
    h, w = len(g), len(g[0])
    return [[g[(i - rule[0]) % h][(j - rule[1]) % w] for j in range(w)] for i in range(h)]


def mirror(rule: Rule, g: Rows) -> Rows:
    left_right = [row[::-1] for row in g]
    return [
        [row + other for row, other in zip(g, left_right, strict=True)],
        [other + row for row, other in zip(g, left_right, strict=True)],
        g + g[::-1],
        g[::-1] + g,
    ][rule[0]]


def scale(rule: Rule, g: Rows) -> Rows:
    return [[c for c in row for _ in range(rule[1])] for row in g for _ in range(rule[0])]


def fill(rule: Rule, g: Rows) -> Rows:
    h, w = len(g), len(g[0])
    todo = [(i, j) for i in range(h) for j in range(w) if (i in (0, h - 1) or j in (0, w - 1)) and g[i][j] == 0]
    free = set()
    while todo:
        i, j = todo.pop()
        if (i, j) not in free and 0 <= i < h and 0 <= j < w and g[i][j] == 0:
            free.add((i, j))
            todo += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
    return [[rule[1] if g[i][j] == 0 and (i, j) not in free else g[i][j] for j in range(w)] for i in range(h)]


def outline(rule: Rule, g: Rows) -> Rows:
    near = {
        (i + a, j + b)
        for i, row in enumerate(g)
        for j, c in enumerate(row)
        if c
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
    }
    return [[rule[1] if c == 0 and (i, j) in near else c for j, c in enumerate(row)] for i, row in enumerate(g)]


def gravity(rule: Rule, g: Rows) -> Rows:
    def fall(line: list[int]) -> list[int]:
        return [c for c in line if c == 0] + [c for c in line if c]

    lines = g if rule[0] in (1, 3) else turn(6, g)
    fallen = [fall(line) if rule[0] < 2 else fall(line[::-1])[::-1] for line in lines]
    return fallen if rule[0] in (1, 3) else turn(6, fallen)


def crop(rule: Rule, g: Rows) -> Rows:
    marked = [(i, j) for i, row in enumerate(g) for j, c in enumerate(row) if c == rule[0]]
    if not marked:
        return g
    rows, columns = [i for i, _ in marked], [j for _, j in marked]
    return [row[min(columns) : max(columns) + 1] for row in g[min(rows) : max(rows) + 1]]


def lines(rule: Rule, g: Rows) -> Rows:
    drawn = [row[:] for row in g]
    ways = [[(0, 1)], [(0, -1)], [(1, 0)], [(-1, 0)], [(0, 1), (0, -1)], [(1, 0), (-1, 0)]][rule[0]]
    for i, row in enumerate(g):
        for j, c in enumerate(row):
            for down, right in ways if c else []:
                a, b = i, j
                while 0 <= a < len(g) and 0 <= b < len(row):
                    drawn[a][b] = c
                    a, b = a + down, b + right
    return drawn


ORACLES: dict[str, Callable[[Rule, Rows], Rows]] = {
    "permutation": lambda rule, g: of_cells(rule, g, lambda c: rule[c]),
    "recolor": lambda rule, g: of_cells(rule, g, lambda c: rule[1] if c == rule[0] else c),
    "swap": lambda rule, g: of_cells(rule, g, lambda c: {rule[0]: rule[1], rule[1]: rule[0]}.get(c, c)),
    "fill": fill,
    "dihedral": lambda rule, g: turn(rule[0], g),
    "dihedral_permutation": lambda rule, g: of_cells(rule, turn(rule[0], g), lambda c: rule[1:][c]),
    "shift": shift,
    "mirror": mirror,
    "tile": lambda rule, g: [row * rule[1] for row in g] * rule[0],
    "scale": scale,
    "gravity": gravity,
    "crop": crop,
    "outline": outline,
    "count": lambda rule, g: [[rule[0]] * sum(row.count(rule[0]) for row in g)],
    "lines": lines,
}
