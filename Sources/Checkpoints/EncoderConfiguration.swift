/// What BERT and RoBERTa have beside the sizes that every transformer has, and their `config.json`.

import Primitives

/// What a model is used for.
public enum ModelTask: Sendable, Equatable {
    /// Predicts each token from the ones before it.
    case causal
    /// Says which of so many labels a text has.
    case classify(labelCount: Int)
}

public struct EncoderConfiguration: Sendable, Equatable {
    /// What of a sequence's last hidden states the classifier reads.
    public enum Summary: String, Sendable {
        /// The first token through the frozen pooler, a linear map and tanh: BertForSequenceClassification.
        case pooler
        /// The first token; the head itself is a linear map, tanh, and another: RobertaForSequenceClassification.
        case firstToken = "first token"
        /// The mean over the sequence's tokens: sentence encoders.
        case mean
    }

    public internal(set) var summary: Summary
    public internal(set) var layerNormEpsilon: Float
    public internal(set) var tokenTypeCount: Int
    /// Row of the position embeddings that a sequence's first token takes: 0, or RoBERTa's pad_token_id + 1.
    public internal(set) var firstPosition: Int
    /// What stands before the names of the encoder's tensors in this checkpoint: "bert.", "roberta." or nothing.
    public internal(set) var prefix: String
    /// Last components of a LayerNorm's two tensors: "gamma" and "beta" in old checkpoints.
    public internal(set) var normWeightName = "weight"
    public internal(set) var normBiasName = "bias"
    /// `id2label` in order, if it names every label from 0 on.
    public internal(set) var labels: [String]
}

extension ModelConfiguration {
    /// Whether it reads a text as a whole, for classification, and does not predict tokens.
    public var isEncoder: Bool { encoder != nil }

    /// The linear maps of the head, which every adapter method trains whole; empty for causal models.
    ///
    /// - Parameter labelCount: outputs of the last one
    public func head(labelCount: Int) -> [LinearMap] {
        switch encoder?.summary {
        case nil: []
        case .pooler, .mean: [LinearMap(name: "classifier", outputs: labelCount, inputs: hiddenSize)]
        case .firstToken:
            [
                LinearMap(name: "classifier.dense", outputs: hiddenSize, inputs: hiddenSize),
                LinearMap(name: "classifier.out_proj", outputs: labelCount, inputs: hiddenSize),
            ]
        }
    }

    /// BERT's frozen linear map before the classifier; nil where the head does without.
    public var pooler: LinearMap? {
        guard let encoder, encoder.summary == .pooler else { return nil }
        return LinearMap(name: encoder.prefix + "pooler.dense", outputs: hiddenSize, inputs: hiddenSize)
    }

    func encoderMaps(_ encoder: EncoderConfiguration) -> [LinearMap] {
        (0..<layerCount).flatMap { layer -> [LinearMap] in
            let path = encoder.prefix + "encoder.layer.\(layer)."
            return [
                LinearMap(name: path + "attention.self.query", outputs: hiddenSize, inputs: hiddenSize),
                LinearMap(name: path + "attention.self.key", outputs: hiddenSize, inputs: hiddenSize),
                LinearMap(name: path + "attention.self.value", outputs: hiddenSize, inputs: hiddenSize),
                LinearMap(name: path + "attention.output.dense", outputs: hiddenSize, inputs: hiddenSize),
                LinearMap(name: path + "intermediate.dense", outputs: intermediateSize, inputs: hiddenSize),
                LinearMap(name: path + "output.dense", outputs: hiddenSize, inputs: intermediateSize),
            ]
        }
    }

    /// Modules that hold a LayerNorm: that of the embeddings, then two a layer.
    func encoderNorms(_ encoder: EncoderConfiguration) -> [String] {
        [encoder.prefix + "embeddings.LayerNorm"]
            + (0..<layerCount).flatMap { layer in
                ["attention.output.LayerNorm", "output.LayerNorm"].map { encoder.prefix + "encoder.layer.\(layer)." + $0 }
            }
    }

    func encoderTensors(_ encoder: EncoderConfiguration) -> [(name: String, shape: [Int])] {
        let path = encoder.prefix + "embeddings."
        var all: [(name: String, shape: [Int])] = [
            (path + "word_embeddings.weight", [vocabularySize, hiddenSize]),
            (path + "position_embeddings.weight", [maximumPositions + encoder.firstPosition, hiddenSize]),
            (path + "token_type_embeddings.weight", [encoder.tokenTypeCount, hiddenSize]),
        ]
        for norm in encoderNorms(encoder) {
            all.append((norm + "." + encoder.normWeightName, [hiddenSize]))
            all.append((norm + "." + encoder.normBiasName, [hiddenSize]))
        }
        for map in linearMaps { all.append((map.name + ".bias", [map.outputs])) }
        if let pooler {
            all.append((pooler.name + ".weight", [pooler.outputs, pooler.inputs]))
            all.append((pooler.name + ".bias", [pooler.outputs]))
        }
        return all
    }

    /// Takes the names that the checkpoint's tensors have.
    ///
    /// Names without a prefix were saved by a class without a head, whatever `architectures` says: published sentence encoders
    /// often keep that of the model they were made from, such as RobertaForMaskedLM.
    mutating func useNames(of tensors: some Collection<String>) {
        guard var encoder else { return }
        let names = Set(tensors)
        encoder.prefix =
            names.contains(architecture.rawValue + ".embeddings.word_embeddings.weight") ? architecture.rawValue + "." : ""
        if encoder.prefix.isEmpty { encoder.summary = .mean }
        if names.contains(encoder.prefix + "embeddings.LayerNorm.gamma") {
            encoder.normWeightName = "gamma"
            encoder.normBiasName = "beta"
        }
        self.encoder = encoder
    }
}

extension ModelConfiguration {
    /// A BERT or RoBERTa configuration.
    init(encoder reader: KeyReader, _ architecture: Architecture) throws(Failure) {
        let json = reader.json
        let family = architecture == .bert ? "Bert" : "Roberta"
        let name = json["architectures"]?.elements?.compactMap(\.text).first
        let summary: EncoderConfiguration.Summary
        switch name {
        case nil, family + "Model": summary = .mean
        case family + "ForSequenceClassification", family + "ForMaskedLM", family + "ForPreTraining",
            family + "ForNextSentencePrediction":
            summary = architecture == .bert ? .pooler : .firstToken
        default:
            throw reader.refused(
                "architectures is \(name ?? "")",
                "only \(family)Model, \(family)ForMaskedLM and \(family)ForSequenceClassification are supported")
        }
        for key in ["is_decoder", "add_cross_attention"] where try reader.flag(key) {
            throw reader.refused("\(key) is true", "only encoders are supported")
        }
        if reader.value("position_embedding_type") != nil {
            let type = try reader.text("position_embedding_type")
            guard type == "absolute" else {
                throw reader.refused("position_embedding_type is \(type)", "only absolute is supported")
            }
        }
        let activation = try reader.text("hidden_act")
        guard activation == "gelu" else { throw reader.refused("hidden_act is \(activation)", "only gelu is supported") }
        let hidden = try reader.size("hidden_size")
        let heads = try reader.size("num_attention_heads", limit: 1 << 16)
        guard hidden % heads == 0 else {
            throw reader.refused("hidden_size \(hidden) is no multiple of num_attention_heads \(heads)", "the file is wrong")
        }
        let vocabulary = try reader.size("vocab_size")
        let positions = try reader.size("max_position_embeddings")
        let pad = json["pad_token_id"]?.int ?? (architecture == .bert ? 0 : 1)
        guard 0..<vocabulary ~= pad else {
            throw reader.refused("pad_token_id is \(pad)", "it is no token id below vocab_size \(vocabulary)")
        }
        // RoBERTa counts positions from pad_token_id + 1 on (transformers, create_position_ids_from_input_ids).
        let first = architecture == .bert ? 0 : pad + 1
        guard positions > first else {
            throw reader.refused("max_position_embeddings is \(positions)", "the first position is \(first)")
        }
        let epsilon = try reader.real("layer_norm_eps")
        guard epsilon > 0, epsilon < 1 else {
            throw reader.refused("layer_norm_eps is \(epsilon)", "it is a small positive number")
        }
        let prefix = summary == .mean ? "" : architecture.rawValue + "."
        let quantization = try Self.storedQuantization(reader)
        self.init(
            architecture: architecture, vocabularySize: vocabulary, hiddenSize: hidden,
            intermediateSize: try reader.size("intermediate_size"),
            layerCount: try reader.size("num_hidden_layers", limit: 4096), headCount: heads, keyValueHeadCount: heads,
            headSize: hidden / heads, maximumPositions: positions - first, rmsNormEpsilon: 0, ropeTheta: 0, ropeScaling: nil,
            tieWordEmbeddings: true, attentionBias: true, mlpBias: true, beginTokens: nil, endTokens: [], padToken: pad,
            quantization: quantization,
            encoder: EncoderConfiguration(
                summary: summary, layerNormEpsilon: Float(epsilon),
                tokenTypeCount: try reader.size("type_vocab_size"), firstPosition: first, prefix: prefix,
                labels: Self.labels(json["id2label"])))
    }

    /// The labels that `id2label` names, in the order of their numbers; none if a number is left out.
    private static func labels(_ table: JSONValue?) -> [String] {
        guard let members = table?.members else { return [] }
        var names: [Int: String] = [:]
        for member in members {
            guard let number = Int(member.key), let name = member.value.text else { return [] }
            names[number] = name
        }
        let labels = (0..<names.count).compactMap { names[$0] }
        return labels.count == members.count ? labels : []
    }
}
