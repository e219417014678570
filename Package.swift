// swift-tools-version: 6.2
import PackageDescription

/// Every Swift target: warnings are errors, and imports do not leak from one file into another.
let strict: [SwiftSetting] = [
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("ExistentialAny"),
]

let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let grdb = Target.Dependency.product(name: "GRDB", package: "GRDB.swift")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let yams = Target.Dependency.product(name: "Yams", package: "Yams")

func library(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: strict)
}

func tests(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .testTarget(name: name, dependencies: dependencies + ["TestSupport"], swiftSettings: strict)
}

let package = Package(
    name: "tributary",
    products: [
        .executable(name: "tributary", targets: ["tributary"]),
        .executable(name: "tributary-coordinator", targets: ["tributary-coordinator"]),
        .executable(name: "tributary-client", targets: ["tributary-client"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
    ],
    targets: [
        // What everything stands on.
        .target(name: "CCryptography", cSettings: [.unsafeFlags(["-O3"])]),
        library("Primitives", ["CCryptography"]),
        .target(name: "CKernels", cSettings: [.unsafeFlags(["-O3", "-ffp-contract=off"])]),
        .systemLibrary(name: "COpenBLAS", providers: [.apt(["libopenblas-dev"])]),
        .systemLibrary(name: "CNNG", providers: [.apt(["libnng-dev"])]),

        // Numbers: matrices, files of weights, quantized formats, adapters as data.
        library("LinearAlgebra", ["Primitives", "CKernels", "COpenBLAS"]),
        library("Checkpoints", ["Primitives"]),
        library("Quantization", ["Primitives", "LinearAlgebra", "CKernels", "Checkpoints"]),
        library("Adapters", ["Primitives", "Checkpoints"]),

        // The client's engine: text to tokens to gradients.
        library("Tokenizers", ["Primitives"]),
        library("Datasets", ["Primitives", "Tokenizers"]),
        library("Model", ["Primitives", "LinearAlgebra", "CKernels", "Quantization", "Adapters", "Checkpoints"]),
        library(
            "Training",
            [
                "Primitives", "CKernels", "LinearAlgebra", "Quantization", "Adapters", "Checkpoints", "Tokenizers", "Datasets",
                "Model", "Plan", "Privacy",
            ]),

        // The federation: what is decided, what travels, who combines it.
        library("Plan", ["Primitives", "Checkpoints", "Adapters", "UpdateCodec", "Privacy"]),
        library("PlanOptions", ["Primitives", "Plan", "UpdateCodec", argumentParser]),
        library("UpdateCodec", ["Primitives", "Adapters", "CKernels"]),
        library("Aggregation", ["Primitives", "Adapters", "Checkpoints", "LinearAlgebra", "Plan", "Privacy"]),
        library("Privacy", ["Primitives", "CCryptography", "CKernels"]),
        library("Wire", ["Primitives"]),
        library("Transport", ["Primitives", "Wire", "CNNG"]),
        library("CoordinatorCore", ["Primitives", "Adapters", "Plan", "UpdateCodec", "Privacy", "Aggregation", "Wire"]),
        library("CoordinatorStore", ["Primitives", "Adapters", "Plan", "CoordinatorCore", grdb]),
        library("ClientCore", ["Primitives", "Adapters", "Plan", "UpdateCodec", "Privacy", "Wire"]),
        library(
            "Simulation",
            ["Primitives", "Adapters", "Checkpoints", "Plan", "Wire", "CoordinatorCore", "CoordinatorStore", "ClientCore"]),
        // The engine as a client's work, in a process and in a simulation alike.
        library(
            "ClientEngine",
            [
                "Primitives", "LinearAlgebra", "Quantization", "Adapters", "Checkpoints", "Tokenizers", "Datasets", "Model",
                "Training", "Plan", "Privacy", "ClientCore",
            ]),

        // The demo's base model, as bytes inside the program.
        .target(name: "DemoModel", exclude: ["files"]),

        // What runs left behind, compared in one page.
        library("Reports", ["Primitives"]),

        // The three programs, and how they start, log, stop and end.
        library("Programs", ["Primitives", argumentParser, logging]),
        .executableTarget(
            name: "tributary",
            dependencies: [
                "DemoModel", "Primitives", "CKernels", "LinearAlgebra", "Checkpoints", "Quantization", "Adapters", "Tokenizers",
                "Datasets",
                "Model",
                "Training", "Plan", "PlanOptions", "UpdateCodec", "Privacy", "CoordinatorCore", "CoordinatorStore", "ClientCore",
                "ClientEngine", "Simulation", "Reports",
                "Programs", argumentParser, logging,
            ],
            swiftSettings: strict),
        .executableTarget(
            name: "tributary-coordinator",
            dependencies: [
                "Primitives", "Checkpoints", "Adapters", "Plan", "PlanOptions", "Privacy", "Wire", "Transport", "CoordinatorCore",
                "CoordinatorStore", "Programs", argumentParser, logging, yams,
            ],
            path: "coordinator", swiftSettings: strict),
        .executableTarget(
            name: "tributary-client",
            dependencies: [
                "Primitives", "LinearAlgebra", "Checkpoints", "Adapters", "Datasets", "Training", "Plan", "Privacy", "Wire",
                "Transport",
                "ClientCore", "ClientEngine", "Programs", argumentParser, logging,
            ],
            path: "client", swiftSettings: strict),

        // Tests.
        .target(
            name: "TestSupport", dependencies: ["Primitives", "Checkpoints", "CoordinatorCore"], path: "Tests/TestSupport",
            swiftSettings: strict),
        tests(
            "FederationTests",
            [
                "Primitives", "Adapters", "Checkpoints", "Plan", "UpdateCodec", "Wire", "CoordinatorCore", "CoordinatorStore",
                "ClientCore", "Simulation", "Privacy", "Aggregation",
            ]),
        tests("PrivacyTests", ["Primitives", "CCryptography", "CKernels", "Privacy"]),
        tests("PrimitivesTests", ["Primitives", "CCryptography", "Adapters", "Plan", "Checkpoints"]),
        tests("CheckpointsTests", ["Primitives", "Checkpoints"]),
        tests(
            "ModelTests", ["Primitives", "LinearAlgebra", "CKernels", "Checkpoints", "Quantization", "Adapters", "Model"]),
        tests("QuantizationTests", ["Primitives", "LinearAlgebra", "Checkpoints", "Quantization", "Plan"]),
        tests("AdaptersTests", ["Primitives", "Checkpoints", "Adapters"]),
        tests("UpdateCodecTests", ["Primitives", "CKernels", "Adapters", "Checkpoints", "UpdateCodec"]),
        tests(
            "AggregationTests",
            ["Primitives", "LinearAlgebra", "Adapters", "Checkpoints", "Plan", "UpdateCodec", "Aggregation"]),
        tests("LinearAlgebraTests", ["Primitives", "LinearAlgebra"]),
        tests("ReportTests", ["Primitives", "Reports"]),
        tests("WireTests", ["Primitives", "Wire"]),
        tests("TransportTests", ["Primitives", "Wire", "Transport"]),
        tests("DeployTests", ["Plan", "UpdateCodec", "Transport", yams]),
        tests("TidyTests", ["Primitives"]),
        tests("TokenizersTests", ["Primitives", "Tokenizers"]),
        tests("DatasetsTests", ["Primitives", "Tokenizers", "Datasets"]),
        tests(
            "TrainingTests",
            [
                "Primitives", "Checkpoints", "LinearAlgebra", "Quantization", "Adapters", "Tokenizers", "Datasets", "Model",
                "Training", "Plan", "Privacy",
            ]),
        tests(
            "GGUFTests",
            [
                "Primitives", "LinearAlgebra", "Checkpoints", "Quantization", "Adapters", "Tokenizers", "Datasets", "Model",
                "Plan",
                "Training",
            ]),
        tests("CommandTests", ["Primitives", "Checkpoints", "Programs"]),
        tests(
            "EngineFederationTests",
            [
                "Primitives", "LinearAlgebra", "Quantization", "Checkpoints", "Adapters", "Datasets", "Model", "Training", "Plan",
                "Wire", "CoordinatorCore", "ClientCore", "ClientEngine", "Simulation",
            ]),
        tests("ProgramTests", ["Primitives", "Plan", "PlanOptions", "Wire", "Transport"]),
    ]
)

// `make fuzz` builds one more program, with libFuzzer, from the folder Fuzz, and with it only the libraries that it tests,
// which are listed here: the rest of the package does not exist then.
if Context.environment["TRIBUTARY_FUZZ"] != nil {
    let fuzzer = Target.executableTarget(
        name: "tributary-fuzz",
        dependencies: [
            "Primitives", "Adapters", "UpdateCodec", "Wire", "LinearAlgebra", "Checkpoints", "Quantization", "Tokenizers",
            "Datasets",
        ],
        path: "Fuzz",
        swiftSettings: strict)
    var needed: [Target] = [fuzzer]
    var index = 0
    while index < needed.count {
        for case .byNameItem(let name, _) in needed[index].dependencies where !needed.contains(where: { $0.name == name }) {
            needed += package.targets.filter { $0.name == name }
        }
        index += 1
    }
    package.targets = needed
    package.products = [.executable(name: "tributary-fuzz", targets: ["tributary-fuzz"])]
    package.dependencies = []
}
