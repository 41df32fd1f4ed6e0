"""Layer ids: what may name a layer, how it is shown, and the column it has in packed arrays."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache

from cmr_monitor_callbacks.errors import LayerError

LayerId = int | str

_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-]+")


def layer_id(layer: Hashable) -> LayerId:
    """The id under which a layer is kept: ints and strings as they are, others by their ``str``.

    >>> layer_id(4), layer_id("encoder.2"), layer_id((1, 2))
    (4, 'encoder.2', '(1, 2)')
    """
    if isinstance(layer, str):
        return layer
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        return str(layer)
    return int(layer.__index__())


def layer_tag(layer: LayerId) -> str:
    """The last segment of a layer's tag: integers padded to two digits, others made safe.

    >>> layer_tag(4), layer_tag(112), layer_tag("encoder/block 2")
    ('layer_04', 'layer_112', 'layer_encoder_block_2')
    """
    text = f"{layer:02d}" if isinstance(layer, int) else _UNSAFE.sub("_", layer)
    return f"layer_{text}"


def layer_order(layer: LayerId) -> tuple[int, int, str]:
    """Sort key: integers by value, then strings by text."""
    return (0, layer, "") if isinstance(layer, int) else (1, 0, layer)


def matches(pattern: str, text: object) -> bool:
    """Whether ``text`` meets a glob; ``|`` separates alternatives.

    A text meets itself, whatever signs are in it.

    >>> matches("4|6|1*", 12), matches("4|6|1*", 5), matches("blocks[0]", "blocks[0]")
    (True, False, True)
    """
    return _meets(pattern, str(text))


@lru_cache(maxsize=4096)  # labels of open alerts meet the same globs in every window
def _meets(pattern: str, shown: str) -> bool:
    return shown == pattern or any(
        shown == part.strip() or fnmatchcase(shown, part.strip()) for part in pattern.split("|")
    )


class Layout:
    """The columns of packed arrays: column 0 is the model as a whole, then one for each layer.

    Columns are given in order of arrival and never move.

    Raises:
        LayerError: a new id would be shown under the same tag as one that is there.

    >>> layout = Layout([6])
    >>> layout.column(None), layout.column(6), layout.column(4)
    (0, 1, 2)
    >>> layout.layers, layout.width
    ((6, 4), 3)
    """

    def __init__(self, layers: Iterable[Hashable] = ()) -> None:
        self._columns: dict[LayerId | None, int] = {None: 0}
        self._tags: dict[str, LayerId] = {}
        for layer in layers:
            self.column(layer)

    def column(self, layer: Hashable | None) -> int:
        """The column of a layer, made if it is new; 0 for None."""
        if layer is None:
            return 0
        key = layer_id(layer)
        found = self._columns.get(key)
        if found is not None:
            return found
        tag = layer_tag(key)
        other = self._tags.get(tag)
        if other is not None:
            raise LayerError(
                f"layers {other!r} and {key!r} would both be shown as {tag!r}; rename one of them"
            )
        self._tags[tag] = key
        self._columns[key] = len(self._columns)
        return self._columns[key]

    def __iter__(self) -> Iterator[LayerId]:
        return iter(self.layers)

    @property
    def layers(self) -> tuple[LayerId, ...]:
        """Layers by column, the whole model left out."""
        return tuple(layer for layer in self._columns if layer is not None)

    @property
    def width(self) -> int:
        """Number of columns: layers and one."""
        return len(self._columns)
