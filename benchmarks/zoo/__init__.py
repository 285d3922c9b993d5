"""Architectures that users bring beside classifiers: detectors, segmenters, speech, transformers, signals.

Each is a function that builds a Keras model with random weights, narrower and shorter than published, with every kind
of layer and joint of the original. `python -m benchmarks.zoo` takes each through quantization; to add one, write its
function and name it here.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

from benchmarks.zoo import detection, segmentation, sequences

ZOO: dict[str, Callable[[], keras.Model]] = {
    build.__name__: build
    for build in (
        detection.ssdlite_mobilenet_v2,
        detection.retinanet,
        detection.yolo_v5,
        detection.yolo_v8,
        detection.centernet,
        detection.mtcnn_pnet,
        detection.mtcnn_rnet,
        detection.mtcnn_onet,
        segmentation.deeplab_v3_plus,
        segmentation.u_net,
        segmentation.bisenet,
        sequences.deepspeech2,
        sequences.crnn,
        sequences.whisper_encoder,
        sequences.mobile_bert,
        sequences.mobile_vit,
        sequences.eegnet,
        sequences.tcn,
        sequences.recommender,
    )
}
