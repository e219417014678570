/// An adapter as llama.cpp reads it: a GGUF file with `lora_a` and `lora_b` of each adapted weight.
///
/// llama.cpp adds (alpha / r) B A to a weight, r being the columns of its B (src/llama-adapter.cpp). Rows of B belong to rows of
/// the weight, so that those of q and k of a llama are turned as its converter turns the weights.

import Checkpoints
import Primitives

extension PEFTAdapter {
    /// Writes the adapter for the base that `configuration` describes.
    ///
    /// With one scale s and one rank r for all maps, alpha is s r, whether s came from alpha / r or from alpha / sqrt(r);
    /// otherwise alpha is the largest rank, and B takes up the rest. An s of 0 goes into B too: llama.cpp takes an alpha of 0
    /// for one that is not said, and adds B A as it is.
    /// - Parameter name: what `general.name` says
    /// - Throws: `Failure` if the adapter belongs to another base, or llama.cpp has no adapters for it, or if something else
    ///   than a GGUF adapter stands at `path`
    public func writeGGUF(path: String, configuration: ModelConfiguration, name: String) throws(Failure) {
        guard head.isEmpty else {
            throw Failure(.usage, "\(origin) belongs to a classifier, for which llama.cpp has no adapters")
        }
        guard !configuration.isEncoder else {
            throw Failure(
                .usage,
                "the base is a \(configuration.architecture.rawValue) model, an encoder, for which llama.cpp has no adapters"
            )
        }
        try Self.checkReplaceableGGUF(path)
        let entries = try entries(for: configuration.linearMaps)
        guard let first = entries.first else { throw Failure(.badData, "\(origin) holds no factors: there is nothing to write") }
        let isUniform = first.scale != 0 && entries.allSatisfy { $0.rank == first.rank && $0.scale == first.scale }
        let alpha = isUniform ? first.scale * Float(first.rank) : Float(entries.reduce(0) { max($0, $1.rank) })
        var tensors: [GGUFTensor] = []
        for entry in entries {
            guard let weight = GGUFModel.ggufName(entry.map + ".weight") else {
                throw Failure(
                    .usage, "\(origin) adapts \(entry.map), for which GGUF has no name: export adapters of causal language models"
                )
            }
            let factor = isUniform ? 1 : entry.scale * Float(entry.rank) / alpha
            var b = entry.b
            if factor != 1 { b = b.map { $0 * factor } }
            if let size = configuration.interleavedHeadSize(of: entry.map) {
                var turned = b
                for row in 0..<entry.outputs {
                    let stored = storedRow(row, interleavedHeadSize: size)
                    for column in 0..<entry.rank { turned[stored * entry.rank + column] = b[row * entry.rank + column] }
                }
                b = turned
            }
            tensors.append(GGUFTensor(name: weight + ".lora_a", shape: [entry.rank, entry.inputs], floats: entry.a))
            tensors.append(GGUFTensor(name: weight + ".lora_b", shape: [entry.outputs, entry.rank], floats: b))
        }
        try Checkpoints.writeGGUF(
            path,
            metadata: [
                ("general.architecture", .text(configuration.architecture.rawValue)), ("general.type", .text("adapter")),
                ("general.name", .text(name)), ("adapter.type", .text("lora")), ("adapter.lora.alpha", .float32(alpha)),
            ], tensors: tensors)
    }

    /// - Throws: `Failure(.cannotCreate)` if something else than a GGUF adapter stands at `path`, such as a model
    private static func checkReplaceableGGUF(_ path: String) throws(Failure) {
        guard fileExists(path) else { return }
        if let old = try? GGUFFile(path: path), case .text("adapter")? = old.metadata["general.type"] { return }
        throw Failure(.cannotCreate, "\(path) exists and is no GGUF adapter, which would be lost: name another output")
    }
}
