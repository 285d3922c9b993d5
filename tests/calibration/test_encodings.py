"""AIMET's encodings: written, read back to the bit, and refused by name where they do not fit."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import EXAMPLES, build, quantized, takers

import kquant
from kquant.core.spec import QuantSpec, encode_range, range_of
from kquant.layers.nodes import QuantizedLSTM, encodings_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:calibrate. real_steps. in some samples the mask",
    "ignore:encodings. '.*' has scale .* it follows its input",
)

layers = keras.layers
RNG = np.random.default_rng(3)
VERSIONS = ("0.6.1", "1.0.0")


def network():
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    x = layers.Concatenate(name="both")([x, y])
    x = layers.AveragePooling2D(2, name="pool")(x)
    shared = layers.Dense(3, name="shared")
    x = layers.Flatten(name="flat")(x)
    x = layers.Add(name="add")([shared(x), shared(layers.Activation("tanh", name="tanh")(x))])
    return keras.Model(inputs, layers.Softmax(name="classes")(x))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    return network()


@pytest.fixture(scope="module")
def qmodel(model):
    images = RNG.normal(0.3, 1.0, (64, 8, 8, 3)).astype("float32")
    return kquant.calibrate(kquant.quantize(model), images, verbose=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip_gives_the_same_file(model, qmodel, version, tmp_path):
    first = kquant.export(
        qmodel, tmp_path / "a.tflite", encodings=tmp_path / "a.json", encodings_version=version, check_runtimes=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = kquant.quantize(model, encodings=tmp_path / "a.json")
    kquant.export(again, tmp_path / "b.tflite", encodings=tmp_path / "b.json", encodings_version=version)
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert first.inputs[0].name == "image"


@pytest.mark.parametrize("version", VERSIONS)
def test_cell_states_round_trip(version, tmp_path):
    keras.utils.set_random_seed(5)
    memory = layers.LSTM(4, name="memory", return_sequences=True)  # called twice: one cell state holds both
    inputs = keras.Input((6, 4), name="x")
    model = keras.Model(inputs, layers.LSTM(3, name="last")(memory(memory(inputs))))
    q = kquant.calibrate(kquant.quantize(model), RNG.normal(0, 4, (128, 6, 4)).astype("float32"), verbose=False)
    options = {"encodings_version": version, "check_runtimes": False}
    kquant.export(q, tmp_path / "a.tflite", encodings=tmp_path / "a.json", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = kquant.quantize(model, encodings=tmp_path / "a.json")
    kquant.export(again, tmp_path / "b.tflite", encodings=tmp_path / "b.json", **options)
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    found = kquant.encodings(q)
    assert found["quantizer_args"]["activation_bitwidth"] == 8
    (cell,) = found["activation_encodings"]["memory/cell"]
    (layer,) = (x for x in q.layers if isinstance(x, QuantizedLSTM) and x.name == "memory")
    assert (cell["bitwidth"], cell["scale"]) == (16, 2.0 ** (int(layer.cell_bits()) - 15))


def test_an_encoding_that_a_layer_asks_for_beforehand_is_no_tensor():
    keras.utils.set_random_seed(5)
    memory = layers.LSTM(3, name="memory", return_sequences=True)
    model = keras.Sequential([keras.Input((6, 4), name="x"), memory])
    entries = kquant.encodings(quantized(model, samples=32))
    assert list(entries["activation_encodings"]) == ["x", "memory", "memory/cell"]
    older = {**entries["activation_encodings"], "x/x_quant": entries["activation_encodings"]["memory"]}
    again = kquant.quantize(model, encodings={**entries, "activation_encodings": older})
    assert kquant.encodings(again) == entries


@pytest.mark.parametrize("bits", range(5))
def test_the_scale_of_a_cell_gives_its_integer_bits_again(bits):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((6, 4)), layers.LSTM(3, name="memory")])
    q = quantized(model, samples=32)
    (layer,) = (x for x in q.layers if isinstance(x, QuantizedLSTM))
    layer.cell.set_range(0, -1.1 * 2.0 ** (bits - 1), 0.5, exact=True)
    again = kquant.quantize(model, encodings=kquant.encodings(q))
    (same,) = (x for x in again.layers if isinstance(x, QuantizedLSTM))
    assert int(same.cell_bits()) == int(layer.cell_bits()) == bits
    assert all(np.all(e.count.numpy() > 0) for e in encodings_of(again) if e.has_range)


@pytest.mark.one_in(5)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of random data, which have tests of their own
@pytest.mark.parametrize("name", sorted(EXAMPLES)[::3])
def test_every_rule_round_trips(name):
    model = build(name)
    target = takers(model)[0]
    found = kquant.encodings(quantized(model, target, samples=32))
    again = kquant.quantize(model, target=target, encodings=json.loads(json.dumps(found)))
    assert kquant.encodings(again) == found


def test_numbers_are_aimets(qmodel):
    found = kquant.encodings(qmodel)
    assert set(found["activation_encodings"]) == {
        "image", "relu", "depth", "pool", "shared", "shared_1", "tanh", "add", "classes",
    }  # fmt: skip
    assert set(found["param_encodings"]) == {"conv/kernel", "depth/kernel", "shared/kernel"}
    assert len(found["param_encodings"]["conv/kernel"]) == 4
    (softmax,) = found["activation_encodings"]["classes"]
    assert (softmax["scale"], softmax["offset"], softmax["min"], softmax["max"]) == (1 / 256, 0, 0.0, 255 / 256)
    (kernel, *_) = found["param_encodings"]["depth/kernel"]
    assert (kernel["offset"], kernel["is_symmetric"], kernel["bitwidth"]) == (-128, "True", 8)
    (image,) = kquant.encodings(qmodel, "1.0.0")["activation_encodings"][:1]
    assert (image["name"], image["enc_type"], image["bw"], image["dtype"]) == ("image", "PER_TENSOR", 8, "INT")
    port = kquant.inspect(kquant_file(qmodel)).inputs[0]
    assert (port.scale[0], port.zero_point[0]) == (image["scale"][0], -image["offset"][0] - 128)


def kquant_file(q):
    from kquant.tflite.flatbuffer import to_bytes
    from kquant.tflite.lowering import lower

    lowered = lower(q)
    return to_bytes(lowered.program, lowered.target, {})


@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_give_back_their_encoding_to_the_bit(symmetric):
    rng = np.random.default_rng(0)
    for bits in (8, 16):
        spec = QuantSpec(bits, symmetric)
        for _ in range(400):
            low, high = np.float32(rng.normal(size=2) * 10.0 ** rng.uniform(-6, 6))
            scale, point = (t.numpy() for t in encode_range(tf.constant(low), tf.constant(high), spec))
            again = encode_range(*map(tf.constant, range_of(scale, int(point), spec)), spec)
            assert (again[0].numpy(), again[1].numpy()) == (scale, point)


def changed(qmodel, edit):
    data = kquant.encodings(qmodel)
    edit(data)
    return data


def rename(section, old, new):
    return lambda data: data[section].update({new: data[section].pop(old)})


def entry(name, **values):
    return lambda data: data["activation_encodings"][name][0].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename("activation_encodings", "relu", "reluu"), "names 'reluu', which is no tensor .* Did you mean 'relu'"),
        (rename("param_encodings", "conv/kernel", "conv/weight"), "names 'conv/weight'.* Did you mean .*'conv/kernel'"),
        (entry("relu", bitwidth=16), "'relu' has 16 bits, the recipe's activations have 8. Quantize with a recipe"),
        (entry("relu", offset=12), "'relu' has offset 12, a zero point of -140"),
        (entry("relu", dtype="float"), "'relu' is not an entry .* dtype 'float'"),
        (entry("relu", scale=-1.0), "a scale that is not a positive number"),
        (lambda data: data["activation_encodings"]["relu"][0].pop("scale"), "'relu' is not an entry .*KeyError"),
        (lambda data: data["activation_encodings"]["relu"].append(data["activation_encodings"]["relu"][0]),
         "'relu' has 2 scales; activations have one"),
        (lambda data: data.pop("param_encodings"), "expected AIMET's encodings"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, qmodel, edit, message):
    with pytest.raises(ValueError, match=message):
        kquant.quantize(model, encodings=changed(qmodel, edit))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["activation_encodings"].pop("add"), r"nothing for add \(1 tensors\)"),
        (entry("classes", scale=0.01), "'classes' has scale 0.01 .* prescribed by its kernel"),
        (entry("pool", scale=0.01), "'pool' has scale 0.01 .* follows its input"),
        (entry("depth", scale=0.5), "relu, depth share one encoding.*widest"),
        (lambda data: data["param_encodings"]["conv/kernel"][1].update(scale=1.0), "'conv/kernel' has scales up to"),
        (lambda data: data["param_encodings"]["conv/kernel"].pop(), "'conv/kernel' has 3 scales of 8 bits"),
    ],
)
def test_what_the_device_decides_is_a_warning(model, qmodel, edit, message):
    with pytest.warns(UserWarning, match=message):
        kquant.quantize(model, encodings=changed(qmodel, edit))


def test_names_with_a_port_and_biases_are_taken(model, qmodel):
    data = kquant.encodings(qmodel)
    data["activation_encodings"] = {f"{k}:0": v for k, v in data["activation_encodings"].items()}
    data["param_encodings"]["conv/bias:0"] = data["param_encodings"]["conv/kernel"]
    assert kquant.encodings(kquant.quantize(model, encodings=data)) == kquant.encodings(qmodel)


def test_files_and_versions(model, qmodel, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        kquant.quantize(model, encodings=tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        kquant.quantize(model, encodings=tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"version must be one of 0\.6\.1, 1\.0\.0\. Received: '2'"):
        kquant.export(qmodel, tmp_path / "m.tflite", encodings=tmp_path / "m.json", encodings_version="2")
    with pytest.raises(ValueError, match="no range yet at image"):
        kquant.encodings(kquant.quantize(model))
    with pytest.raises(ValueError, match="not a quantized model"):
        kquant.encodings(model)
    assert list(tmp_path.glob("*.tflite")) == []
