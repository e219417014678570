/// What `config.json` and `generation_config.json` say about a model: everything its computation depends on.

import Primitives

/// A family of transformer that Tributary runs. Names are Hugging Face's `model_type`.
public enum Architecture: String, Codable, Sendable, CaseIterable {
    /// Llama 1 to 3, SmolLM, TinyLlama, and Mistral without sliding window.
    case llama
    /// Llama with biases on q, k and v.
    case qwen2
    /// Llama with a norm on each head's q and k.
    case qwen3
    /// BERT, and sentence encoders made of it.
    case bert
    /// BERT with positions counted from the pad token on.
    case roberta
}

/// How rotary positions are stretched beyond the length of pretraining.
public enum RopeScaling: Equatable, Sendable {
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, between them interpolated.
    case llama3(factor: Double, lowFrequencyFactor: Double, highFrequencyFactor: Double, originalMaximumPositions: Int)
    /// Every frequency divided by `factor`.
    case linear(factor: Double)

    /// A frequency in radians a position, stretched.
    ///
    /// Llama 3.1 keeps short wavelengths, divides long ones by the factor, and interpolates between the two
    /// (transformers, `_compute_llama3_parameters`).
    public func scaled(_ frequency: Double) -> Double {
        switch self {
        case .linear(let factor): return frequency / factor
        case .llama3(let factor, let low, let high, let original):
            let wavelength = 2 * Double.pi / frequency
            if wavelength > Double(original) / low { return frequency / factor }
            if wavelength < Double(original) / high { return frequency }
            let smooth = (Double(original) / wavelength - low) / (high - low)
            return (1 - smooth) * frequency / factor + smooth * frequency
        }
    }
}

/// A linear map's weights as bitsandbytes stores them.
public struct StoredQuantization: Equatable, Sendable {
    /// "nf4", "fp4", or "int8" (LLM.int8).
    public let type: String
    /// Module names left as they were, such as `lm_head`.
    public let skippedModules: [String]
}

public struct ModelConfiguration: Sendable, Equatable {
    public var architecture: Architecture
    public var vocabularySize: Int
    public var hiddenSize: Int
    public var intermediateSize: Int
    public var layerCount: Int
    public var headCount: Int
    public var keyValueHeadCount: Int
    /// Floats of one head's q, k or v; even.
    public var headSize: Int
    /// The longest sequence in tokens.
    public var maximumPositions: Int
    /// 0 in an encoder, as is `ropeTheta`: it has neither RMS norms nor rotary positions.
    public var rmsNormEpsilon: Float
    public var ropeTheta: Double
    /// Nil: positions as they are.
    public var ropeScaling: RopeScaling?
    /// The head is the embedding's transpose.
    public var tieWordEmbeddings: Bool
    /// Biases on q, k and v; see `outputBias` for o.
    public var attentionBias: Bool
    /// Biases on gate, up and down.
    public var mlpBias: Bool
    public var beginTokens: Int?
    /// The first ends a training example; any of them ends generation.
    public var endTokens: [Int]
    public var padToken: Int?
    /// Nil: the checkpoint's linear maps are dense.
    public var quantization: StoredQuantization?
    /// Nil for causal models.
    public var encoder: EncoderConfiguration?

    /// A bias on o: Llama's and Qwen3's `attention_bias` covers o, Qwen2's biases do not.
    public var outputBias: Bool { attentionBias && architecture != .qwen2 }
    /// A norm on each head's q and k.
    public var queryKeyNorm: Bool { architecture == .qwen3 }

    /// The linear maps of the blocks in model order: q, k, v, o, gate, up, down of each layer; of an encoder's query, key,
    /// value, attention.output.dense, intermediate.dense, output.dense.
    public var linearMaps: [LinearMap] {
        if let encoder { return encoderMaps(encoder) }
        return (0..<layerCount).flatMap { layer -> [LinearMap] in
            let path = "model.layers.\(layer)."
            let queries = headCount * headSize
            let keys = keyValueHeadCount * headSize
            return [
                LinearMap(name: path + "self_attn.q_proj", outputs: queries, inputs: hiddenSize),
                LinearMap(name: path + "self_attn.k_proj", outputs: keys, inputs: hiddenSize),
                LinearMap(name: path + "self_attn.v_proj", outputs: keys, inputs: hiddenSize),
                LinearMap(name: path + "self_attn.o_proj", outputs: hiddenSize, inputs: queries),
                LinearMap(name: path + "mlp.gate_proj", outputs: intermediateSize, inputs: hiddenSize),
                LinearMap(name: path + "mlp.up_proj", outputs: intermediateSize, inputs: hiddenSize),
                LinearMap(name: path + "mlp.down_proj", outputs: hiddenSize, inputs: intermediateSize),
            ]
        }
    }

    /// Whether the linear map of this name has a bias beside its weight.
    public func hasBias(_ map: LinearMap) -> Bool {
        switch map.moduleName {
        case "q_proj", "k_proj", "v_proj": attentionBias
        case "o_proj": outputBias
        default: mlpBias
        }
    }

    /// Every tensor beside the linear maps' weights: embeddings, norms, biases, untied head, pooler. A classifier's own head is
    /// not among them.
    public var denseTensors: [(name: String, shape: [Int])] {
        if let encoder { return encoderTensors(encoder) }
        var all: [(name: String, shape: [Int])] = [("model.embed_tokens.weight", [vocabularySize, hiddenSize])]
        for layer in 0..<layerCount {
            let path = "model.layers.\(layer)."
            all.append((path + "input_layernorm.weight", [hiddenSize]))
            all.append((path + "post_attention_layernorm.weight", [hiddenSize]))
            if queryKeyNorm {
                all.append((path + "self_attn.q_norm.weight", [headSize]))
                all.append((path + "self_attn.k_norm.weight", [headSize]))
            }
        }
        for map in linearMaps where hasBias(map) { all.append((map.name + ".bias", [map.outputs])) }
        all.append(("model.norm.weight", [hiddenSize]))
        if !tieWordEmbeddings { all.append(("lm_head.weight", [vocabularySize, hiddenSize])) }
        return all
    }

    /// Numbers that the model holds, the tied head counted once.
    public var parameterCount: Int {
        linearMaps.reduce(0) { $0 + $1.outputs * $1.inputs } + denseTensors.reduce(0) { $0 + $1.shape.reduce(1, *) }
    }
}
