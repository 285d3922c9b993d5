// swift-tools-version: 5.9
import PackageDescription

// LiteRT: a checkout with its prebuilt frameworks, named by LITERT_PACKAGE, else its repository. See README.md.
let litert: Package.Dependency
if let path = Context.environment["LITERT_PACKAGE"] {
  litert = .package(name: "LiteRT", path: path)
} else {
  litert = .package(url: "https://github.com/google-ai-edge/LiteRT.git", branch: "main")
}

let package = Package(
  name: "TinyNetModelKit",
  platforms: [.iOS(.v15), .macOS(.v12)],
  products: [.library(name: "TinyNetModelKit", targets: ["TinyNetModelKit"])],
  dependencies: [litert],
  targets: [
    .target(
      name: "TinyNetModelKit",
      dependencies: [.product(name: "LiteRT", package: "LiteRT")],
      resources: [.copy("Resources/tiny_net.tflite")]
    ),
    .testTarget(
      name: "TinyNetModelKitTests",
      dependencies: ["TinyNetModelKit", .product(name: "LiteRT", package: "LiteRT")],
      resources: [.copy("Resources/tiny_net_golden.json")]
    ),
  ]
)
