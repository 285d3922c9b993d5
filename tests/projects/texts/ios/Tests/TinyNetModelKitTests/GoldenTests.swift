import CryptoKit
import Foundation
import LiteRT
import TinyNetModelKit
import XCTest

/// What the model gives on this device, beside what LiteRT gave on the desk (XNNPACK's kernels of a PC) for the same
/// inputs.
///
/// Kernels of two processors may round a code otherwise, by one step in an operator, and such steps add up. So what is
/// asked is the power of each output over that of its difference: 20.0 dB, as `kquant.verify` asks of a runtime
/// that rounds otherwise. A wrong scale or a wrong layer leaves less than 10. What it found on the desk, against the
/// model:
/// - kind on litert: 99.0% of codes equal, 1 steps at most, 40.0 dB
///
/// On the GPU: the environment's ACCELERATOR=gpu.
final class GoldenTests: XCTestCase {
  private struct Golden: Decodable {
    let calls: [Call]
  }

  private struct Call: Decodable {
    let inputs: Inputs
    let outputs: Outputs
  }

  private struct Inputs: Decodable {
    let value0: [Int8]
    let value1: [Float]

    init(from decoder: Decoder) throws {
      var values = try decoder.unkeyedContainer()
      value0 = try values.decode([Int8].self)
      value1 = try values.decode([Float].self)
    }
  }

  private struct Outputs: Decodable {
    let value0: [Int8]
    let value1: [Float]

    init(from decoder: Decoder) throws {
      var values = try decoder.unkeyedContainer()
      value0 = try values.decode([Int8].self)
      value1 = try values.decode([Float].self)
    }
  }

  private struct Agreement {
    var power = 0.0
    var noise = 0.0
    var largest = 0.0

    /// Of one value, what was wanted and what came.
    mutating func add(wanted: Double, got: Double) {
      power += wanted * wanted
      noise += (wanted - got) * (wanted - got)
      largest = max(largest, abs(wanted - got))
    }

    var decibels: Double {
      return noise == 0 ? Double.infinity : 10 * log10(power / noise)
    }
  }

  func testTheFileIsTheOneThatWasWritten() throws {
    let file = try XCTUnwrap(TinyNetModel.file)
    let content = try Data(contentsOf: file)
    let hash = SHA256.hash(data: content).map { String(format: "%02x", $0) }.joined()
    XCTAssertEqual(hash, TinyNetModelCodes.sha256)
  }

  func testAgreesWithTheDesk() throws {
    let file = try XCTUnwrap(Bundle.module.url(forResource: "tiny_net_golden", withExtension: "json"))
    let golden = try JSONDecoder().decode(Golden.self, from: Data(contentsOf: file))
    let named: [String: Accelerator] = ["cpu": .cpu, "gpu": .gpu, "npu": .npu]
    let wanted = ProcessInfo.processInfo.environment["ACCELERATOR"] ?? "cpu"
    let model = try TinyNetModel(accelerators: [try XCTUnwrap(named[wanted])])
    var agreement0 = Agreement()
    var agreement1 = Agreement()
    for call in golden.calls {
      let got = try model.runCodes(
        image: call.inputs.value0,
        speed: call.inputs.value1
      )
      let got0 = got.kind
      XCTAssertEqual(got0.count, call.outputs.value0.count)
      for (wanted, came) in zip(call.outputs.value0, got0) {
        agreement0.add(wanted: Double(TinyNetModelCodes.output0.real(Int(wanted))), got: Double(TinyNetModelCodes.output0.real(Int(came))))
      }
      let got1 = got.place
      XCTAssertEqual(got1.count, call.outputs.value1.count)
      for (wanted, came) in zip(call.outputs.value1, got1) {
        agreement1.add(wanted: Double(wanted), got: Double(came))
      }
    }
    XCTAssertGreaterThanOrEqual(
      agreement0.decibels, 20.0, "kind, at most \(agreement0.largest)")
    XCTAssertGreaterThanOrEqual(
      agreement1.decibels, 20.0, "place, at most \(agreement1.largest)")
  }
}
