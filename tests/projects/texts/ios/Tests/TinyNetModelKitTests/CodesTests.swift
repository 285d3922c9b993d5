import TinyNetModelKit
import XCTest

/// Codes on the phone are those of the desk.
final class CodesTests: XCTestCase {
  private func check(_ edge: TinyNetModelEdge, _ probes: [(real: Float, code: Int, back: Float)]) {
    for probe in probes {
      XCTAssertEqual(edge.code(probe.real), probe.code, "the code of \(probe.real)")
      XCTAssertEqual(edge.real(probe.code), probe.back, "what \(probe.code) stands for")
    }
    XCTAssertEqual(edge.code(.nan), edge.low)
  }

  func testInput0() {
    check(TinyNetModelCodes.input0, [
      (Float(bitPattern: 0x3f900000), 7, Float(bitPattern: 0x3f800000)),
      (Float(bitPattern: 0xc2200000), -128, Float(bitPattern: 0xc2030000)),
    ])
  }

  func testOutput0() {
    check(TinyNetModelCodes.output0, [
      (Float(bitPattern: 0x3f900000), 7, Float(bitPattern: 0x3f800000)),
      (Float(bitPattern: 0xc2200000), -128, Float(bitPattern: 0xc2030000)),
    ])
  }

  func testRawValues() {
    XCTAssertEqual(
      TinyNetModelCodes.normalized([Float](repeating: 0.0, count: 2)),
      [Float(bitPattern: 0xbf800000), Float(bitPattern: 0xbf000000)])
    XCTAssertEqual(
      TinyNetModelCodes.normalized([Float](repeating: 1.0, count: 2)),
      [Float(bitPattern: 0xbf000000), Float(bitPattern: 0xbec00000)])
    XCTAssertEqual(
      TinyNetModelCodes.normalized([Float](repeating: 127.0, count: 2)),
      [Float(bitPattern: 0x427a0000), Float(bitPattern: 0x41760000)])
    XCTAssertEqual(
      TinyNetModelCodes.normalized([Float](repeating: 255.0, count: 2)),
      [Float(bitPattern: 0x42fd0000), Float(bitPattern: 0x41fb0000)])
  }

  func testTheFileIsNamed() {
    XCTAssertEqual(TinyNetModelCodes.sha256.count, 64)
  }
}
