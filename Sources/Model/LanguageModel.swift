/// The frozen base model: what every client on a machine shares.

import Checkpoints
import LinearAlgebra
import Primitives
import Quantization

/// A model's weights (Llama, Qwen2, Qwen3, BERT, RoBERTa), read-only, in their stored or quantized form.
public final class LanguageModel: Sendable {
    /// The linear maps of a block, in the order of `ModelConfiguration.linearMaps`.
    struct BlockMaps: Sendable {
        let weights: [QuantizedMatrix]
        let biases: [[Float]?]
    }

    /// What a causal block has beside its linear maps.
    struct Layer: Sendable {
        /// `[hidden]`, before attention and before the gated part.
        let attentionNorm: [Float]
        let gatedNorm: [Float]
        /// `[headSize]`; nil except in Qwen3.
        let queryNorm: [Float]?
        let keyNorm: [Float]?
    }

    struct CausalParts: Sendable {
        let layers: [Layer]
        let finalNorm: [Float]
        /// The embedding where the two are tied.
        let head: QuantizedMatrix
    }

    /// What the kinds of models do not share.
    enum Parts: Sendable {
        case causal(CausalParts)
        case encoder(EncoderParts)
    }

    public let configuration: ModelConfiguration
    public let task: ModelTask
    /// In model order; see `ModelConfiguration.linearMaps`.
    public let linearMaps: [LinearMap]
    /// The maps of a classifier's head; empty for causal models.
    public let headMaps: [LinearMap]
    let blocks: [BlockMaps]
    /// `[vocabulary, hidden]`, as stored.
    let embedding: QuantizedMatrix
    let parts: Parts
    /// What the products with these weights are computed in.
    public let compute: ComputeType

    /// Loads a checkpoint, quantizing its linear maps where `quantization` asks for it. Embeddings and a
    /// causal head stay as they are stored; pooler and classifier are decoded to float32.
    ///
    /// - Parameters:
    ///   - compute: what products are computed in; `auto` is decided by the processor and by `quantization`
    ///   - task: what the model is for; an encoder classifies, the others predict tokens
    ///   - progress: called with the number of linear maps that are loaded and that there are
    /// - Throws: `Failure` that names the tensor, the option or the environment variable that is wrong
    public init(
        checkpoint: CheckpointFolder, quantization: WeightForm, compute: ComputeChoice = .float32, task: ModelTask = .causal,
        progress: ((Int, Int) -> Void)? = nil
    ) throws(Failure) {
        _ = try KernelPath.current()
        self.compute = try compute.type(holdsFloat32: quantization == .none)
        let configuration = checkpoint.configuration
        self.configuration = configuration
        self.task = task
        let name = "\(checkpoint.path) is a \(configuration.architecture.rawValue) model"
        switch task {
        case .causal:
            guard !configuration.isEncoder else {
                throw Failure(.usage, "\(name), an encoder that classifies texts and predicts no tokens: use --task classify")
            }
            headMaps = []
        case .classify(let labelCount):
            guard configuration.isEncoder else {
                throw Failure(.usage, "\(name), which predicts tokens: --task classify needs a BERT or RoBERTa checkpoint")
            }
            guard labelCount >= 2 else {
                throw Failure(.usage, "\(labelCount) labels are too few: classification needs at least 2")
            }
            headMaps = configuration.head(labelCount: labelCount)
        }
        let maps = configuration.linearMaps
        linearMaps = maps
        let source = WeightSource(checkpoint: checkpoint)
        let perBlock = maps.count / configuration.layerCount
        var blocks: [BlockMaps] = []
        for layer in 0..<configuration.layerCount {
            var weights: [QuantizedMatrix] = []
            var biases: [[Float]?] = []
            for map in maps[layer * perBlock..<(layer + 1) * perBlock] {
                weights.append(try QuantizedMatrix.load(map: map, from: checkpoint, as: quantization))
                biases.append(configuration.hasBias(map) ? try source.floats(map.name + ".bias") : nil)
                progress?(layer * perBlock + weights.count, maps.count)
            }
            blocks.append(BlockMaps(weights: weights, biases: biases))
        }
        self.blocks = blocks
        if let encoder = configuration.encoder {
            embedding = try source.matrix(encoder.prefix + "embeddings.word_embeddings.weight")
            parts = .encoder(try EncoderParts(source, encoder, head: headMaps))
        } else {
            embedding = try source.matrix("model.embed_tokens.weight")
            parts = .causal(try CausalParts(source, embedding: embedding))
        }
    }

    /// Rows of the word embedding, `[tokens, hidden]`.
    func embed(_ tokens: [Int32], into target: UnsafeMutablePointer<Float>) {
        let hidden = configuration.hiddenSize
        forTokens(tokens.count) { range in
            for index in range {
                let row = Int(tokens[index])
                embedding.decode(rows: row..<row + 1, columns: 0..<hidden, into: target + index * hidden, stride: hidden)
            }
        }
        // The system maps pages around each row: after many batches the whole file would count as memory in use.
        if tokens.count >= 64, !configuration.tieWordEmbeddings || configuration.isEncoder { embedding.release() }
    }

    /// Bytes of all weights as they are held; mapped files count with what is read of them.
    public var byteCount: Int {
        let maps = blocks.reduce(0) { $0 + $1.weights.reduce(0) { $0 + $1.byteCount } }
        let others =
            switch parts {
            case .causal(let parts): configuration.tieWordEmbeddings ? 0 : parts.head.byteCount
            case .encoder(let parts): parts.byteCount
            }
        return maps + embedding.byteCount + others
    }

    /// Bytes of the embedding, which are the head's too where the two are tied.
    public var embeddingByteCount: Int { embedding.byteCount }

    /// How the linear maps are held, such as "nf4" or "bf16".
    public var weightFormat: String { blocks.first?.weights.first?.formatName ?? embedding.formatName }

    /// The frozen weight of a linear map, for starts that decompose it; nil if there is none of this name.
    public func weight(of map: String) -> QuantizedMatrix? {
        guard let index = linearMaps.firstIndex(where: { $0.name == map }) else { return nil }
        return blocks[index / mapsPerBlock].weights[index % mapsPerBlock]
    }

    /// The checkpoint's own head, by map; empty if it has none for as many labels.
    var ownHead: [String: (weight: [Float], bias: [Float])] {
        guard case .encoder(let parts) = parts else { return [:] }
        return parts.ownHead
    }

    /// Linear maps of each block.
    var mapsPerBlock: Int { linearMaps.count / blocks.count }
}

/// Reads what stays as it is stored.
struct WeightSource {
    let checkpoint: CheckpointFolder
    var configuration: ModelConfiguration { checkpoint.configuration }

    /// - Throws: `Failure` if a value is not finite
    func floats(_ name: String) throws(Failure) -> [Float] {
        try finite(name, try checkpoint.tensor(name).floats())
    }

    /// The weight `[outputs, inputs]` of a map that is held as floats, decoded if the checkpoint has it packed.
    ///
    /// - Throws: `Failure` if a value is not finite
    func weight(_ map: LinearMap) throws(Failure) -> [Float] {
        let name = map.name + ".weight"
        guard checkpoint.isQuantized(map.name) else { return try floats(name) }
        return try finite(name, try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored).decoded())
    }

    private func finite(_ name: String, _ values: [Float]) throws(Failure) -> [Float] {
        if let index = values.firstIndex(where: { !$0.isFinite }) {
            throw Failure(
                .badData, "\(checkpoint.path): tensor \(name) holds \(values[index]) at \(index); fetch the checkpoint again")
        }
        return values
    }

    /// A matrix `[vocabulary, hidden]`.
    func matrix(_ name: String) throws(Failure) -> QuantizedMatrix {
        try QuantizedMatrix(
            stored: try checkpoint.tensor(name), rows: configuration.vocabularySize, columns: configuration.hiddenSize)
    }
}

extension LanguageModel.CausalParts {
    init(_ source: WeightSource, embedding: QuantizedMatrix) throws(Failure) {
        let configuration = source.configuration
        var layers: [LanguageModel.Layer] = []
        for layer in 0..<configuration.layerCount {
            let path = "model.layers.\(layer)."
            layers.append(
                LanguageModel.Layer(
                    attentionNorm: try source.floats(path + "input_layernorm.weight"),
                    gatedNorm: try source.floats(path + "post_attention_layernorm.weight"),
                    queryNorm: configuration.queryKeyNorm ? try source.floats(path + "self_attn.q_norm.weight") : nil,
                    keyNorm: configuration.queryKeyNorm ? try source.floats(path + "self_attn.k_norm.weight") : nil))
        }
        self.init(
            layers: layers, finalNorm: try source.floats("model.norm.weight"),
            head: configuration.tieWordEmbeddings ? embedding : try source.matrix("lm_head.weight"))
    }
}
