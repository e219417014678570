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
    /// A model of one layer.
    ///
    /// - Parameters:
    ///   - blocks: of the queries, the keys and the embedding
    ///   - width: of the hidden states; whole blocks
    private static func model(
        _ name: String, _ tokenizer: [(key: String, value: GGUFEntry)], vocabulary: Int,
        blocks: [TensorType] = [.q8_0, .f16, .q4_0], width: Int = 32
    ) -> [UInt8] {
        func tensor(_ name: String, _ shape: [Int], _ type: TensorType = .f32) -> GGUFTensor {
            let count = shape.reduce(1, *) / type.blockElements * type.size
            return GGUFTensor(name: name, type: type, shape: shape, bytes: [UInt8](repeating: 0x2C, count: count))
        }
        let metadata: [(key: String, value: GGUFEntry)] = [
            ("general.architecture", .text(name)), (name + ".block_count", .uint32(1)), (name + ".context_length", .uint32(16)),
            (name + ".embedding_length", .uint32(UInt32(width))), (name + ".feed_forward_length", .uint32(1)),
            (name + ".attention.head_count", .uint32(1)), (name + ".attention.key_length", .uint32(2)),
            (name + ".attention.layer_norm_rms_epsilon", .float32(1e-5)), (name + ".rope.freq_base", .float32(1e4)),
        ]
        let layer = "blk.0."
        var tensors = [
            tensor("token_embd.weight", [vocabulary, width], blocks[2]), tensor("output_norm.weight", [width], .bf16),
            tensor(layer + "attn_norm.weight", [width], .bf16), tensor(layer + "ffn_norm.weight", [width], .bf16),
            tensor(layer + "attn_q.weight", [2, width], blocks[0]), tensor(layer + "attn_k.weight", [2, width], blocks[1]),
            tensor(layer + "attn_v.weight", [2, width], .bf16), tensor(layer + "attn_output.weight", [width, 2], .bf16),
            tensor(layer + "ffn_gate.weight", [1, width], blocks[0]), tensor(layer + "ffn_up.weight", [1, width], blocks[2]),
            tensor(layer + "ffn_down.weight", [width, 1], .f16),
        ]
        if name == "qwen2" { for key in ["q", "k", "v"] { tensors.append(tensor(layer + "attn_\(key).bias", [2])) } }
        guard (try? writeGGUF(FuzzPlace.path, metadata: metadata + tokenizer, tensors: tensors)) != nil,
            let bytes = try? readFile(FuzzPlace.path)
        else { fatalError(FuzzPlace.unwritable) }
        return bytes
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
        let tokens = ["<u>", "<s>", "▁", "a", "b", "ab", "aba", "abab", "▁abab", "é", "<0x62>", "<e>"]
        let merged: [(key: String, value: GGUFEntry)] = [
            ("tokenizer.ggml.model", .text("llama")), ("tokenizer.ggml.tokens", .texts(tokens)),
            ("tokenizer.ggml.scores", .floats(tokens.indices.map { -Float($0) })),
            ("tokenizer.ggml.token_type", .integers([2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 6, 4])),
            ("tokenizer.ggml.bos_token_id", .uint32(1)), ("tokenizer.ggml.eos_token_id", .uint32(11)),
            ("tokenizer.ggml.add_space_prefix", .boolean(false)), ("tokenizer.ggml.chat_template", .text("{{ m }}")),
        ]
        let llama3: [(key: String, value: GGUFEntry)] = [
            ("tokenizer.ggml.model", .text("gpt2")), ("tokenizer.ggml.pre", .text("llama-bpe")),
            ("tokenizer.ggml.tokens", .texts(["a", "b", "ab", "Ġ", "<b>"])), ("tokenizer.ggml.merges", .texts(["a b"])),
            ("tokenizer.ggml.token_type", .integers([1, 1, 1, 1, 3])), ("tokenizer.ggml.bos_token_id", .uint32(4)),
        ]
        return [
            model("qwen2", byteLevel, vocabulary: 5), model("llama", sentencePiece, vocabulary: 6, blocks: [.q5_0, .f16, .q4_1]),
            model("llama", merged, vocabulary: tokens.count, blocks: [.q4_0, .q8_0, .q5_1]),
            model("llama", llama3, vocabulary: 5, blocks: [.q4K, .q6K, .q8_0], width: 256),
            model("qwen2", [], vocabulary: 2, blocks: [.q6K, .f32, .q5K], width: 256),
        ]
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        guard FuzzPlace.write(input) else { return FuzzPlace.unwritable }
        do throws(Failure) {
            let checkpoint = try CheckpointFolder(path: FuzzPlace.path)
            _ = try checkpoint.baseDigest(cache: nil)
            _ = try? checkpoint.tensor("model.norm.weight").floats()
            for map in checkpoint.configuration.linearMaps {
                _ = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored).decoded()
            }
            _ = try checkpoint.companion("config.json")
            _ = try checkpoint.companion("tokenizer_config.json")
            guard let bytes = try checkpoint.companion("tokenizer.json") else { return nil }
            let tokenizer = try Tokenizer(bytes: bytes, path: "fuzz")
            _ = tokenizer.decode(tokenizer.encode("ab ba <e> é", addSpecialTokens: true), skipSpecialTokens: false)
        } catch {
            precondition(!error.message.isEmpty)
            return error.message
        }
        return nil
    }
}
