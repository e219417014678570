/// Options that say how much memory training may take, and what comes of them.

import Adapters
import ArgumentParser
import Checkpoints
import LinearAlgebra
import Model
import Plan
import Primitives
import Programs
import Quantization
import Training

struct MemoryOptions: ParsableArguments {
    @Option(name: .long, help: ByteSize.memoryLimitHelp)
    var memoryLimit: ByteSize?

    @Option(
        name: .long,
        help: ArgumentHelp(
            "What activations are kept in until the backward pass: auto (as --compute), float32 or bfloat16.", valueName: "type"))
    var savedActivations = "auto"

    /// What training on this base takes.
    /// - Throws: `Failure` if it does not fit into the limit, or an option is wrong or not possible on this base
    func plan(
        quantize: String, compute: String, of checkpoint: CheckpointFolder, specification: AdapterSpecification,
        settings: TrainingSettings,
        sequenceLength: Int
    ) throws(Failure) -> MemoryPlan {
        let weights = try choice("--quantize", quantize, WeightForm.self)
        let positions = checkpoint.configuration.maximumPositions
        try require(
            sequenceLength <= positions,
            "sequence-length is \(sequenceLength), but the model has only \(positions) positions: use at most that")
        try require(
            weights.format == nil || !checkpoint.configuration.linearMaps.contains { checkpoint.isQuantized($0.name) },
            "\(checkpoint.path) is quantized already, so that --quantize \(quantize) is not possible: use stored, or none for float32"
        )
        let compute = try choice("--compute", compute, ComputeChoice.self).type(holdsFloat32: weights == .none)
        let saved = try choice("--saved-activations", savedActivations, ComputeChoice.self)
        let training = MemoryPlan.Training(
            specification: specification, sequences: settings.batchSize, sequenceLength: sequenceLength,
            optimizerBytes: Optimizer.stateByteCount(
                settings.optimizer, tensorCounts: specification.trainedLayout.tensors.map(\.count)),
            weights: weights, compute: compute,
            savedActivations: saved == .auto ? compute : saved == .bfloat16 ? .bfloat16 : .float32)
        return try MemoryPlan(training, of: checkpoint, limit: memoryLimit?.bytes)
    }
}

extension MemoryPlan {
    /// One line for each part, and the sum.
    var table: String {
        func gib(_ bytes: Int) -> String { Readable.decimal(Double(bytes) / 0x1p30, 3) + " GiB" }
        let rows = parts.map { ($0.name + ($0.isMapped ? ", mapped" : ""), gib($0.bytes)) } + [("peak", gib(peak))]
        let width = rows.map(\.0.count).max() ?? 0
        let lines = rows.map { $0.0 + String(repeating: " ", count: width - $0.0.count + 2) + $0.1 }
        return lines.joined(separator: "\n") + "\n" + summary + "\n"
    }

    /// What was chosen.
    var summary: String {
        "\(tokensAtOnce) tokens at once, activations kept in \(savedActivations.rawValue); "
            + (savedBlocks == blockCount
                ? "no block runs twice" : "\(blockCount - savedBlocks) of \(blockCount) blocks run twice")
    }

    var json: [(String, JSONValue)] {
        [
            ("planned_gib", .number("\(Double(peak) / 0x1p30)")), ("tokens_at_once", .integer(tokensAtOnce)),
            ("saved_activations", .string(savedActivations.rawValue)), ("blocks", .integer(blockCount)),
            ("saved_blocks", .integer(savedBlocks)),
        ]
    }
}
