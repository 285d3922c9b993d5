"""What docs/peers.md says before its tables, and what it calls the tasks."""

TITLES = {
    "digits_cnn": "digits, a small CNN",
    "digits_mobile": "digits, MobileNetV2's blocks",
    "digits_dense": "digits, Dense layers",
    "image_classification": "ResNet8, CIFAR-10",
    "keyword_spotting": "keyword spotting",
    "visual_wake_words": "visual wake words",
    "anomaly_detection": "anomaly detection",
    "streaming_wakeword": "streaming wake word",
}

INTRODUCTION = """# kquant beside its peers

This page is written by `make bench` (`python -m benchmarks.peers`), which installs every peer from the registry into an
environment of its own, gives all of them the same models, samples and epochs, and judges their files with the same
code. The digits come with scikit-learn, so anybody can run that part; the other models are MLPerf Tiny's, from the
folder that `KQUANT_ASSETS` names. The figures lie in `benchmarks/results/peers.json`.

Measured on {processor}, {cores} cores, {date}: {versions}.

- **accuracy**: of what the tool simulates in Keras, then of its file on each runtime; LiteRT's reference kernels judge
  the first 2,000 samples, TFLM the first 500. The anomaly detector has no labels here: SQNR of its output against the
  float model's, in dB.
- **equal codes**: % of output codes of the file, on the reference kernels of LiteRT or of TFLM, whichever the tool
  simulates, that are the simulation's; **LSB**: by how many codes the furthest is off.
- **bytes**, **gzip**: of the file, and compressed with gzip 9. **arena**: the smallest in which TFLM runs it, found by
  trial.
- **ms**: one invocation on LiteRT, one thread, all files of a model by turns. **s**, **MB**: making the file, without
  imports, and the peak memory of the process; kquant's include running the file on every runtime before it is given
  out, LiteRT Quantizer's leave out the float file that it starts from. Of a row that was measured beside other work no
  time is told: "-".
- Trained rows are the mean over seeds, with the smallest and the largest; **epoch, s** is their fastest epoch,
  **step, times float** what [a step takes](benchmarks.md) over one of the float model in the same Keras, where that was
  measured, kquant's and tfmot's by turns; **step, times tfmot's** over tfmot's step of the same kind: what one waits
  for, since a float step of the two Keras takes unlike times. Of the digits, and of zeros or values in QAT, in seconds
  of the processor.
- **refused** on TFLM: 4-bit weights, for which it has no kernels; floats beside integers; and the larger files of
  LiteRT Quantizer, whose weights lie behind the flatbuffer (`offset` and `size` of a buffer), where TFLM does not look:
  it would compute with zeros and say nothing.
- A file with float operators is no integer file, and does not count where it is smaller or more accurate.
- Of how many architectures and layers each tool makes an integer file: [benchmarks.md](benchmarks.md).

Where a peer is better by more than noise (half a point, half a dB, 1 % of bytes, 5 % of time), the line below the table
says so.
"""
