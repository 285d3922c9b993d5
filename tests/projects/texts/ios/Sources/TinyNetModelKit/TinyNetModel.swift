import Foundation
import LiteRT
import os

/// tiny * / net on LiteRT, written by kquant 1.2.3. For one thread at a time.
public final class TinyNetModel {
  /// What runs the model.
  public let accelerator: Accelerator

  private let compiled: CompiledModel
  private let inputBuffers: [TensorBuffer]
  private let outputBuffers: [TensorBuffer]

  /// What comes out, as real numbers.
  public struct Outputs {
    public let kind: [Float]
    public let place: [Float]
  }

  /// What comes out, in the file's own types.
  public struct OutputCodes {
    public let kind: [Int8]
    public let place: [Float]
  }

  /// An array of another length than an input takes.
  public struct WrongCount: Error {
    public let input: String
    public let expected: Int
    public let received: Int
  }

  /// Where the model lies.
  public static var file: URL? {
    return Bundle.module.url(forResource: "tiny_net", withExtension: "tflite")
  }

  /// Compiles the model for the first accelerator that takes it, and says in the log which one that is and why those
  /// before it did not.
  ///
  /// - Parameter accelerators: in the order to try, such as `[.gpu, .cpu]`.
  /// - Throws: `LiteRtError` where no accelerator takes it.
  public init(accelerators: [Accelerator] = [.cpu]) throws {
    guard let file = TinyNetModel.file else { throw LiteRtError.fileIO }
    let log = Logger(subsystem: "kquant", category: "TinyNetModel")
    var made: (model: CompiledModel, accelerator: Accelerator)?
    var failure: Error = LiteRtError.invalidArgument  // where none is named
    for accelerator in accelerators {
      do {
        // One accelerator at a time: where the CPU stands beside it, LiteRT falls back without a word.
        let options = try Options()
        try options.setHardwareAccelerators([accelerator])
        let model = try CompiledModel(filePath: file.path, environment: Environment(), options: options)
        made = (model, accelerator)
        break
      } catch {
        failure = error
        log.warning("accelerator \(accelerator.rawValue) does not take the model: \(String(describing: error))")
      }
    }
    guard let made else { throw failure }
    log.info("runs on accelerator \(made.accelerator.rawValue) (1 CPU, 2 GPU, 4 NPU)")
    self.accelerator = made.accelerator
    self.compiled = made.model
    self.inputBuffers = try made.model.createInputBuffers()
    self.outputBuffers = try made.model.createOutputBuffers()
  }

  /// Runs the model on real numbers.
  ///
  /// - Parameter image: image, 4 values: [1, 2, 2], the last axis fastest.
  /// - Parameter speed: speed, 1 values: [1, 1], the last axis fastest.
  public func run(image: [Float], speed: [Float]) throws -> Outputs {
    let results_ = try self.runCodes(
      image: TinyNetModelCodes.input0.codes(image),
      speed: speed
    )
    return Outputs(
      kind: TinyNetModelCodes.output0.reals(results_.kind),
      place: results_.place
    )
  }

  /// The same in the file's own types.
  public func runCodes(image: [Int8], speed: [Float]) throws -> OutputCodes {
    if image.count != 4 {
      throw WrongCount(input: "image", expected: 4, received: image.count)
    }
    if speed.count != 1 {
      throw WrongCount(input: "speed", expected: 1, received: speed.count)
    }
    try self.inputBuffers[0].write(image)
    try self.inputBuffers[1].write(speed)
    try self.compiled.run(inputs: self.inputBuffers, outputs: self.outputBuffers)
    return OutputCodes(
      kind: try self.outputBuffers[0].read(),
      place: try self.outputBuffers[1].read()
    )
  }
}
