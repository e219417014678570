/// The frozen base model: what every client on a machine shares.

import Checkpoints
import LinearAlgebra
import Primitives
import Quantization

/// A causal language model's weights (Llama, Qwen2, Qwen3), read-only, in their stored or quantized form.
public final class LanguageModel: Sendable {
    /// The maps of a block in model order.
    enum Place: Int, CaseIterable {
        case query, key, value, output, gate, up, down
    }

    struct Layer: Sendable {
        /// `[hidden]`, before attention and before the gated part.
        let attentionNorm: [Float]
        let gatedNorm: [Float]
        /// `[headSize]`; nil except in Qwen3.
        let queryNorm: [Float]?
        let keyNorm: [Float]?
        /// In the order of `Place`.
        let weights: [QuantizedMatrix]
        let biases: [[Float]?]
    }

    public let configuration: ModelConfiguration
    /// In model order: q, k, v, o, gate, up, down of each layer.
    public let linearMaps: [LinearMap]
    let layers: [Layer]
    /// `[vocabulary, hidden]`, as stored.
    let embedding: QuantizedMatrix
    /// The same as `embedding` where the two are tied.
    let head: QuantizedMatrix
    let finalNorm: [Float]
    /// What the products with these weights are computed in.
    public let compute: ComputeType

    /// Loads a checkpoint, quantizing its linear maps where `quantization` asks for it. Embedding and head stay as
    /// they are stored.
    ///
    /// - Parameters:
    ///   - compute: what products are computed in; `auto` is decided by the processor and by `quantization`
    ///   - progress: called with the number of linear maps that are loaded and that there are
    /// - Throws: `Failure` that names the tensor, the option or the environment variable that is wrong
    public init(
        checkpoint: CheckpointFolder, quantization: WeightForm, compute: ComputeChoice = .float32,
        progress: ((Int, Int) -> Void)? = nil
    ) throws(Failure) {
        _ = try KernelPath.current()
        self.compute = try compute.type(holdsFloat32: quantization == .none)
        let configuration = checkpoint.configuration
        self.configuration = configuration
        let maps = configuration.linearMaps
        linearMaps = maps
        func floats(_ name: String) throws(Failure) -> [Float] {
            let values = try checkpoint.tensor(name).floats()
            if let index = values.firstIndex(where: { !$0.isFinite }) {
                throw Failure(
                    .badData, "\(checkpoint.path): tensor \(name) holds \(values[index]) at \(index); fetch the checkpoint again")
            }
            return values
        }
        func matrix(_ name: String) throws(Failure) -> QuantizedMatrix {
            try QuantizedMatrix(
                stored: try checkpoint.tensor(name), rows: configuration.vocabularySize, columns: configuration.hiddenSize)
        }
        embedding = try matrix("model.embed_tokens.weight")
        head = configuration.tieWordEmbeddings ? embedding : try matrix("lm_head.weight")
        finalNorm = try floats("model.norm.weight")
        var layers: [Layer] = []
        let perLayer = Place.allCases.count
        for layer in 0..<configuration.layerCount {
            let path = "model.layers.\(layer)."
            var weights: [QuantizedMatrix] = []
            var biases: [[Float]?] = []
            for map in maps[layer * perLayer..<(layer + 1) * perLayer] {
                weights.append(try QuantizedMatrix.load(map: map, from: checkpoint, as: quantization))
                biases.append(configuration.hasBias(map) ? try floats(map.name + ".bias") : nil)
                progress?(layer * perLayer + weights.count, maps.count)
            }
            layers.append(
                Layer(
                    attentionNorm: try floats(path + "input_layernorm.weight"),
                    gatedNorm: try floats(path + "post_attention_layernorm.weight"),
                    queryNorm: configuration.queryKeyNorm ? try floats(path + "self_attn.q_norm.weight") : nil,
                    keyNorm: configuration.queryKeyNorm ? try floats(path + "self_attn.k_norm.weight") : nil, weights: weights,
                    biases: biases))
        }
        self.layers = layers
    }

    /// Bytes of all weights as they are held; mapped files count with what is read of them.
    public var byteCount: Int {
        let maps = layers.reduce(0) { $0 + $1.weights.reduce(0) { $0 + $1.byteCount } }
        return maps + embedding.byteCount + (configuration.tieWordEmbeddings ? 0 : head.byteCount)
    }

    /// Bytes of the embedding, which are the head's too where the two are tied.
    public var embeddingByteCount: Int { embedding.byteCount }

    /// How the linear maps are held, such as "nf4" or "bf16".
    public var weightFormat: String { layers.first?.weights.first?.formatName ?? head.formatName }

    /// The frozen weight of a linear map, for starts that decompose it; nil if there is none of this name.
    public func weight(of map: String) -> QuantizedMatrix? {
        guard let index = linearMaps.firstIndex(where: { $0.name == map }) else { return nil }
        return layers[index / Place.allCases.count].weights[index % Place.allCases.count]
    }
}
