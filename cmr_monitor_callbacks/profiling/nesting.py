"""What lies within what: spans of a thread as a tree, and the points within them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cmr_monitor_callbacks.profiling.trace import Span, Thread

P = TypeVar("P")


@dataclass(eq=False)
class Node:
    """A span among others of its thread.

    Attributes:
        span: the span.
        parent: the innermost span around it; None: there is none.
        inner: seconds of those directly within it.
        outermost: whether none of the same name is around it.
    """

    span: Span
    parent: Node | None = None
    inner: float = 0.0
    outermost: bool = True

    @property
    def self_seconds(self) -> float:
        """Seconds outside of what lies within it; at least 0, for clocks round."""
        return max(0.0, self.span.seconds - self.inner)

    def around(self) -> Iterator[Node]:
        """This one and those around it, the innermost first."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


Forest = dict[Thread, list[Node]]
"""Nodes of each thread, by their start."""


def nest(spans: Iterable[Span]) -> Forest:
    """Spans as trees, one forest for each thread.

    >>> outer, inner = Span("a", 0.0, 5.0, (1, 1)), Span("b", 1.0, 2.0, (1, 1))
    >>> [(node.span.name, node.self_seconds) for node in nest([inner, outer])[1, 1]]
    [('a', 3.0), ('b', 2.0)]
    """
    threads: dict[Thread, list[Span]] = defaultdict(list)
    for span in spans:
        threads[span.thread].append(span)
    return {thread: _nest_one(found) for thread, found in threads.items()}


def _nest_one(spans: list[Span]) -> list[Node]:
    nodes: list[Node] = []
    stack: list[Node] = []
    for span in sorted(spans, key=lambda item: (item.start, -item.seconds)):
        while stack and stack[-1].span.end <= span.start:
            stack.pop()
        node = Node(span, stack[-1] if stack else None)
        if stack:
            stack[-1].inner += span.seconds
            node.outermost = all(other.span.name != span.name for other in stack)
        stack.append(node)
        nodes.append(node)
    return nodes


def nodes_of(forest: Forest) -> Iterator[Node]:
    """Every node of every thread."""
    for nodes in forest.values():
        yield from nodes


def locate(
    forest: Forest, points: Sequence[P], where: Callable[[P], tuple[Thread, float]]
) -> Iterator[tuple[P, Node | None]]:
    """Each point with the innermost span that it lies in, on its own thread.

    Args:
        forest: the spans.
        points: what is looked for.
        where: gives a point's thread and time.
    """
    threads: dict[Thread, list[P]] = defaultdict(list)
    for point in points:
        threads[where(point)[0]].append(point)
    for thread, some in threads.items():
        nodes, at = forest.get(thread, []), 0
        inside: Node | None = None
        for point in sorted(some, key=lambda item: where(item)[1]):
            time = where(point)[1]
            while at < len(nodes) and nodes[at].span.start <= time:
                inside, at = nodes[at], at + 1
            while inside is not None and inside.span.end < time:
                inside = inside.parent
            yield point, inside
