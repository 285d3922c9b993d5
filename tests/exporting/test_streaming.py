"""Streaming files: code for code the file over whole clips, on both interpreters, and refusals by layer name."""

from functools import cache

import keras
import numpy as np
import pytest

import kquant
from kquant.exporting.streams import check_stream
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.lowering import lower
from kquant.tflite.reader import read_model
from kquant.tflite.states import keep_states
from kquant.tflite.streaming import stream_metadata, to_stream

layers = keras.layers
RNG = np.random.default_rng(11)
FRAMES = 60


def causal(frames=FRAMES):
    """Dilated causal convolutions with a residual, a batch norm and a head for each frame."""
    x = inputs = keras.Input((frames, 6), name="x")
    x = layers.Conv1D(8, 3, padding="causal", dilation_rate=2, name="c1")(x)
    x = layers.ReLU(name="r1")(layers.BatchNormalization(name="b1")(x))
    y = layers.Conv1D(8, 3, padding="causal", dilation_rate=4, activation="relu", name="c2")(x)
    x = layers.Concatenate(name="join")([layers.Add(name="add")([x, y]), x])
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x))


def separable(frames=FRAMES):
    """Padding by hand, depthwise and pointwise, tanh."""
    x = inputs = keras.Input((frames, 5), name="x")
    x = layers.ZeroPadding1D((6, 0), name="pad")(x)
    x = layers.SeparableConv1D(6, 4, dilation_rate=2, activation="tanh", name="sep")(x)
    return keras.Model(inputs, layers.Conv1D(3, 1, name="out")(x))


def strided(frames=FRAMES):
    """Strides and pooling in time, padding after a layer that pads nothing."""
    x = inputs = keras.Input((frames, 6), name="x")
    x = layers.Conv1D(8, 4, strides=2, padding="causal", activation="relu", name="s1")(x)
    x = layers.DepthwiseConv1D(3, name="dw")(x)
    x = layers.MaxPooling1D(2, name="pool")(x)
    return keras.Model(inputs, layers.Conv1D(5, 3, padding="causal", name="c3")(x))


def spectrogram(frames=FRAMES):
    """DS-CNN over [time, features, 1], a mean over the window at the end."""
    x = inputs = keras.Input((frames, 10), name="x")
    x = layers.Reshape((frames, 10, 1), name="image")(x)
    x = layers.ZeroPadding2D(((3, 0), (1, 1)), name="p0")(x)
    x = layers.Conv2D(8, (4, 3), strides=(1, 2), use_bias=False, name="c0")(x)
    x = layers.ReLU(name="r0")(layers.BatchNormalization(name="b0")(x))
    x = layers.ZeroPadding2D(((2, 0), (1, 1)), name="p1")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="dw")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="pw")(x)
    x = layers.AveragePooling2D((1, 2), name="features")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def valid(frames=FRAMES):
    """No zeros anywhere: a residual that needs a delay line, Flatten and Dense over the window."""
    x = inputs = keras.Input((frames, 10, 1), name="x")
    x = layers.Conv2D(6, (4, 3), strides=(1, 2), activation="relu", name="c0")(x)
    y = layers.DepthwiseConv2D((3, 1), name="dw")(x)
    x = layers.Add(name="add")([y, layers.Cropping2D(((1, 1), (0, 0)), name="crop")(x)])
    x = layers.AveragePooling2D((3, 2), strides=(1, 2), name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten(name="flat")(x)))


def two_outputs(frames=FRAMES):
    """A result for each frame and one for the window; squeeze and excitation over the window."""
    x = inputs = keras.Input((frames, 6), name="x")
    x = layers.Conv1D(8, 3, padding="causal", activation="relu", name="c1")(x)
    each = layers.Dense(3, name="each")(x)
    gate = layers.Dense(8, activation="sigmoid", name="gate")(layers.GlobalAveragePooling1D(name="mean")(x))
    gated = layers.Multiply(name="gated")([x, layers.Reshape((1, 8), name="row")(gate)])
    top = layers.Multiply(name="top")([x, layers.GlobalMaxPooling1D(keepdims=True, name="max")(x)])
    x = layers.Flatten(name="flat")(layers.Concatenate(name="both")([gated, top]))
    return keras.Model(inputs, [each, layers.Dense(2, name="all")(x)])


def two_inputs(frames=FRAMES):
    """Branches of different reach: the shorter one waits in a delay line."""
    a, b = keras.Input((frames, 4), name="a"), keras.Input((frames, 4), name="b")
    x = layers.Conv1D(4, 5, padding="causal", name="ca")(a)
    y = layers.Conv1D(4, 3, name="cb")(b)
    return keras.Model([a, b], layers.Add(name="add")([layers.Cropping1D((0, 2), name="crop")(x), y]))


def sliced(frames=FRAMES):
    """Gates from slices of features, layer normalization, the first and the newest frame of the window."""
    x = inputs = keras.Input((frames, 6), name="x")
    x = layers.Conv1D(8, 3, padding="causal", name="c1")(x)
    x = layers.Multiply(name="gated")([x[..., :4], layers.Activation("sigmoid", name="gate")(x[..., 4:])])
    x = layers.LayerNormalization(name="norm")(layers.Conv1D(4, 3, padding="causal", name="c2")(x))
    ends = layers.Concatenate(name="ends")([x[:, 0], x[:, -1], layers.GlobalAveragePooling1D(name="mean")(x)])
    return keras.Model(inputs, layers.Dense(3, name="head")(ends))


def looping(frames=FRAMES):
    """Loops, each of which goes on: a sequence that is an output and is read again, states at the end."""
    x = inputs = keras.Input((frames, 6), name="x")
    x = layers.Conv1D(6, 3, padding="causal", activation="relu", name="c1")(x)
    y = layers.GRU(5, return_sequences=True, name="memory")(x)
    last, h, _ = layers.LSTM(4, activation="relu", return_state=True, name="second")(y)
    z = layers.Conv1D(3, 2, padding="causal", name="c2")(layers.Concatenate(name="both")([x, y]))
    return keras.Model(inputs, [y, layers.Dense(3, name="head")(layers.Concatenate(name="ends")([last, h])), z])


def lstms(frames=FRAMES):
    """The kernel of an LSTM, which keeps its states itself, behind a stride."""
    x = inputs = keras.Input((frames, 6), name="x")
    x = layers.Conv1D(6, 4, strides=2, padding="causal", name="c1")(x)
    y = layers.LSTM(5, return_sequences=True, name="first")(x)
    return keras.Model(inputs, [layers.Dense(2, name="each")(y), layers.LSTM(4, name="second")(y)])


NETWORKS = [causal, separable, strided, spectrogram, valid, two_outputs, two_inputs, sliced, looping, lstms]


def quantized(model, rng=RNG):
    """Random weights, calibrated on random clips, for TFLM."""
    for variable in model.weights:
        name = variable.path.rsplit("/", 1)[-1]
        if name not in ("moving_variance", "gamma"):
            variable.assign(rng.normal(size=variable.shape) * (0.1 if name == "moving_mean" else 0.4))
    q = kquant.quantize(model, target="tflm")
    return kquant.calibrate(q, clips(model, 64, rng=rng), verbose=False)


@cache
def ready(network):
    """`quantized`, once for all tests, which only write files of it: the same weights whichever test comes first."""
    return quantized(network(), np.random.default_rng(11))


def clips(model, count, frames=None, rng=RNG):
    made = [rng.normal(size=(count, frames or t.shape[1], *t.shape[2:])).astype("float32") for t in model.inputs]
    return made[0] if len(made) == 1 else made


def listed(x):
    return x if isinstance(x, list) else [x]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda f: f.__name__)
def whole(request, tmp_path_factory):
    """A quantized network, a clip, and what the file over whole clips gives for it, by runtime."""
    q = ready(request.param)
    path = tmp_path_factory.mktemp("whole") / "whole.tflite"
    kquant.export(q, path, check_runtimes=False)
    clip = listed(clips(q, 1))
    expected = {runtime: listed(kquant.predict(path, clip, runtime)) for runtime in ("litert-reference", "tflm")}
    return q, [c[0] for c in clip], expected


@pytest.mark.one_in(3, always=r"io-1")
@pytest.mark.parametrize("hop", [1, 3])
@pytest.mark.parametrize("states", ["io", "variables"])
def test_stream_is_the_file_code_for_code(whole, states, hop, tmp_path):
    q, clip, wanted = whole
    checked = (states == "io") == (hop == 3)  # by the export itself: every kind of states, every hop
    report = kquant.export(
        q, tmp_path / "stream.tflite", streaming=hop, states=states, check_runtimes=checked
    ).streaming
    assert [check.equal for check in report.checks] == [1.0] * checked  # tflm
    for runtime, expected in wanted.items():
        stream = kquant.stream(tmp_path / "stream.tflite", runtime)
        made = listed(stream.run(clip[0] if len(clip) == 1 else clip))
        for output, want, got in zip(report.outputs, expected, made, strict=True):
            if output.axis is None:
                assert np.array_equal(got[-1], want[0]), output
                continue
            first, last = max(output.clean, -output.delay), min(len(want[0]), len(got) - output.delay)
            assert last - first >= 10
            assert np.array_equal(got[first + output.delay : last + output.delay], want[0][first:last]), output


def test_causal_networks_give_every_frame_from_the_first_on(tmp_path):
    q = ready(causal)
    report = kquant.export(q, tmp_path / "m.tflite", streaming=True).streaming
    assert (report.hop, report.outputs[0].delay, report.outputs[0].warm_up, report.notes) == (1, 0, 0, ())
    assert [s.name for s in report.states] == ["c1_pad/state", "c2_pad/state"]
    assert [s.shape for s in report.states] == [(1, 1, 4, 6), (1, 1, 8, 8)]
    assert report.state_bytes == 4 * 6 + 8 * 8
    for state in report.states:
        assert state.initial == state.zero_point


def test_strides_make_calls_of_several_frames():
    streamed = to_stream(lower(ready(strided)).program, 2)
    assert streamed.hop == 8
    assert streamed.outputs[0].warm_up == 2


@pytest.mark.parametrize("states", ["io", "variables"])
def test_valid_networks_agree_on_every_window(states, tmp_path):
    q = ready(valid)
    kquant.export(q, tmp_path / "whole.tflite", check_runtimes=False)
    report = kquant.export(q, tmp_path / "stream.tflite", streaming=1, states=states, check_runtimes=False).streaming
    assert len(report.notes) == 1
    assert report.outputs[0].warm_up == FRAMES - 1
    long = clips(q, 1, 2 * FRAMES)[0]
    made = kquant.stream(tmp_path / "stream.tflite", "tflm").run(long)
    windows = np.stack([long[i : i + FRAMES] for i in range(FRAMES + 1)])
    expected = kquant.predict(tmp_path / "whole.tflite", windows, "tflm")
    assert np.array_equal(made[FRAMES - 1 :], expected)


def test_a_last_state_is_that_of_all_frames_since_the_reset(tmp_path):
    q = quantized(network_of(layers.GRU(4, name="gru"), layers.Dense(2, name="head"), shape=(12, 6)))
    report = kquant.export(q, tmp_path / "stream.tflite", streaming=True).streaming
    assert report.outputs[0].goes_on
    assert [state.name for state in report.states] == ["gru/state"]
    assert report.notes == (
        "head: each call gives the result for all frames since the reset; that of the file comes with call 12. Reset "
        "where a clip begins.",
    )
    assert "WHILE" not in read_model((tmp_path / "stream.tflite").read_bytes()).operator_counts
    x = clips(q, 1)[0]
    made = kquant.stream(tmp_path / "stream.tflite", "tflm").run(x)
    for count in (5, 12):  # with the same ranges, the file over fewer frames
        short = kquant.quantize(
            network_of(layers.GRU(4, name="gru"), layers.Dense(2, name="head"), shape=(count, 6)), target="tflm"
        )
        short.set_weights(q.get_weights())
        kquant.export(short, tmp_path / "short.tflite", check_runtimes=False)
        assert np.array_equal(kquant.predict(tmp_path / "short.tflite", x[None, :count], "tflm")[0], made[count - 1])


def test_an_operator_that_keeps_its_states_itself_is_noted(tmp_path):
    report = kquant.export(ready(lstms), tmp_path / "m.tflite", streaming=True, check_runtimes=False).streaming
    assert any(note.startswith("first, second: the operator keeps its states in itself") for note in report.notes)
    stream = kquant.stream(tmp_path / "m.tflite", "tflm")
    x = clips(ready(lstms), 1)[0]
    first, again = stream.run(x), stream.run(x)  # each from a reset
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_windows_over_causal_layers_are_noted(tmp_path):
    report = kquant.export(ready(spectrogram), tmp_path / "m.tflite", streaming=True)
    assert any("agree on the first window after a reset" in note for note in report.streaming.notes)
    text = kquant.report.render(report)
    assert "bytes of states (io)" in text
    assert "c0" not in [s.name for s in report.streaming.states]
    assert "100.00 % of the codes equal" in text


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_other_types_at_the_edges(io, tmp_path):
    q = ready(causal)
    kquant.export(q, tmp_path / "whole.tflite", io=io, check_runtimes=False)
    report = kquant.export(q, tmp_path / "stream.tflite", io=io, streaming=True)
    assert report.inputs[0].type == io.upper()
    assert {p.type for p in report.inputs[1:]} == {"INT8"}
    clip = clips(q, 1)
    made = kquant.stream(tmp_path / "stream.tflite", "tflm").run(clip[0])
    assert np.array_equal(made, kquant.predict(tmp_path / "whole.tflite", clip, "tflm")[0])


def test_reset_forgets_and_step_takes_a_frame(tmp_path):
    q = ready(causal)
    kquant.export(q, tmp_path / "m.tflite", streaming=True, states="variables", check_runtimes=False)
    stream = kquant.stream(tmp_path / "m.tflite")
    frames = clips(q, 1)[0]
    first = [stream.step(frame) for frame in frames[:5]]
    # all five: a single softmax may be as sure of its class with other frames behind it
    assert not np.array_equal(np.stack([stream.step(frame) for frame in frames[:5]]), np.stack(first))
    stream.reset()
    assert np.array_equal(np.stack([stream.step(frame[None]) for frame in frames[:5]]), np.stack(first))


def network_of(*made, shape=(16, 6)):
    x = inputs = keras.Input(shape, name="x")
    for layer in made:
        x = layer(x)
    return keras.Model(inputs, x)


def attention():
    x = inputs = keras.Input((16, 6), name="x")
    return keras.Model(inputs, keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1))))


REFUSED = {
    "attention": (attention(), r"matmul \(BATCH_MATMUL\).*attention over time"),
    "recurrent": (
        network_of(layers.Conv1D(4, 3, name="conv"), layers.GRU(4, name="gru")),
        r"gru \(WHILE\).*does not see in a clip, before the first one.*padding='causal'",
    ),
    "kernel": (
        network_of(layers.Cropping1D((0, 2), name="crop"), layers.LSTM(4, name="lstm")),
        r"lstm \(UNIDIRECTIONAL_SEQUENCE_LSTM\).*or behind the last.*neither crop nor pool",
    ),
    "backwards": (network_of(layers.GRU(4, go_backwards=True, name="gru")), "gru.*recurrent layers that go forwards"),
    "positions": (
        network_of(layers.Lambda(lambda x: x + np.arange(96, dtype="float32").reshape(1, 16, 6), name="where")),
        "differs from frame to frame",
    ),
    "every-other": (network_of(layers.Lambda(lambda x: x[:, ::2], name="skip")), "strides through time"),
    "same": (network_of(layers.Conv1D(4, 3, padding="same", name="conv")), r"conv .*looks 1 frames ahead.*causal"),
    "behind": (
        network_of(layers.ZeroPadding1D((2, 1), name="pad"), layers.Conv1D(4, 3, name="conv")),
        r"pad \(PAD\).*pads 1 frames behind.*\(3, 0\)",
    ),
    "same-pool": (
        network_of(layers.AveragePooling1D(3, strides=1, padding="same", name="pool")),
        "pool.*looks 1 frames ahead",
    ),
    "dense-over-time": (
        network_of(layers.Permute((2, 1), name="turn"), layers.Dense(3, name="mix")),
        r"mix \(FULLY_CONNECTED\).*runs over the time axis",
    ),
    "join": (
        network_of(layers.Lambda(lambda x: keras.ops.concatenate([x, x], axis=1), name="twice")),
        "joins frames along time",
    ),
    "up": (network_of(layers.UpSampling2D(2, name="up"), shape=(8, 8, 2)), "up .*stretches time"),
    "transposed": (
        network_of(layers.Conv2DTranspose(2, 2, strides=2, name="grow"), shape=(8, 8, 2)),
        r"grow \(TRANSPOSE_CONV\).*does not know how it moves along time",
    ),
    "no-time": (network_of(layers.Dense(3, name="dense"), shape=(6,)), r"\[batch, time, features"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_looks_ahead_is_refused_by_name(case, tmp_path):
    model, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        kquant.export(quantized(model), tmp_path / "m.tflite", streaming=True)
    assert not (tmp_path / "m.tflite").exists()


def test_rates_that_do_not_meet_are_refused():
    x = inputs = keras.Input((16, 4), name="x")
    slow = layers.Conv1D(4, 3, strides=2, padding="causal", name="slow")(x)
    fast = layers.Conv1D(4, 9, name="fast")(x)
    model = keras.Model(inputs, layers.Add(name="meet")([slow, fast]))
    with pytest.raises(ValueError, match=r"meet \(ADD\).*different rates"):
        to_stream(lower(quantized(model)).program)


@pytest.mark.parametrize("wrong", [{"streaming": -1}, {"streaming": 2.5}, {"streaming": True, "states": "heap"}])
def test_wrong_options(wrong, tmp_path):
    with pytest.raises(ValueError, match="streaming must be False, True or a number"):
        kquant.export(ready(causal), tmp_path / "m.tflite", **wrong)


@pytest.mark.parametrize("recipe", ["float16", "weight-only-int8", "dynamic-int8"])
def test_float_activations_are_refused(recipe, tmp_path):
    model = causal()
    q = kquant.calibrate(kquant.quantize(model, recipe), clips(model, 64), verbose=False)
    with pytest.raises(ValueError, match=f"streaming.*'{recipe}' leaves all activations float.*'int8' or 'int16x8'"):
        kquant.export(q, tmp_path / "m.tflite", streaming=True)


def one_float_layer(**weights):
    inputs = keras.Input((16, 6), name="x")
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Dense(4, name="body")(inputs)))
    recipe = {"name": "mixed", "rules": [{"layer": "body", "float": True, **weights}]}
    return kquant.calibrate(kquant.quantize(model, recipe), clips(model, 64), verbose=False)


def test_a_float_layer_may_stream_where_its_weights_are_stored_as_they_are(tmp_path):
    report = kquant.export(one_float_layer(), tmp_path / "m.tflite", streaming=True)
    assert report.float_layers == ("body",) and report.streaming.checks[0].equal == 1.0
    q = one_float_layer(weights={"dtype": "float16"})
    with pytest.raises(ValueError, match=r"body.*dequantizes no weights.*dtype 'int'"):
        kquant.export(q, tmp_path / "m.tflite", streaming=True)


def test_files_for_the_wrong_verb(tmp_path):
    q = ready(causal)
    kquant.export(q, tmp_path / "whole.tflite", check_runtimes=False)
    with pytest.raises(ValueError, match="not a streaming file; write one with kquant.export"):
        kquant.stream(tmp_path / "whole.tflite")
    kquant.export(q, tmp_path / "stream.tflite", streaming=2, check_runtimes=False)
    with pytest.raises(ValueError, match="this is a streaming file"):
        kquant.verify(q, tmp_path / "stream.tflite", clips(q, 4))
    stream = kquant.stream(tmp_path / "stream.tflite")
    with pytest.raises(ValueError, match=r"takes frames \(2, 6\)\. Received: \(6,\)"):
        stream.step(np.zeros(6))
    with pytest.raises(ValueError, match="NaN"):
        stream.step(np.full((2, 6), np.nan))
    with pytest.raises(ValueError, match="a call takes 2 frames"):
        stream.run(np.zeros((1, 6)))


def test_clips_that_end_within_a_call_are_compared(tmp_path):
    x = inputs = keras.Input((21, 6), name="x")
    x = layers.Conv1D(8, 4, strides=2, padding="causal", activation="relu", name="s1")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D(name="mean")(x)))
    q = quantized(model)
    report = kquant.export(q, tmp_path / "m.tflite", streaming=True).streaming
    assert (report.hop, report.outputs[0].complete, report.checks[0].equal) == (2, 11, 1.0)
    report = kquant.export(q, tmp_path / "m.tflite", streaming=2).streaming
    assert (report.hop, report.outputs[0].complete, report.checks[0].equal) == (4, 0, None)


def test_states_have_names_of_their_own(tmp_path):
    report = kquant.export(ready(two_outputs), tmp_path / "m.tflite", streaming=1, check_runtimes=False)
    names = [s.name for s in report.streaming.states]
    assert len(names) == len(set(names)) == 3
    inputs = [p.name for p in report.inputs]
    assert inputs == ["x", *names]


def test_a_wrong_stream_is_found(tmp_path):
    q = ready(causal)
    lowered = lower(q)
    plain = to_bytes(lowered.program, lowered.target, {})
    streamed = to_stream(lowered.program)
    outputs = streamed.outputs
    keep_states(streamed, "io")
    metadata = {"streaming": {**stream_metadata(streamed, "io"), "states": [5, 6]}}
    content = to_bytes(streamed.program, lowered.target, metadata)
    with pytest.raises(ValueError, match="of the stream's codes differ from the file's on tflm"):
        check_stream(plain, read_model(plain), content, outputs, [clips(causal(), 2)], "tflm")


def random_network(seed):
    """Layers in any order; each knows whether it looks back, strides or keeps a residual."""
    rng = np.random.default_rng(seed)
    x = inputs = keras.Input((64, 4), name="x")
    for _ in range(int(rng.integers(2, 5))):
        kind, size = rng.integers(0, 6), int(rng.integers(1, 5))
        padding, channels = str(rng.choice(["causal", "valid"])), int(rng.integers(2, 6))
        before = x
        if kind == 0:
            x = layers.Conv1D(channels, size, strides=int(rng.integers(1, 4)), padding=padding, activation="relu")(x)
        elif kind == 1:
            x = layers.Conv1D(channels, size, dilation_rate=int(rng.integers(1, 4)), padding=padding)(x)
        elif kind == 2:
            x = layers.ZeroPadding1D((int(rng.integers(0, 5)), 0))(x)
            x = layers.DepthwiseConv1D(size, strides=int(rng.integers(1, 3)))(x)
        elif kind == 3:
            x = (layers.MaxPooling1D if size % 2 else layers.AveragePooling1D)(size, strides=int(rng.integers(1, 4)))(x)
        elif kind == 4:
            x = layers.Cropping1D((int(rng.integers(0, 3)), int(rng.integers(0, 3))))(x)
            x = layers.BatchNormalization()(x)
        else:
            y = layers.Conv1D(before.shape[-1], size)(x)
            first = int(rng.integers(0, size))
            x = layers.Add()([y, layers.Cropping1D((first, size - 1 - first))(x)]) if size > 1 else x
    return keras.Model(inputs, layers.Dense(3)(x))


def random_memory(seed):
    """Recurrent layers of all kinds between causal ones."""
    rng = np.random.default_rng(seed)
    x = inputs = keras.Input((24, 4), name="x")
    kinds = [
        layers.GRU,
        layers.SimpleRNN,
        layers.LSTM,
        lambda n, **k: layers.LSTM(n, activation="relu", **k),
        lambda n, **k: layers.GRU(n, reset_after=False, **k),
    ]
    for _ in range(int(rng.integers(1, 4))):
        if rng.integers(0, 2):
            x = layers.Conv1D(4, int(rng.integers(1, 4)), strides=int(rng.integers(1, 3)), padding="causal")(x)
        x = kinds[rng.integers(0, len(kinds))](int(rng.integers(2, 6)), return_sequences=True)(x)
    last = kinds[rng.integers(0, len(kinds))](3)(x)
    return keras.Model(inputs, [x, last])


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("network", [random_network, random_memory])
def test_random_networks(network, seed):
    model = network(seed)
    lowered = lower(quantized(model))
    plain = to_bytes(lowered.program, lowered.target, {})
    for n in (1, 2):
        streamed = to_stream(lowered.program, n)
        keep_states(streamed, "io")
        metadata = {"streaming": stream_metadata(streamed, "io")}
        content = to_bytes(streamed.program, lowered.target, metadata)
        check_stream(plain, read_model(plain), content, streamed.outputs, [clips(model, 2)], "litert-reference")


@pytest.mark.parametrize("reader", ["mean", "none"])
def test_a_mask_that_no_recurrent_layer_reads_is_refused_by_name(reader, tmp_path):
    x = np.float32(np.random.default_rng(0).normal(size=(100, 6, 4)))
    x[::2, 4:] = -9.0
    models = []
    for masking in (layers.Masking(-9.0, name="padding"), layers.Identity(name="padding")):
        inputs = keras.Input((6, 4), name="x")
        y = layers.Dense(3, name="each")(masking(inputs))
        y = layers.GlobalAveragePooling1D(name="mean")(y) if reader == "mean" else y
        models.append(keras.Model(inputs, layers.Dense(2, name="head")(y)))
    masked, plain = models
    q = kquant.calibrate(kquant.quantize(masked), x, verbose=False)
    with pytest.raises(ValueError, match=r"export: padding \(\w+\) cannot.* reads a mask.*without Masking"):
        kquant.export(q, tmp_path / "s.tflite", streaming=True)
    plain.set_weights(masked.get_weights())
    q = kquant.calibrate(kquant.quantize(plain), x[1::2], verbose=False)
    kquant.export(q, tmp_path / "s.tflite", streaming=True)


@pytest.mark.filterwarnings("ignore:calibrate. in some samples the mask")
@pytest.mark.parametrize("layer", [keras.layers.GRU, keras.layers.LSTM])
def test_a_masked_recurrent_layer_is_refused_by_name_and_streams_without_its_mask(layer, tmp_path):
    x = np.float32(np.cumsum(np.random.default_rng(0).normal(size=(240, 6, 4)), 1))
    x[::2, 4:] = 0.0
    models = []
    for masking in (keras.layers.Masking(name="padding"), keras.layers.Identity(name="padding")):
        inputs = keras.Input((6, 4), name="x")
        y = layer(3, return_sequences=True, name="memory")(masking(inputs))
        models.append(keras.Model(inputs, keras.layers.Dense(2, name="head")(y)))
    masked, plain = models
    with pytest.raises(ValueError, match=r"memory \((WHILE|UNID\w+)\) cannot.*padding.*without Masking.*reset"):
        q = kquant.calibrate(kquant.quantize(masked, target="tflm"), x, verbose=False)
        kquant.export(q, tmp_path / "s.tflite", streaming=True)
    plain.set_weights(masked.get_weights())
    q = kquant.calibrate(kquant.quantize(plain, target="tflm"), x[1::2], verbose=False)
    kquant.export(q, tmp_path / "s.tflite", streaming=True)
