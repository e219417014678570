/// Fuzz target `gguf`: model files with their metadata, tensors and tokenizers.
///
/// The input is a file. What is accepted must hash, decode every matrix, and tokenize a text with its tokenizer, if that is
/// accepted too.

import Checkpoints
import LinearAlgebra
import Primitives
import Quantization
import Tokenizers

extension FuzzTarget {
    static let gguf = FuzzTarget(name: "gguf", seeds: GGUFFuzz.seeds, run: GGUFFuzz.run)
}

private enum GGUFFuzz {
    /// A model of one layer, with every type of blocks of 32.
    private static func model(_ name: String, _ tokenizer: [(key: String, value: GGUFEntry)], vocabulary: Int) -> [UInt8] {
        func tensor(_ name: String, _ shape: [Int], _ type: TensorType = .f32) -> GGUFTensor {
            let count = shape.reduce(1, *) / type.blockElements * type.size
            return GGUFTensor(name: name, type: type, shape: shape, bytes: [UInt8](repeating: 0x2C, count: count))
        }
        let metadata: [(key: String, value: GGUFEntry)] = [
            ("general.architecture", .text(name)), (name + ".block_count", .uint32(1)), (name + ".context_length", .uint32(16)),
            (name + ".embedding_length", .uint32(32)), (name + ".feed_forward_length", .uint32(1)),
            (name + ".attention.head_count", .uint32(1)), (name + ".attention.key_length", .uint32(2)),
            (name + ".attention.layer_norm_rms_epsilon", .float32(1e-5)), (name + ".rope.freq_base", .float32(1e4)),
        ]
        let layer = "blk.0."
        var tensors = [
            tensor("token_embd.weight", [vocabulary, 32], .q4_0), tensor("output_norm.weight", [32]),
            tensor(layer + "attn_norm.weight", [32]), tensor(layer + "ffn_norm.weight", [32]),
            tensor(layer + "attn_q.weight", [2, 32], .q8_0), tensor(layer + "attn_k.weight", [2, 32], .q5_0),
            tensor(layer + "attn_v.weight", [2, 32], .bf16), tensor(layer + "attn_output.weight", [32, 2]),
            tensor(layer + "ffn_gate.weight", [1, 32], .q4_1), tensor(layer + "ffn_up.weight", [1, 32], .q5_1),
            tensor(layer + "ffn_down.weight", [32, 1], .f16),
        ]
        if name == "qwen2" { for key in ["q", "k", "v"] { tensors.append(tensor(layer + "attn_\(key).bias", [2])) } }
        guard (try? writeGGUF(FuzzPlace.path, metadata: metadata + tokenizer, tensors: tensors)) != nil else { return [] }
        return (try? readFile(FuzzPlace.path)) ?? []
    }

    @Sendable static func seeds() -> [[UInt8]] {
        let byteLevel: [(key: String, value: GGUFEntry)] = [
            ("tokenizer.ggml.model", .text("gpt2")), ("tokenizer.ggml.pre", .text("qwen2")),
            ("tokenizer.ggml.tokens", .texts(["a", "b", "ab", "Ġ", "<e>"])), ("tokenizer.ggml.merges", .texts(["a b"])),
            ("tokenizer.ggml.token_type", .integers([1, 1, 1, 1, 3])), ("tokenizer.ggml.eos_token_id", .uint32(4)),
            ("tokenizer.ggml.add_eos_token", .boolean(true)),
        ]
        let sentencePiece: [(key: String, value: GGUFEntry)] = [
            ("tokenizer.ggml.model", .text("llama")),
            ("tokenizer.ggml.tokens", .texts(["<u>", "<s>", "▁", "a", "▁a", "<0x62>"])),
            ("tokenizer.ggml.scores", .floats([0, 0, -2, -3, -1, 0])),
            ("tokenizer.ggml.token_type", .integers([2, 3, 1, 1, 1, 6])),
            ("tokenizer.ggml.bos_token_id", .uint32(1)), ("tokenizer.ggml.unknown_token_id", .uint32(0)),
        ]
        return [model("qwen2", byteLevel, vocabulary: 5), model("llama", sentencePiece, vocabulary: 6)]
    }

    @Sendable static func run(_ input: [UInt8]) {
        guard FuzzPlace.write(input) else { return }
        do throws(Failure) {
            let checkpoint = try CheckpointFolder(path: FuzzPlace.path)
            _ = try checkpoint.baseDigest(cache: nil)
            _ = try? checkpoint.tensor("model.norm.weight").floats()
            for map in checkpoint.configuration.linearMaps {
                _ = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored).decoded()
            }
            _ = try checkpoint.companion("config.json")
            _ = try checkpoint.companion("tokenizer_config.json")
            guard let bytes = try checkpoint.companion("tokenizer.json") else { return }
            let tokenizer = try Tokenizer(bytes: bytes, path: "fuzz")
            _ = tokenizer.decode(tokenizer.encode("ab ba <e> é", addSpecialTokens: true), skipSpecialTokens: false)
        } catch {
            precondition(!error.message.isEmpty)
        }
    }
}
