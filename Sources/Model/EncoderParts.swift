/// What BERT and RoBERTa have beside the linear maps of their blocks, read from a checkpoint.

import Checkpoints
import Primitives
import Quantization

/// Weight and bias of a LayerNorm, `[hidden]` each.
struct LayerNorm: Sendable {
    let weight: [Float]
    let bias: [Float]
}

struct EncoderParts: Sendable {
    /// Position embeddings from a sequence's first token on, with the embedding of token type 0 added, `[positions, hidden]`.
    let positions: [Float]
    let embeddingNorm: LayerNorm
    /// Of each layer: after attention, and at its end.
    let norms: [(attention: LayerNorm, output: LayerNorm)]
    /// BERT's, `[hidden, hidden]` and `[hidden]`.
    let pooler: (weight: [Float], bias: [Float])?
    /// The checkpoint's own head, for as many labels as the task has, by map.
    let ownHead: [String: (weight: [Float], bias: [Float])]

    /// - Parameter head: the linear maps of the task's head
    init(_ source: WeightSource, _ encoder: EncoderConfiguration, head: [LinearMap]) throws(Failure) {
        let configuration = source.configuration
        let (hidden, path) = (configuration.hiddenSize, encoder.prefix + "embeddings.")
        let type = try source.floats(path + "token_type_embeddings.weight")[..<hidden]
        var positions = Array(
            try source.floats(path + "position_embeddings.weight")[(encoder.firstPosition * hidden)...])
        for index in positions.indices { positions[index] += type[index % hidden] }
        self.positions = positions
        func norm(_ name: String) throws(Failure) -> LayerNorm {
            LayerNorm(
                weight: try source.floats(name + "." + encoder.normWeightName),
                bias: try source.floats(name + "." + encoder.normBiasName))
        }
        func linear(_ map: LinearMap) throws(Failure) -> (weight: [Float], bias: [Float]) {
            (try source.weight(map), try source.floats(map.name + ".bias"))
        }
        embeddingNorm = try norm(path + "LayerNorm")
        var norms: [(attention: LayerNorm, output: LayerNorm)] = []
        for layer in 0..<configuration.layerCount {
            let path = encoder.prefix + "encoder.layer.\(layer)."
            norms.append((try norm(path + "attention.output.LayerNorm"), try norm(path + "output.LayerNorm")))
        }
        self.norms = norms
        if let map = configuration.pooler { pooler = try linear(map) } else { pooler = nil }
        var ownHead: [String: (weight: [Float], bias: [Float])] = [:]
        if source.checkpoint.headLabelCount == head.last?.outputs { for map in head { ownHead[map.name] = try linear(map) } }
        self.ownHead = ownHead
    }

    /// Bytes of everything here.
    var byteCount: Int {
        let linear = ownHead.values.reduce(0) { $0 + $1.weight.count + $1.bias.count }
        return 4
            * (positions.count + linear + (2 * norms.count + 1) * 2 * embeddingNorm.weight.count + (pooler?.weight.count ?? 0))
    }
}
