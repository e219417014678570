/// GGUF files for tests: golden ones, and golden Hugging Face models converted here as llama.cpp's converter does it.

import Checkpoints
import Glibc
import Model
import Primitives
import TestSupport
import Testing

enum Sample {
    /// Files that the `gguf` package wrote; they belong to the tests and not to a set of golden models, so that
    /// `TRIBUTARY_GOLDEN` does not move them.
    static func path(_ name: String) -> String { Golden.repository + "/Tests/Golden/gguf/" + name }

    /// The tokens and logits that transformers gives for a golden GGUF file.
    static func expected(_ name: String) throws -> (batch: TokenBatch, logits: [Float]) {
        let file = try SafetensorsFile(path: path(name + ".safetensors"))
        let ids = try #require(file.tensors["input_ids"])
        let (count, length) = (ids.shape[0], ids.shape[1])
        let batch = TokenBatch(
            tokens: try ids.integers().map(Int32.init), starts: (0...count).map { $0 * length },
            targets: (0..<count * length).map { $0 % length > 0 })
        return (batch, try #require(file.tensors["logits"]).floats())
    }
}

/// A model's parts, to be changed before they are written.
struct SampleModel {
    var metadata: [(key: String, value: GGUFEntry)]
    var tensors: [GGUFTensor]

    mutating func set(_ key: String, _ value: GGUFEntry?) {
        metadata.removeAll { $0.key == key }
        if let value { metadata.append((key, value)) }
    }

    func write(_ path: String) throws { try writeGGUF(path, metadata: metadata, tensors: tensors) }

    /// A folder's model in a type of floats.
    init(converting checkpoint: CheckpointFolder, type: TensorType = .f32) throws {
        let configuration = checkpoint.configuration
        let name = configuration.architecture.rawValue
        metadata = [
            ("general.architecture", .text(name)), ("general.name", .text("sample")),
            (name + ".block_count", .uint32(UInt32(configuration.layerCount))),
            (name + ".context_length", .uint32(UInt32(configuration.maximumPositions))),
            (name + ".embedding_length", .uint32(UInt32(configuration.hiddenSize))),
            (name + ".feed_forward_length", .uint32(UInt32(configuration.intermediateSize))),
            (name + ".attention.head_count", .uint32(UInt32(configuration.headCount))),
            (name + ".attention.head_count_kv", .uint32(UInt32(configuration.keyValueHeadCount))),
            (name + ".attention.key_length", .uint32(UInt32(configuration.headSize))),
            (name + ".attention.value_length", .uint32(UInt32(configuration.headSize))),
            (name + ".rope.dimension_count", .uint32(UInt32(configuration.headSize))),
            (name + ".attention.layer_norm_rms_epsilon", .float32(configuration.rmsNormEpsilon)),
            (name + ".rope.freq_base", .float32(Float(configuration.ropeTheta))),
        ]
        if let token = configuration.beginTokens { metadata.append(("tokenizer.ggml.bos_token_id", .uint32(UInt32(token)))) }
        if let token = configuration.endTokens.first {
            metadata.append(("tokenizer.ggml.eos_token_id", .uint32(UInt32(token))))
        }
        tensors = []
        for stored in checkpoint.tensorNames {
            let tensor = try checkpoint.tensor(stored)
            var values = try tensor.floats()
            if configuration.architecture == .llama, stored.contains("q_proj") || stored.contains("k_proj") {
                values = Self.turned(values, rows: tensor.shape[0], headSize: configuration.headSize)
            }
            let isMatrix = tensor.shape.count == 2
            tensors.append(
                GGUFTensor(
                    name: Self.name(stored), type: isMatrix ? type : .f32, shape: tensor.shape,
                    bytes: Self.bytes(values, isMatrix ? type : .f32)))
        }
        if case .llama3(let factor, let low, let high, let positions) = configuration.ropeScaling {
            let factors = (0..<configuration.headSize / 2).map { pair -> Float in
                let frequency = pow(configuration.ropeTheta, -Double(2 * pair) / Double(configuration.headSize))
                let wavelength = 2 * Double.pi / frequency
                if wavelength < Double(positions) / high { return 1 }
                if wavelength > Double(positions) / low { return Float(factor) }
                let smooth = (Double(positions) / wavelength - low) / (high - low)
                return Float(1 / ((1 - smooth) / factor + smooth))
            }
            tensors.append(GGUFTensor(name: "rope_freqs.weight", shape: [factors.count], floats: factors))
        }
    }

    /// A llama of two tokens' width, for tokenizers of this many tokens.
    init(vocabulary: Int) {
        func tensor(_ name: String, _ shape: [Int]) -> GGUFTensor {
            GGUFTensor(name: name, shape: shape, floats: [Float](repeating: 0.5, count: shape.reduce(1, *)))
        }
        metadata = [
            ("general.architecture", .text("llama")), ("llama.block_count", .uint32(1)), ("llama.context_length", .uint32(64)),
            ("llama.embedding_length", .uint32(2)), ("llama.feed_forward_length", .uint32(3)),
            ("llama.attention.head_count", .uint32(1)), ("llama.attention.layer_norm_rms_epsilon", .float32(1e-5)),
        ]
        tensors = [
            tensor("token_embd.weight", [vocabulary, 2]), tensor("output_norm.weight", [2]),
            tensor("blk.0.attn_norm.weight", [2]), tensor("blk.0.ffn_norm.weight", [2]), tensor("blk.0.attn_q.weight", [2, 2]),
            tensor("blk.0.attn_k.weight", [2, 2]), tensor("blk.0.attn_v.weight", [2, 2]),
            tensor("blk.0.attn_output.weight", [2, 2]), tensor("blk.0.ffn_gate.weight", [3, 2]),
            tensor("blk.0.ffn_up.weight", [3, 2]), tensor("blk.0.ffn_down.weight", [2, 3]),
        ]
    }

    private static func name(_ stored: String) -> String {
        var name = stored
        for (from, to) in [
            ("model.layers.", "blk."), ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"), ("mlp.", "ffn_"),
            ("_proj", ""),
            ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"), ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"), ("lm_head", "output"),
        ] { name = name.replacing(from, with: to) }
        return name
    }

    /// [heads, 2, headSize / 2, width] with its second and third dimension exchanged.
    static func turned(_ values: [Float], rows: Int, headSize: Int) -> [Float] {
        let width = values.count / rows
        var result: [Float] = []
        for head in 0..<rows / headSize {
            for pair in 0..<headSize / 2 {
                for half in 0..<2 {
                    let row = head * headSize + half * headSize / 2 + pair
                    result += values[row * width..<(row + 1) * width]
                }
            }
        }
        return result
    }

    private static func bytes(_ values: [Float], _ type: TensorType) -> [UInt8] {
        switch type {
        case .bf16: values.map(bfloat16Bits).withUnsafeBytes { Array($0) }
        case .f16: values.map { Float16($0).bitPattern }.withUnsafeBytes { Array($0) }
        default: values.withUnsafeBytes { Array($0) }
        }
    }
}

/// The message of the failure to load a model, or "accepted".
func refusal(_ path: String) -> String {
    do {
        _ = try CheckpointFolder(path: path)
        return "accepted"
    } catch {
        return error.message
    }
}
