"""Mazes as integers: drawing a layout, and choosing a start and a goal with the wanted moves and turns.

A cell is `row * cols + col`. Side `2 * cell` is the one to the right of the cell, side `2 * cell + 1` the one below it. A layout is the
set of its open sides, held in one integer (bit = side). A route is the cells from start to goal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise, product
from typing import NamedTuple

from data_pipelines.tasks.keyed import SEED_CLASSES, Draw, shuffle, split_of, words

SMALLEST_CLASSED = 16
"""Grids of fewer cells have too few mazes to be dealt out among seeds."""
FREE_CELLS = 1600
"""Cells of layouts drawn freely (64 layouts of 5 x 5) before a route of the wanted kind is planted in the layout."""
PLANTED_TRIES = 16384
VARIATIONS = 256
"""Dead ends moved in a planted layout before the next: it is of the wanted split and seed class once in 85 (train) or 256 (test)."""
ROUTE_STEPS = 1000
"""Steps of one search for a route to plant."""


class Symmetry(NamedTuple):
    """A rotation or reflection that keeps the grid's shape."""

    cells: tuple[int, ...]
    """Cell -> its image."""
    origins: tuple[int, ...]
    """The other way round."""
    bits: dict[int, int]
    """Side -> the bit of its image."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Tables for mazes of one size."""

    rows: int
    cols: int
    sides: tuple[int, ...]
    """Inner sides, open or walled, in order."""
    around: tuple[int, ...]
    """Cell -> its neighbours, as a set of bits."""
    exits: tuple[dict[int, tuple[tuple[int, int], ...]], ...]
    """Cell -> {some of its neighbours, as bits: ((neighbour, side between), ...) in the order up, left, right, down}."""
    symmetries: tuple[Symmetry, ...]
    """8 for a square, else 4; the identity first."""

    @property
    def cells(self) -> int:
        return self.rows * self.cols


@lru_cache(maxsize=64)
def grid(rows: int, cols: int) -> Grid:
    around, exits = [], []
    ends: dict[int, tuple[int, int]] = {}
    for cell in range(rows * cols):
        row, col = divmod(cell, cols)
        ways: list[tuple[int, int]] = []
        if row:
            ways.append((cell - cols, 2 * (cell - cols) + 1))
        if col:
            ways.append((cell - 1, 2 * (cell - 1)))
        if col < cols - 1:
            ways.append((cell + 1, 2 * cell))
        if row < rows - 1:
            ways.append((cell + cols, 2 * cell + 1))
        subsets = (tuple(way for i, way in enumerate(ways) if chosen >> i & 1) for chosen in range(1 << len(ways)))
        exits.append({sum(1 << to for to, _ in subset): subset for subset in subsets})
        around.append(sum(1 << to for to, _ in ways))
        ends |= {side: (cell, to) for to, side in ways if to > cell}
    symmetries = []
    for turned, flipped_rows, flipped_cols in product((False, True) if rows == cols else (False,), (False, True), (False, True)):
        images = []
        for cell in range(rows * cols):
            row, col = reversed(divmod(cell, cols)) if turned else divmod(cell, cols)
            images.append((rows - 1 - row if flipped_rows else row) * cols + (cols - 1 - col if flipped_cols else col))
        bits = {}
        for side, (a, b) in ends.items():
            first, second = sorted((images[a], images[b]))
            bits[side] = 1 << 2 * first + (second - first == cols)
        symmetries.append(Symmetry(tuple(images), tuple(images.index(cell) for cell in range(rows * cols)), bits))
    return Grid(rows, cols, tuple(sorted(ends)), tuple(around), tuple(exits), tuple(symmetries))


def openings_of(sides: Iterable[int]) -> int:
    return sum(1 << side for side in sides)


class Tree(NamedTuple):
    sides: list[int]
    """The open ones."""
    parent: list[int]
    depth: list[int]


def carve(g: Grid, draw: Draw, planted: list[int]) -> Tree:
    """Spanning tree by randomised depth-first search, grown from the cells of `planted`, whose consecutive cells are joined."""
    parent, depth = [-1] * g.cells, [0] * g.cells
    sides: list[int] = []
    free = (1 << g.cells) - 1 - (1 << planted[0])
    for i, (here, there) in enumerate(pairwise(planted)):
        sides.append(g.exits[here][1 << there][0][1])
        parent[there], depth[there] = here, i + 1
        free ^= 1 << there
    stack = planted.copy()
    shuffle(stack, draw)
    exits, around = g.exits, g.around
    while free:
        here = stack[-1]
        reachable = around[here] & free
        if not reachable:
            stack.pop()
            continue
        ways = exits[here][reachable]
        there, side = ways[draw() * len(ways) >> 32]
        sides.append(side)
        parent[there], depth[there] = here, depth[here] + 1
        free ^= 1 << there
        stack.append(there)
    return Tree(sides, parent, depth)


def some_walls(g: Grid, draw: Draw, opened: list[int], extra: int) -> list[int]:
    """`extra` of the inner sides not in `opened`, every choice equally likely."""
    walls = sorted(set(g.sides) - set(opened))
    shuffle(walls, draw)
    return walls[:extra]


def layout_hash(g: Grid, openings: int) -> int:
    """64-bit hash of the wall layout."""
    data = openings.to_bytes((2 * g.cells + 7) // 8, "little")
    return int.from_bytes(blake2b(data, digest_size=8, person=b"maze %dx%d" % (g.rows, g.cols)).digest(), "little")


def seed_classes(cells: int) -> int:
    return SEED_CLASSES if cells >= SMALLEST_CLASSED else 1


def pair_class(start: int, goal: int) -> int:
    """Class of a pair of cells. An item belongs to the seeds with (layout_hash + pair_class) % seed_classes == seed % seed_classes."""
    data = start.to_bytes(2, "little") + goal.to_bytes(2, "little")
    return blake2b(data, digest_size=1, person=b"maze pair").digest()[0] % SEED_CLASSES


@lru_cache(maxsize=16)
def pairs(rows: int, cols: int) -> tuple[dict[int, list[tuple[int, int]]], ...]:
    """Class -> {distance as the crow walks: (start, goal) pairs}; small grids have one class."""
    classes = seed_classes(rows * cols)
    found: tuple[dict[int, list[tuple[int, int]]], ...] = tuple({} for _ in range(classes))
    for start in range(rows * cols):
        for goal in range(rows * cols):
            apart = abs(start // cols - goal // cols) + abs(start % cols - goal % cols)
            if apart:
                found[pair_class(start, goal) % classes].setdefault(apart, []).append((start, goal))
    return found


def turns_of(route: Sequence[int]) -> int:
    """Changes of direction along the cells of a route."""
    steps = [there - here for here, there in pairwise(route)]
    return sum(before != after for before, after in pairwise(steps))


def tree_route(tree: Tree, start: int, goal: int, moves: int) -> list[int] | None:
    """The only route, if it is at most `moves` long."""
    _, parent, depth = tree
    ahead, behind = [start], [goal]
    while start != goal:
        if depth[start] >= depth[goal]:
            start = parent[start]
            ahead.append(start)
        else:
            goal = parent[goal]
            behind.append(goal)
        if len(ahead) + len(behind) - 2 > moves:
            return None
    behind.pop()
    return ahead + behind[::-1]


def links(g: Grid, openings: int) -> list[list[int]]:
    """Cell -> the cells it is open to, in the order up, left, right, down."""
    return [[to for to, side in g.exits[cell][g.around[cell]] if openings >> side & 1] for cell in range(g.cells)]


def shortest_routes(linked: list[list[int]], start: int, farthest: int) -> dict[int, list[int]]:
    """Goal at most `farthest` moves away -> the shortest route; of several, the one of fewest turns, then of smaller cells."""
    distance = {start: 0}
    arrivals: dict[int, dict[int, tuple[int, list[int]]]] = {start: {0: (0, [start])}}
    frontier = [start]
    for _ in range(farthest):
        following: list[int] = []
        for here in frontier:
            for there in linked[here]:
                if there not in distance:
                    distance[there] = distance[here] + 1
                    arrivals[there] = {}
                    following.append(there)
                if distance[there] != distance[here] + 1:
                    continue
                step = there - here
                turns, route = min((turns + (before not in (0, step)), route) for before, (turns, route) in arrivals[here].items())
                arrivals[there][step] = (turns, [*route, there])
        frontier = following
    return {goal: min(by_step.values())[1] for goal, by_step in arrivals.items() if goal != start}


def search_route(g: Grid, draw: Draw, moves: int, turns: int) -> list[int] | None:
    """A route that crosses no cell twice, by depth-first search in random order from random starts; None after ROUTE_STEPS steps."""
    longest = max(g.rows, g.cols) - 1

    def run(cell: int, step: int) -> int:
        row, col = divmod(cell, g.cols)
        return {-g.cols: row, g.cols: g.rows - 1 - row, -1: col, 1: g.cols - 1 - col}[step]

    def onward(here: int, step: int, moves_left: int, turns_left: int) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        for there, _ in g.exits[here][g.around[here] & ~used]:
            new = there - here
            left = turns_left - (step not in (0, new))
            if 0 <= left <= moves_left - 1 <= run(there, new) + left * longest:
                found.insert(draw() * (len(found) + 1) >> 32, (there, new, left))
        return found

    route: list[int] = []
    branches: list[list[tuple[int, int, int]]] = []
    used = 0
    for _ in range(ROUTE_STEPS):
        if not route:
            route = [draw() * g.cells >> 32]
            used = 1 << route[0]
            branches = [onward(route[0], 0, moves, turns)]
        elif branches[-1]:
            cell, step, left = branches[-1].pop()
            used |= 1 << cell
            route.append(cell)
            if len(route) == moves + 1:
                return route
            branches.append(onward(cell, step, moves + 1 - len(route), left))
        else:
            branches.pop()
            used ^= 1 << route.pop()
    return None


def most_moves(rows: int, cols: int, turns: int) -> int:
    """Upper bound on the moves of a route with `turns` turns, reached by spirals: its turns + 1 straight pieces lie alternately on
    rows and columns, so it covers no more cells than the union of that many rows and columns."""
    long, short = (turns + 2) // 2, (turns + 1) // 2
    shares = ((min(long, rows), min(short, cols)), (min(short, rows), min(long, cols)))
    return max(a * cols + b * rows - a * b for a, b in shares) - 1


@lru_cache(maxsize=4096)
def feasible(rows: int, cols: int, moves: int, turns: int, extra: int) -> bool:
    """Whether solutions with these moves and turns can be had, with `extra` walls opened beyond a tree.

    Ruled out by arithmetic, or else tried: of 40 attempts to plant such a solution at least 5 must come off.
    """
    if not 0 <= turns < moves <= most_moves(rows, cols, turns):
        return False
    g, draw, found = grid(rows, cols), words(b"feasible").__next__, 0
    for trial in range(40):
        found += plant(g, draw, moves, turns, extra) is not None
        if found == 5 or (trial == 7 and not found):
            break
    return found == 5


class Request(NamedTuple):
    """What an item must be."""

    rows: int
    cols: int
    split: str
    seed: int
    moves: int
    turns: int
    extra: int
    """Inner walls opened beyond a tree."""


class Item(NamedTuple):
    openings: int
    route: list[int]


def draw_item(request: Request, key: bytes) -> Item | None:
    """The item of `key`, or None if all tries fail."""
    return draw_free(request, key + b"free") or draw_planted(request, key + b"planted")


def draw_free(request: Request, key: bytes) -> Item | None:
    """Draw layouts until one of the right split has wanted pairs of the seed's class; draw one of these.

    Every layout is tried in all its rotations and reflections: they are as likely as the layout itself, and cheaper than another.
    """
    g = grid(request.rows, request.cols)
    by_class = pairs(request.rows, request.cols)
    nearest = request.moves if request.turns < 2 else 2 - request.moves % 2
    for attempt in range(FREE_CELLS // g.cells):
        draw = words(key + attempt.to_bytes(4, "little")).__next__
        tree = carve(g, draw, [draw() * g.cells >> 32])
        sides = tree.sides + some_walls(g, draw, tree.sides, request.extra) if request.extra else tree.sides
        for symmetry in g.symmetries:
            openings = sum(map(symmetry.bits.__getitem__, sides))
            layout = layout_hash(g, openings)
            if split_of(layout) != request.split:
                continue
            near = by_class[(request.seed - layout) % len(by_class)]
            wanted = [pair for apart in range(nearest, request.moves + 1, 2) for pair in near.get(apart, ())]
            routes = loop_routes(g, openings, wanted, request) if request.extra else tree_routes(tree, symmetry, wanted, request)
            if routes:
                return Item(openings, routes[draw() * len(routes) >> 32])
    return None


def draw_planted(request: Request, key: bytes) -> Item | None:
    """Plant a route of the wanted kind in a layout, and move dead ends until the layout belongs to the split and the seed's class."""
    g = grid(request.rows, request.cols)
    classes = seed_classes(g.cells)
    for attempt in range(PLANTED_TRIES):
        draw = words(key + attempt.to_bytes(4, "little")).__next__
        planted = plant(g, draw, request.moves, request.turns, request.extra)
        if not planted:
            continue
        openings, route = planted
        wanted = (request.seed - pair_class(route[0], route[-1])) % classes
        for _ in range(VARIATIONS):
            layout = layout_hash(g, openings)
            if layout % classes == wanted and split_of(layout) == request.split:
                return Item(openings, route)
            openings = move_dead_end(g, draw, openings, route)
    return None


def plant(g: Grid, draw: Draw, moves: int, turns: int, extra: int) -> Item | None:
    """A layout whose solution between two cells has these moves and turns; None if this attempt made none."""
    route = search_route(g, draw, moves, turns)
    if not route:
        return None
    sides = carve(g, draw, route).sides
    if extra:
        sides += some_walls(g, draw, sides, extra)
    openings = openings_of(sides)
    if extra:
        route = shortest_routes(links(g, openings), route[0], moves).get(route[-1], [])
        if len(route) != moves + 1 or turns_of(route) != turns:
            return None
    return Item(openings, route)


def move_dead_end(g: Grid, draw: Draw, openings: int, route: Sequence[int]) -> int:
    """Close the only opening of a cell off the route and open another of its sides: no other route changes. Looks at a few cells."""
    for _ in range(8):
        cell = draw() * g.cells >> 32
        ways = g.exits[cell][g.around[cell]]
        opened = [side for _, side in ways if openings >> side & 1]
        if len(opened) == 1 and cell not in route:
            closed = [side for _, side in ways if side != opened[0]]
            return openings ^ 1 << opened[0] ^ 1 << closed[draw() * len(closed) >> 32]
    return openings


def tree_routes(tree: Tree, symmetry: Symmetry, wanted: Sequence[tuple[int, int]], request: Request) -> list[list[int]]:
    """The routes of the wanted kind in the image of `tree` under `symmetry`."""
    cells, origins, _ = symmetry
    found = (tree_route(tree, origins[start], origins[goal], request.moves) for start, goal in wanted)
    return [[cells[c] for c in route] for route in found if route and len(route) == request.moves + 1 and turns_of(route) == request.turns]


def loop_routes(g: Grid, openings: int, wanted: Sequence[tuple[int, int]], request: Request) -> list[list[int]]:
    linked = links(g, openings)
    goals: dict[int, list[int]] = {}
    for start, goal in wanted:
        goals.setdefault(start, []).append(goal)
    found: list[list[int]] = []
    for start, ends in goals.items():
        by_goal = shortest_routes(linked, start, request.moves)
        routes = (by_goal[goal] for goal in ends if goal in by_goal)
        found += [route for route in routes if len(route) == request.moves + 1 and turns_of(route) == request.turns]
    return found
