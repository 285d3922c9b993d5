"""Recipes of LiteRT Quantizer (once AI Edge Quantizer) as the data of kquant's own, and back.

Its JSON is a list of entries {regex, operation, algorithm_key, op_config}; the last one that fits an operator holds,
whole (source: ai_edge_quantizer 0.10, recipe_manager.py and qtyping.py). What has no counterpart is refused by its key.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from kquant.core.messages import warn
from kquant.recipe.section import sections

# TFLite operation -> pattern for Keras classes; 1-D convolutions are written as 2-D ones.
OPERATIONS = {
    "CONV_2D": "Conv[12]D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv[12]D",
    "CONV_2D_TRANSPOSE": "Conv2DTranspose",
    "FULLY_CONNECTED": "Dense",
    "ADD": "Add",
    "SUB": "Subtract",
    "MUL": "Multiply",
    "MAXIMUM": "Maximum",
    "CONCATENATION": "Concatenate",
    "AVERAGE_POOL_2D": "AveragePooling2D",
    "MAX_POOL_2D": "MaxPooling2D",
    "MEAN": "GlobalAveragePooling[12]D",
}
# (activation_tensor_config given, compute_precision, explicit_dequantize) -> mode
MODES = {
    (True, "INTEGER", False): "static",
    (False, "INTEGER", False): "dynamic",
    (False, "FLOAT", True): "weight-only",
}
IGNORED = ("observer", "unpacked_bits")  # keys that have no place there
MIN_MAX, NO_QUANTIZE, FLOAT_CASTING = "min_max_uniform_quantize", "no_quantize", "float_casting"
GRANULARITY = {"TENSORWISE": False, "CHANNELWISE": True}
# The order there is that of the first use of each regex: this tail makes a repeated one another one.
NOTHING = "(?:)"
# What `write` makes of a layer pattern: one part of a tensor's name, from end to end.
BEFORE, BEHIND, ANY, ONE = "(?:^|[/;])", "(?:$|[/;:])", "[^/;:]*", "[^/;:]"
ENTRY = ("regex", "operation", "algorithm_key", "op_config")
CONFIG = (
    "activation_tensor_config",
    "weight_tensor_config",
    "compute_precision",
    "explicit_dequantize",
    "skip_checks",
    "min_weight_elements",
)
KINDS = {str: "text", int: "a whole number", bool: "true or false", dict: "an object"}
TENSOR = ("num_bits", "symmetric", "granularity", "dtype")


def read(entries: Any, name: str, where: str) -> dict[str, Any]:
    """Data of a `Recipe` from the entries of a LiteRT Quantizer recipe.

    Args:
        entries: what `json.load` gave.
        name: of the recipe.
        where: names the file in errors.

    Raises:
        ValueError: not such a recipe, or a key or value without counterpart, with the reason.

    Example:
        >>> tensor = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
        >>> config = {"weight_tensor_config": tensor, "compute_precision": "INTEGER"}
        >>> entry = {"regex": ".*", "operation": "*", "algorithm_key": "min_max_uniform_quantize", "op_config": config}
        >>> read([entry], "mine", "recipe")["mode"]
        'dynamic'
    """
    if not _is_list(entries) or not all(_is_table(entry) for entry in entries) or not entries:
        raise ValueError(f"{where}: expected LiteRT Quantizer's recipe, a list of {{{', '.join(ENTRY)}}}.")
    checked: list[dict[str, Any]] = entries
    for i, entry in enumerate(checked):
        _check_types(entry, f"{where}: entry {i}")
    settings: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
    for i, entry in _in_effect(checked, where):
        settings.append((entry, *_settings(entry, f"{where}: entry {i}")))
    # entries that keep layers float have none
    modes = {mode for _, mode, _ in settings if mode}
    if len(modes) != 1:
        raise ValueError(
            f"{where}: op_config: {len(modes)} ways to compute ({', '.join(sorted(modes))}); a kquant recipe has one. "
            "Compress with one recipe for each."
        )
    mode = modes.pop()
    first, _, base = settings[0]
    whole = _is_all(first) and first["algorithm_key"] != NO_QUANTIZE
    data: dict[str, Any] = {"name": name, "mode": mode, **(base if whole else {})}
    # what no entry speaks of is float there; here it would be quantized
    rules: list[dict[str, Any]] = [] if whole else [{"layer": "*", "float": True}]
    for entry, _, values in settings[1:] if _is_all(first) else settings:
        again = {"float": False} if any(rule.get("float") for rule in rules) else {}  # after an entry that kept float
        rules.append({**_condition(entry, where), **again, **values})
    if mode != "static" and any(rule.get("float") for rule in rules):
        raise ValueError(
            f"{where}: algorithm_key: '{NO_QUANTIZE}' for single layers beside {mode} ones; kquant leaves layers float "
            "in static recipes only. Quantize all of them, or take a static recipe."
        )
    if mode == "static":
        # what that tool calibrates with; kquant's default is another one
        data["activations"] = {**data.get("activations", {}), "observer": "minmax"}
    return {**data, "rules": rules}


def _is_list(given: Any) -> TypeGuard[list[Any]]:
    return isinstance(given, list)


def _is_table(given: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(given, dict)


def _check_types(entry: dict[str, Any], where: str) -> None:
    """Of what has a counterpart; other keys and values are refused where they are read.

    Raises:
        ValueError: naming the key.
    """
    config: Any = entry.get("op_config") or {}
    table = config if _is_table(config) else {}
    tensors = [(name, table[name]) for name in CONFIG[:2] if table.get(name) is not None]
    given: list[tuple[str, Any, Any]] = [(key, entry[key], str) for key in ENTRY[:3] if key in entry]
    given += [("op_config", config, dict), *((f"op_config.{name}", tensor, dict) for name, tensor in tensors)]
    for name, tensor in tensors:
        if _is_table(tensor):
            given.append((f"op_config.{name}.num_bits", tensor.get("num_bits"), int))
            given += [(f"op_config.{name}.{key}", tensor[key], str) for key in TENSOR[2:] if key in tensor]
    if _is_table(config):
        given += [(f"op_config.{key}", config[key], str) for key in CONFIG[2:3] if key in config]
        given += [(f"op_config.{key}", config[key], bool) for key in CONFIG[3:4] if key in config]
    for key, value, kind in given:
        if not isinstance(value, kind):
            raise ValueError(f"{where}: {key}: expected {KINDS[kind]}. Received: {str(value)[:80]!r}.")


def write(data: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The entries of a LiteRT Quantizer recipe from the data of a `Recipe`, all keys given.

    `unpacked_bits` is left out: what is packed is that tool's own policy. Rules that say nothing of grids are, too.

    Raises:
        ValueError: a key or value without counterpart, with the reason.
    """
    for key in sections():
        if data[key] is not None:
            raise ValueError(
                f"{where}: {key}: LiteRT Quantizer takes weights as they are. Train the model with [{key}] "
                f"first, and give it what kquant.strip makes of that, with this recipe without [{key}]."
            )
    activations, weights, mode = data["activations"], data["weights"], data["mode"]
    if mode == "static" and activations["observer"] != "minmax":
        warn(
            f"{where}: activations.observer = '{activations['observer']}' has no place in LiteRT Quantizer's recipe; "
            "its calibration takes the smallest and the largest value."
        )
    entries = [{"regex": ".*", "operation": "*", **_method(mode, activations, weights, where)}]
    seen: set[str] = set()
    for i, rule in enumerate(data["rules"]):
        place = f"{where}: rule {i}"
        if not (rule["activations"] or rule["weights"]) and rule["float"] is None and rule["skip"] is None:
            continue
        if rule["position"]:
            raise ValueError(f"{place}: position: LiteRT Quantizer knows layers by name and operation. Name the layer.")
        if rule["skip"]:
            raise ValueError(f"{place}: skip: it leaves layers float in the model only. Take float = true.")
        given = {f"{s}.{k}" for s in ("activations", "weights") for k in rule[s] if k not in IGNORED}
        if not rule["float"] and not seen <= given:
            raise ValueError(
                f"{place}: rules add up key by key in kquant and replace each other in LiteRT Quantizer. Repeat "
                f"{', '.join(sorted(seen - given))} in it."
            )
        seen |= given
        method = {"algorithm_key": NO_QUANTIZE}
        if not rule["float"]:
            method = _method(mode, {**activations, **rule["activations"]}, {**weights, **rule["weights"]}, place)
        regex = _regex(rule["layer"])
        # only behind other entries: right behind its own regex an entry stays where it is put
        while any(entry["regex"] == regex for entry in entries) and entries[-1]["regex"] != regex:
            regex += NOTHING
        entries.append({"regex": regex, "operation": _operation(rule["type"], place), **method})
    return entries


def _in_effect(entries: list[dict[str, Any]], where: str) -> list[tuple[int, dict[str, Any]]]:
    """In the order that counts there: by first use of a regex; all operations at once replace what it had before."""
    scopes: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for i, entry in enumerate(entries):
        _only(entry, ENTRY, f"{where}: entry {i}")
        missing = [key for key in ENTRY[:3] if key not in entry]
        if missing:
            raise ValueError(f"{where}: entry {i}: {missing[0]}: it is missing.")
        old = scopes.get(entry["regex"], [])
        operation = entry["operation"]
        # as that tool's recipe manager does: "*" clears what the regex had, an operation replaces itself
        kept = [] if operation == "*" else [(n, e) for n, e in old if e["operation"] != operation]
        scopes[entry["regex"]] = [*kept, (i, entry)]
    return [item for scope in scopes.values() for item in scope]


def _is_all(entry: dict[str, Any]) -> bool:
    return entry["operation"] == "*" and _bare(entry["regex"]) in (".*", "")


def _bare(regex: str) -> str:
    """A regex without the tail that `write` may add."""
    while regex.endswith(NOTHING):
        regex = regex[: -len(NOTHING)]
    return regex


def _settings(entry: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Mode ("" for float) and the keys of a rule."""
    algorithm = entry["algorithm_key"]
    config: dict[str, Any] = entry.get("op_config") or {}
    if algorithm == NO_QUANTIZE:
        return "", {"float": True}
    if algorithm not in (MIN_MAX, FLOAT_CASTING):
        raise ValueError(
            f"{where}: algorithm_key: '{algorithm}' has no counterpart; kquant takes {MIN_MAX}, {FLOAT_CASTING} and "
            f"{NO_QUANTIZE}."
            + (" It corrects by GPTQ itself: take the first, and call kquant.gptq." if algorithm == "GPTQ" else "")
        )
    _only(config, CONFIG, f"{where}: op_config")
    # false and 0 say nothing: that tool writes all of its keys
    if config.get("skip_checks"):
        raise ValueError(f"{where}: op_config.skip_checks: kquant checks every layer against its target. Take it out.")
    if config.get("min_weight_elements"):
        raise ValueError(f"{where}: op_config.min_weight_elements: kquant has no such limit. Name the small layers.")
    weights, activations = config.get("weight_tensor_config"), config.get("activation_tensor_config")
    if weights is None:
        raise ValueError(f"{where}: op_config.weight_tensor_config: it is missing, and kquant's files have weights.")
    way = (activations is not None, config.get("compute_precision", "FLOAT"), config.get("explicit_dequantize", False))
    if way not in MODES:
        raise ValueError(
            f"{where}: op_config.compute_precision: {way[1]} with explicit_dequantize={way[2]} and "
            f"{'' if way[0] else 'no '}activation_tensor_config is none of {', '.join(MODES.values())}."
        )
    values = {"weights": _weights(weights, algorithm, f"{where}: op_config.weight_tensor_config")}
    if activations is not None:
        values["activations"] = _activations(activations, f"{where}: op_config.activation_tensor_config")
    return MODES[way], values


def _weights(tensor: dict[str, Any], algorithm: str, where: str) -> dict[str, Any]:
    _only(tensor, TENSOR, where)
    dtype, granularity = tensor.get("dtype", "INT"), tensor.get("granularity", "TENSORWISE")
    if algorithm == FLOAT_CASTING:
        if (dtype, tensor["num_bits"]) != ("FLOAT", 16):
            raise ValueError(f"{where}.dtype: {FLOAT_CASTING} means FLOAT of 16 bits. Received: {dtype}.")
        return {"dtype": "float16"}
    if dtype != "INT" or not tensor.get("symmetric", True):
        raise ValueError(f"{where}: kquant's weights are symmetric INT, as the kernels take them. Received: {tensor}.")
    if granularity not in GRANULARITY:
        raise ValueError(f"{where}.granularity: {granularity} has no counterpart; take CHANNELWISE or TENSORWISE.")
    return {"bits": tensor["num_bits"], "per_axis": GRANULARITY[granularity]}


def _activations(tensor: dict[str, Any], where: str) -> dict[str, Any]:
    _only(tensor, TENSOR, where)
    if tensor.get("dtype", "INT") != "INT":
        raise ValueError(
            f"{where}.dtype: {tensor['dtype']}; kquant computes in int8 and int16. For uint8 at the edges take "
            "kquant.export(..., io='uint8')."
        )
    if tensor.get("granularity", "TENSORWISE") != "TENSORWISE":
        raise ValueError(f"{where}.granularity: activations have one scale, TENSORWISE.")
    return {"bits": tensor["num_bits"], "symmetric": tensor.get("symmetric", True)}


def _only(given: Any, known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{where}.{key}: it has no counterpart. Known here: {', '.join(known)}.")


def _condition(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """`layer` and `type` of a rule."""
    operation = entry["operation"]
    condition: dict[str, Any] = {}
    if operation != "*":
        if operation not in OPERATIONS:
            raise ValueError(
                f"{where}: operation: {operation} belongs to no single Keras class; name the layers by regex. Known "
                f"here: {', '.join(OPERATIONS)}."
            )
        condition["type"] = OPERATIONS[operation]
    regex = _bare(entry["regex"])
    # a rule needs a condition, if only `*`
    if regex not in (".*", "") or not condition:
        condition["layer"] = _pattern(regex, where)
    return condition


def _pattern(regex: str, where: str) -> str:
    """A layer pattern for a regex of plain text, `.` and `.*`; it is searched for in names, so ends stay open."""
    if regex.startswith(BEFORE) and regex.endswith(BEHIND):
        # what `write` has made, turned back: of other regexes only some are patterns
        body = regex[len(BEFORE) : -len(BEHIND)].replace(ANY, "*").replace(ONE, "?")
        return body.replace("\\", "")
    # `re.search` finds it anywhere in a name
    body, ends = regex, ["*", "*"]
    if body.startswith("^"):
        body, ends[0] = body[1:], ""
    if body.endswith("$"):
        body, ends[1] = body[:-1], ""
    plain = re.fullmatch(r"(?:[\w\-/;: ]|\\[.\-/]|\.\*|\.)*", body)
    if plain is None:
        raise ValueError(
            f"{where}: regex: {regex!r} is more than names, '.' and '.*', which kquant's patterns can say. Split it "
            "into several entries."
        )
    text = re.sub(r"\\(.)|\.\*|\.", lambda m: m[1] or ("*" if m[0] == ".*" else "?"), body)
    return re.sub(r"\*+", "*", f"{ends[0]}{text}{ends[1]}")


def _regex(layer: str | None) -> str:
    if layer is None:
        return ".*"
    parts = {"*": ANY, "?": ONE}
    return BEFORE + "".join(parts.get(c, re.escape(c)) for c in layer) + BEHIND


def _operation(kind: str | None, where: str) -> str:
    if kind is None:
        return "*"
    for operation, pattern in OPERATIONS.items():
        if kind in (pattern, pattern.replace("[12]", "2"), pattern.replace("[12]", "1")):
            return operation
    raise ValueError(f"{where}: type: {kind} is no single TFLite operation. Name the layers instead.")


def _method(mode: str, activations: dict[str, Any], weights: dict[str, Any], where: str) -> dict[str, Any]:
    """`algorithm_key` and `op_config` of an entry."""
    for section, values in (("activations", activations), ("weights", weights)):
        if values.get("kind", "uniform") != "uniform":
            raise ValueError(f"{where}: {section}.kind: LiteRT Quantizer has uniform grids only.")
    if not activations.get("signed", True):
        raise ValueError(f"{where}: activations.signed: LiteRT Quantizer's activations are signed.")
    half = weights.get("dtype", "int") == "float16"
    if half and mode != "weight-only":
        raise ValueError(f"{where}: weights.dtype: LiteRT Quantizer casts weights to float16 in weight-only recipes.")
    bits, per_axis = (16, False) if half else (weights["bits"], weights["per_axis"])
    given, precision, explicit = next(way for way, name in MODES.items() if name == mode)
    # 16-bit kernels take zero point 0 only
    wide = activations["bits"] > 8
    config: dict[str, Any] = {
        "weight_tensor_config": _tensor(bits, True, per_axis, "FLOAT" if half else "INT"),
        "compute_precision": precision,
        "explicit_dequantize": explicit,
        "skip_checks": False,
        "min_weight_elements": 0,
    }
    if given:
        symmetric = bool(activations["symmetric"] or wide)
        config = {"activation_tensor_config": _tensor(activations["bits"], symmetric, False, "INT"), **config}
    return {"algorithm_key": FLOAT_CASTING if half else MIN_MAX, "op_config": config}


def _tensor(bits: int, symmetric: bool, per_axis: bool, dtype: str) -> dict[str, Any]:
    granularity = "CHANNELWISE" if per_axis else "TENSORWISE"
    return {"num_bits": bits, "symmetric": symmetric, "granularity": granularity, "dtype": dtype}
