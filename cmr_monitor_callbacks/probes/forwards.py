"""Which modules' forwards are sections of a profile, and of which layer."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from torch import nn

from cmr_monitor_callbacks.recording.cells import was_compiled


def layer_forwards(
    model: nn.Module, probes: Iterable[tuple[str, Hashable | None]]
) -> list[tuple[nn.Module, str, Hashable]]:
    """The modules that are layers, each with its component and layer.

    ``forward``: those that hold a probe of a layer, or, around one, the block of the model's list
    of blocks; without such probes the blocks by their number. ``block``: where the layers with a
    probe lie beside the blocks, the blocks.

    Args:
        model: what is watched.
        probes: paths of the probes in it, and their layers.

    >>> model = nn.Sequential(nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]))
    >>> [(component, layer) for _, component, layer in layer_forwards(model, [])]
    [('forward', 0), ('forward', 1)]
    """
    modules = dict(model.named_modules())
    blocks = _blocks(modules)
    layers = [(path, layer) for path, layer in probes if layer is not None]
    if not layers:
        return [(modules[path], "forward", number) for number, path in enumerate(blocks)]
    within: dict[str, set[Hashable]] = {}
    for path, layer in layers:
        for block in blocks:
            if path.startswith(f"{block}."):
                within.setdefault(block, set()).add(layer)
    out: dict[int, tuple[nn.Module, str, Hashable]] = {}
    for path, layer in layers:
        alone = (b for b, some in within.items() if some == {layer} and path.startswith(f"{b}."))
        module = modules[next(alone, _holder(path, modules))]
        if module is not model:
            out.setdefault(id(module), (module, "forward", layer))
    beside = [] if within else enumerate(blocks)
    return [*out.values(), *((modules[path], "block", number) for number, path in beside)]


def _blocks(modules: Mapping[str, nn.Module]) -> list[str]:
    """Paths of the items of the longest list of modules, the outermost of several."""
    longest: list[str] = []
    for path, module in modules.items():
        if isinstance(module, nn.ModuleList) and len(module) > max(1, len(longest)):
            longest = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
    return longest


def _holder(path: str, modules: Mapping[str, nn.Module]) -> str:
    """The innermost module that a path leads through."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:end]) in modules:
            return ".".join(parts[:end])
    return ""


def holders(model: nn.Module, paths: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """The modules in which probes are held, by path; the model itself has the path ''."""
    modules = dict(model.named_modules())
    return [(path, modules[path]) for path in sorted({_holder(p, modules) for p in paths})]


def whole_forwards(model: nn.Module, inner: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules whose forward is that of the model: itself, or what a LightningModule wraps.

    Args:
        model: what is watched.
        inner: its layers; no part of one is meant.
    """
    layers = {id(module) for module in inner}
    out, module = [model], model
    while True:
        own = [child for child in module.children() if any(True for _ in child.parameters())]
        holding = [child for child in own if any(id(part) in layers for part in child.modules())]
        own = holding or own
        is_list = own and isinstance(own[0], (nn.ModuleList, nn.ModuleDict))
        if len(own) != 1 or is_list or id(own[0]) in layers:
            return out
        module = own[0]
        out.append(module)


def within_compiled(model: nn.Module) -> set[int]:
    """Identities of the modules in compiled code: a hook there would have it compiled anew.

    One that is compiled in place, or a wrapper, can be seen from outside and is not meant; one that
    somebody compiled elsewhere is known by its code.
    """
    inside: set[int] = set()
    for module in model.modules():
        in_place = vars(module).get("_compiled_call_impl") is not None
        if in_place or type(module).__name__ == "OptimizedModule":
            inside.update(id(part) for part in module.modules() if part is not module)
        elif was_compiled(type(module).forward):
            inside.update(id(part) for part in module.modules())
    return inside
