"""Unfold a Keras model into calls of known layers and operations: nested, subclassed, or made of custom layers.

A `call` that has no rule runs on symbolic tensors, and what Keras records is unfolded in turn. Variables it assigns,
attributes it writes and nodes that Keras records on shared layers meanwhile are taken back: the model stays as it was.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import KerasTensor as Tensor
from keras import tree

from kquant.core.messages import warn
from kquant.core.origin import origins
from kquant.graph.effects import Effects, effects, refusal_of_draws
from kquant.graph.keras_private import (
    KerasNode,
    called_from,
    calls_forgotten,
    computes_recorded,
    every_layer,
    functional_of,
    layers_inside,
    own_weights,
    recorded,
    recorded_calls,
    structures,
    to_snake_case,
)
from kquant.graph.own_specs import specs_of_calls
from kquant.graph.recording import (
    FEW,
    MORE,
    Recording,
    keep_training,
    lost,
    open_batch,
    symbolic_on_either_side,
)
from kquant.graph.step_mask import (
    combined,
    compared_with,
    is_handed_on,
    makes_mask,
    mask_made_by,
    reads_mask,
    step_mask_of,
)
from kquant.graph.stored import stored_layer
from kquant.graph.unfollowed import refusal, returned
from kquant.graph.watched import Watched, attributes_kept


@dataclass(frozen=True, eq=False)
class Node:
    """One call of one Keras layer or operation.

    Attributes:
        op: the layer or `keras.Operation`.
        args, kwargs: what it was called with; tensors are `Tensor`s of this graph.
        outputs: the tensors it made.
        owner: the layer whose `call` it comes from, where that was unfolded: the innermost, but none inside Keras' own.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    owner: Any = None

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.op.name

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The graph's tensors among the arguments, in order."""
        return tuple(x for x in tree.flatten((self.args, self.kwargs)) if isinstance(x, Tensor))


def unfold(
    model: keras.Model | keras.Function,
    inputs: Any,
    known: Callable[[Any], bool],
    masks: bool = False,
    whole: Callable[[Any], bool] | None = None,
) -> tuple[list[Node], Any, list[Tensor | None]]:
    """The calls that `model(inputs)` consists of at inference, its outputs, and the masks of these, flattened.

    Args:
        model: a built Keras 3 model, or the calls of one; it is not changed.
        inputs: symbolic tensors in the model's structure.
        known: tells which layers and operations stay whole.
        masks: leave masks to Keras, because the graph becomes a Keras model of the same layers. Otherwise what reads a
            mask is given it, as a tensor of the graph (`StepMask`).
        whole: which of those that act otherwise in training stay whole.

    Raises:
        ValueError: a `call` cannot be followed on symbolic tensors, or a batch norm is told to use the statistics of
            the batch; names the layer.
    """
    # None where `call` knows no flag: `predict` passes none then, and layers inside fall back to their own defaults.
    is_layer = isinstance(model, keras.layers.Layer)
    training = None if is_layer and "training" not in model.call_signature_parameters else False
    with contextlib.ExitStack() as stack:
        touching = functools.cache(lambda: stack.enter_context(_untouched(model)))
        unfolding = _Unfolding(known, touching, masks, whole, training)
        outputs = unfolding.visit(model, (inputs,), {})
    kept = [node for node in unfolding.nodes if known(node.op) or id(node.op) in unfolding.kept]
    if len(kept) == len(unfolding.nodes):  # otherwise the model is about to be refused
        for message in unfolding.said:
            warn(message)
    return unfolding.nodes, outputs, [unfolding.masked.get(id(t)) for t in tree.flatten(outputs)]


def substitute(structure: Any, new: Mapping[int, Any]) -> Any:
    """The structure with other tensors in place of those whose id is in `new`."""
    return tree.map_structure(lambda x: new.get(id(x), x) if isinstance(x, Tensor) else x, structure)


@contextlib.contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Take back every node that unfolding records on the layers of `model`."""
    layers = layers_inside([model] if isinstance(model, keras.layers.Layer) else model.operations)
    with calls_forgotten(layers), attributes_kept(layers):
        yield


@dataclass
class _Unfolding:
    """The calls found so far, the layer that is being unfolded, and what is to be said of what it loses.

    `training` is the last value that a layer was called with, which Keras hands on to the next one in `predict`.
    """

    known: Callable[[Any], bool]
    touching: Callable[[], None]  # before code of a layer runs, which may leave something on the model
    masks: bool = False
    whole: Callable[[Any], bool] | None = None
    training: bool | None = False
    nodes: list[Node] = field(default_factory=list)
    owner: Any = None
    said: list[str] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    masked: dict[int, Tensor] = field(default_factory=dict)  # id(tensor) -> its mask
    compared: dict[int, tuple[Tensor, float]] = field(default_factory=dict)  # id(x != value) -> x, value
    lost: dict[int, str] = field(default_factory=dict)  # id(mask) -> why it is not known

    def visit(self, op: Any, args: tuple, kwargs: dict, like: list[Tensor] | None = None) -> Any:
        """Append the calls that `op(*args, **kwargs)` consists of; return its outputs, which are `like` known ones."""
        if isinstance(op, keras.layers.Layer):
            self.training = _training(op, kwargs, self.training)
        if not self.masks and (outputs := self.spelled_out(op, args)) is not None:
            return outputs
        heeds = isinstance(op, keras.layers.Layer) and not isinstance(op, keras.Model) and not self.masks
        # With the masks only what reads them is called; `hand_on` gets the arguments as they came, as a mask that the
        # user gave counts before those of the inputs.
        outputs = self.open(op, args, self.with_masks(op, args, kwargs) if heeds else kwargs, like)
        if heeds:
            self.hand_on(op, args, kwargs, tree.flatten(outputs))
        return outputs

    def spelled_out(self, op: Any, args: tuple) -> Any:
        """The mask that `any(x != value, axis=-1)` or `indices != 0` computes, as Masking and Embedding write it."""
        made = step_mask_of(op, args, self.compared)
        if made is None:
            return None
        mask, source = made
        outputs = Tensor(mask.compute_output_spec(source).shape, "bool")
        self.nodes.append(Node(mask, (source,), {}, (outputs,), self.owner))
        return outputs

    def with_masks(self, op: Any, args: tuple, kwargs: dict) -> dict:
        """The arguments with the masks of its inputs, where the layer reads them: as `Layer.__call__` adds them."""
        if not self.masked or not reads_mask(op):
            return kwargs
        # Keras' rule (`Layer.__call__`, step 6): of one argument with tensors the mask is `mask`, of several
        # `<argument>_mask`.
        given = inspect.signature(op.call).bind(*args, **kwargs).arguments
        read = {k: v for k, v in given.items() if any(isinstance(t, Tensor) for t in tree.flatten(v))}
        names = inspect.signature(op.call).parameters
        for argument, value in read.items():
            name = "mask" if len(read) == 1 else f"{argument}_mask"
            masks = self.masks_of(value)
            if name in names and given.get(name) is None and any(m is not None for m in tree.flatten(masks)):
                # Only now, and not where `compute_mask` failed: a mask that nobody reads is no reason to refuse a
                # model.
                lost = [self.lost[id(m)] for m in tree.flatten(masks) if id(m) in self.lost]
                if lost:
                    raise ValueError(lost[0])
                kwargs = {**kwargs, name: masks}
        return kwargs

    def masks_of(self, structure: Any) -> Any:
        """The masks of tensors, None for those without."""
        return tree.map_structure(lambda t: self.masked.get(id(t)), structure)

    def hand_on(self, op: Any, args: tuple, kwargs: dict, outputs: list[Tensor]) -> None:
        """Note the masks of a layer's outputs."""
        # what is opened has handed its masks on inside; a layer without masking ends them, as in Keras
        if all(id(t) in self.masked for t in outputs) or not op.supports_masking:
            return
        first = args[0] if args else next(iter(kwargs.values()))
        if makes_mask(op):
            mask = mask_made_by(op)
            marks = Tensor(mask.compute_output_spec(first).shape, "bool")  # as users' code knows masks
            self.nodes.append(Node(mask, (first,), {}, (marks,), self.owner))
            self.masked[id(outputs[0])] = marks
            return
        # As in Keras, the mask that was given, else that of the first argument.
        before = kwargs["mask"] if kwargs.get("mask") is not None else self.masks_of(first)
        if any(m is not None for m in tree.flatten(before)):
            after = tree.flatten(self.mask_after(op, first, before))
            self.masked.update({id(t): m for t, m in zip(outputs, after, strict=False) if m is not None})

    def mask_after(self, op: Any, inputs: Any, masks: Any) -> Any:
        """The masks of a layer's outputs, as its `compute_mask` says; what that computes is unfolded."""
        self.touching()
        try:
            after = combined(op, inputs, masks)
        except Exception as error:  # whatever the user's code raises on symbolic tensors
            lost = Tensor((None,), "bool")
            self.lost[id(lost)] = (
                f"{op.name} ({type(op).__name__}): its `compute_mask` cannot be followed on symbolic tensors, and a "
                f"layer behind it reads the mask. Write it with `keras.ops`. It said: {type(error).__name__}: {error}"
            )
            return lost
        # `compute_mask` ran on the graph's own tensors, so that what it recorded ends at them.
        known = {id(t): t for t in tree.flatten((inputs, masks)) if t is not None}
        made = [m for m in tree.flatten(after) if m is not None]
        for node in _recorded(made, set(known)):
            if not isinstance(node.operation, keras.layers.Layer):
                node.operation.name = f"{op.name}_mask_{to_snake_case(type(node.operation).__name__)}"
            self.again(node, known)
        return tree.map_structure(lambda m: None if m is None else known[id(m)], after)

    def open(self, op: Any, args: tuple, kwargs: dict, like: list[Tensor] | None) -> Any:
        """`visit`, its masks among the arguments."""
        if self.known(op):
            return self.keep(op, args, kwargs, like)
        if isinstance(op, keras.Sequential):
            op = functional_of(op)
        # Before layers in general, since a Functional model is one: a subclass with a `call` of its own is followed by
        # that.
        if computes_recorded(op):
            return self.function(op, args)
        if isinstance(op, keras.layers.Layer):
            return self.call(op, args, kwargs)
        return self.keep(op, args, kwargs)  # an operation without a rule: refused later by name

    def keep(self, op: Any, args: tuple, kwargs: dict, like: list[Tensor] | None = None) -> Any:
        """One call that stays whole."""
        if self.training:
            _refuse_training(op, self.owner)
        # what was recorded says what comes out, and no code of the layer has to
        outputs: Any = self.fresh(op, args, kwargs) if like is None else [Tensor(t.shape, t.dtype) for t in like]
        outputs = outputs[0] if like is not None and len(outputs) == 1 else outputs
        if (compared := compared_with(op, args)) is not None:
            self.compared[id(outputs)] = compared
        self.nodes.append(Node(op, args, kwargs, tuple(tree.flatten(outputs)), self.owner))
        return outputs

    def fresh(self, op: Any, args: tuple, kwargs: dict) -> Any:
        """New tensors of the shapes that `op` makes of its arguments."""
        self.touching()
        # Neither changes a shape, and most layers' `compute_output_spec` does not take them.
        training = {k: v for k, v in kwargs.items() if k not in ("training", "mask")}
        # Not by a call, which would leave a node on the user's layer.
        spec = op.compute_output_spec(*args, **training)
        return tree.map_structure(lambda t: Tensor(t.shape, t.dtype), spec)

    def function(self, op: Any, args: tuple) -> Any:
        """The calls that a Functional model recorded when it was made."""
        new: dict[int, Any] = {}
        # A Functional model recorded its calls when it was made; its `call` only replays them, so they are read off.
        given, training = args[0], self.training
        inputs, outputs = structures(op)
        if isinstance(given, dict) and not isinstance(inputs, dict):
            given = [given[t.name] for t in op.inputs]  # Keras accepts a dict by input names too
        for old, fresh in zip(op.inputs, tree.flatten(given), strict=True):
            new[id(old)] = fresh
        for node in recorded_calls(op):
            # Like Keras (`Function._run_through_graph`), which skips calls whose inputs nobody computes.
            if not node.is_input and all(id(t) in new for t in node.input_tensors):
                alike = all((t.shape, t.dtype) == (new[id(t)].shape, new[id(t)].dtype) for t in node.input_tensors)
                self.again(node, new, training, list(node.outputs) if alike else None)
        return tree.map_structure(lambda t: new[id(t)], outputs)

    def call(self, op: Any, args: tuple, kwargs: dict) -> Any:
        """Run `op.call` on symbolic tensors and unfold the calls it recorded."""
        made, does = self.record(op, args, kwargs)
        # prune and cluster keep a layer with a training branch as it is: its weights are masked where they stand
        if does.in_training and self.whole is not None and self.whole(op):
            self.kept.add(id(op))
            return self.keep(op, args, kwargs)
        self.said += does.sentences()
        keep_training(made, op.trainable_variables)
        self.said += _frozen(op, made)
        # the owner is the outermost layer of the user's: messages, recipes' rules and protected layers go by its name
        outer, self.owner = self.owner, op if self.owner is None or not _is_builtin(self.owner) else self.owner
        # Before the calls that read them.
        self.store(op, made)
        for node in made.nodes:
            if not isinstance(node.operation, keras.layers.Layer):
                # made while `call` ran, so it is ours to name: after the layer, instead of Keras' running number
                node.operation.name = f"{op.name}_{to_snake_case(type(node.operation).__name__)}"
            self.again(node, made.back)
        self.owner = outer
        return tree.map_structure(lambda t: made.back[id(t)], made.outputs)

    def store(self, op: Any, made: Recording) -> None:
        """Give the constants that `call` made tensors of the graph; what these are called with does not matter."""
        for i, (placeholder, value, repeated, variable) in enumerate(made.stored):
            name = f"{op.name}_{f'stored{i or str()}' if variable is None else variable.name}"
            layer = stored_layer(value, name, variable is not None, repeated)
            made.back[id(placeholder)] = self.keep(layer, (next(iter(made.back.values())),), {})

    def record(self, op: Any, args: tuple, kwargs: dict) -> tuple[Recording, Effects]:
        """What `op.call` does; where it asks for the number of samples, by what differs with that. And what beside."""
        where = f"{op.name} ({type(op).__name__})"
        users = not _is_builtin(op) or isinstance(op, keras.layers.Activation)  # that one calls the user's function
        # First without a number of samples. Code that needs one (ops.shape(x)[0], an arange over the batch) is run with
        # two different ones, and what differs between the two recordings is what follows the number of samples.
        batch, more, watched = None, None, Watched()
        try:
            made = self.run(op, args, kwargs, None, self.training, watched)
        except Exception as error:  # whatever the user's code raises on symbolic tensors
            batch, watched = FEW, Watched()
            try:
                # A watch of its own: the run that failed may have stopped before it drew or assigned.
                made = self.run(op, args, kwargs, FEW, self.training, watched)
                more = self.run(op, args, kwargs, MORE, self.training, Watched())
            except Exception as second:
                if watched.draws:
                    raise ValueError(refusal_of_draws(where)) from error
                # The second error: the first says only that there is no number of samples.
                raise refusal(op, second, not users) from error
        if made.outputs is None or more is None and not _all_tensors(made.outputs):
            raise returned(op, made.outputs)

        def follow(training: bool | None, watched: Watched) -> Recording:
            return self.run(op, args, kwargs, batch, training, watched)

        does = effects(op, made, watched, follow, self.training) if users else Effects(where)
        given = made.outputs  # before a row for every sample becomes a tensor of the graph
        made = made if more is None else open_batch(where, made, more)
        if not _all_tensors(made.outputs):
            raise returned(op, given)
        return made, does

    def run(
        self, op: Any, args: tuple, kwargs: dict, batch: int | None, training: bool | None, watched: Watched
    ) -> Recording:
        """`op.call` on symbolic tensors of so many samples."""
        self.touching()
        starts = [x for x in tree.flatten((args, kwargs)) if isinstance(x, Tensor)]
        # Fresh tensors, so that the recording ends at them: Keras notes on each tensor which call made it, and what
        # came before belongs to the outer model.
        ours = {id(t): Tensor((t.shape[0] or batch, *t.shape[1:]) if t.shape else (), t.dtype) for t in starts}
        call_args, call_kwargs = substitute((args, kwargs), ours)
        # Set below: what Keras would resolve it to here, or True where that way is looked at.
        call_kwargs.pop("training", None)
        if "training" in op.call_signature_parameters and training is not None:
            call_kwargs["training"] = training
        with called_from(op, training), symbolic_on_either_side(), specs_of_calls(op), watched.over(op):
            outputs = op.call(*call_args, **call_kwargs)
        back = {id(ours[id(t)]): t for t in starts}
        return Recording(outputs, _recorded(tree.flatten(outputs), set(back)), back, list(ours.values()))

    def again(self, node: KerasNode, new: dict[int, Any], training: bool | None = None, like: Any = None) -> None:
        """A recorded call, on our tensors; a Functional model puts its own `training` over what was recorded."""
        filled: Any = node.arguments.fill_in(new)
        args, kwargs = filled
        if not self.masks:
            kwargs = {k: None if is_handed_on(node, k) else v for k, v in kwargs.items()}
        if training is not None:
            self.training = training
            kwargs = {k: training if k == "training" else v for k, v in kwargs.items()}
        outputs = self.visit(node.operation, tuple(args), dict(kwargs), like)
        for old, t in zip(node.outputs, tree.flatten(outputs), strict=True):
            new[id(old)] = t


def _all_tensors(outputs: Any) -> bool:
    return all(isinstance(t, Tensor) for t in tree.flatten(outputs))


def _training(op: Any, kwargs: dict, inherited: bool | None) -> bool | None:
    """What Keras resolves `training` to: as given, else as the layer around was called, else the default."""
    # The order of `Layer._resolve_and_populate_arg`: given, inherited, default. What a call resolved to goes on to
    # those that follow it in the same `call`, and not only to those inside.
    if "training" in kwargs:
        value = kwargs["training"]
    elif inherited is not None or "training" not in op.call_signature_parameters:
        return inherited
    else:
        value = inspect.signature(op.call).parameters["training"].default
    return bool(value) if isinstance(value, bool | int) else None


def _refuse_training(op: Any, owner: Any) -> None:
    """A layer that draws, or a batch norm that uses the statistics of the batch, in inference too."""
    inside = every_layer(op) if isinstance(op, keras.layers.Layer) else []
    random = next((x for x in inside if _is_builtin(x) and draws_in_training(x)), None)
    if random is not None:
        where = "" if owner is None else f" inside {owner.name} ({type(owner).__name__})"
        raise ValueError(
            f"{random.name} ({type(random).__name__}): it runs{where} with training=True in inference too and draws "
            "random numbers, so two calls give two results; a file would hold one draw for good. Call it without "
            "`training` (layers called after one with training=True inherit it): then it acts in training only. "
            "To average over draws, take a model for each, or draw outside and give the mask as one more input."
        )
    norm = next((x for x in inside if isinstance(x, keras.layers.BatchNormalization) and x.trainable), None)
    if norm is not None:
        where = "" if owner is None else f" inside {owner.name} ({type(owner).__name__})"
        raise ValueError(
            f"{norm.name} (BatchNormalization): it runs{where} with training=True in inference too, by the mean and "
            "variance of each batch, which a file for one sample cannot have. Call it without `training` (layers "
            "called after one with training=True inherit it), or take a GroupNormalization."
        )


def draws_in_training(layer: Any) -> bool:
    """True for a layer of Keras' own that holds a seed and a rate to draw at (a cell has a seed in any case).

    Args:
        layer: of Keras' own.

    Example:
        >>> [draws_in_training(layer) for layer in (keras.layers.Dropout(0.5), keras.layers.LSTMCell(4))]
        [True, False]
    """
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    given = [rate for rate in rates if isinstance(rate, int | float)]
    seeded = any(isinstance(held, keras.random.SeedGenerator) for held in vars(layer).values())
    return seeded and (not given or any(given))


def lost_draws(old: Iterable[Any], new: Iterable[keras.layers.Layer]) -> list[str]:
    """Layers that draw in training, of which nothing among the new ones does; by name and class.

    Args:
        old: layers and operations of a graph.
        new: all layers of the model that was made of it.
    """
    random = [layer for layer in new if draws_in_training(layer)]
    kept = {name for layer in random for name in (layer.name, *(n for n, _ in origins(layer)))}
    lost = []
    for op in old:
        inside = every_layer(op) if isinstance(op, keras.layers.Layer) else []
        if any(draws_in_training(layer) for layer in inside) and not kept & {layer.name for layer in inside}:
            lost.append(f"{op.name} ({type(op).__name__})")
    return lost


def _is_builtin(op: Any) -> bool:
    """One of Keras' own layers, whose inside is none of the user's business."""
    return type(op).__module__.startswith("keras.") and not isinstance(op, keras.Model | keras.layers.Lambda)


def _frozen(op: Any, made: Recording) -> list[str]:
    """Variables that `call` turned into numbers before they met a tensor keep their values, but cannot train."""
    names = lost(made, (v for v in own_weights(op) if v.trainable))
    if not names:
        return []
    return [
        f"{op.name} ({type(op).__name__}): {', '.join(names)} is computed with before it meets a tensor (or not at "
        "all), so it keeps its value in the quantized model and does not train there."
    ]


def _recorded(outputs: list[Tensor], starts: set[int]) -> list[KerasNode]:
    """The recorded calls between the tensors `starts` and `outputs`, in order."""
    ordered: list[KerasNode] = []
    seen: set[int] = set()
    # By a stack of its own: a deep model has more calls in a row than Python has levels of recursion. A tensor comes up
    # twice, the second time behind all that it was made of; so a call is listed behind those that it reads.
    stack: list[tuple[Tensor, bool]] = [(t, False) for t in reversed(outputs)]
    while stack:
        t, done = stack.pop()
        node = None if id(t) in starts else recorded(t)
        if node is None:
            continue
        if done:
            if id(node) not in seen:
                seen.add(id(node))
                ordered.append(node)
        elif id(node) not in seen:
            stack.append((t, True))
            stack.extend((parent, False) for parent in reversed(node.input_tensors))
    return ordered
