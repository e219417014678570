/// GGUF files: what is written is read, and nothing broken or unknown is accepted.

import Checkpoints
import Primitives
import TestSupport
import Testing

@Suite struct GGUFFileTests {
    let folder = TemporaryFolder()

    private func write(_ change: (inout SampleModel) -> Void) throws -> String {
        var model = SampleModel(vocabulary: 5)
        change(&model)
        let path = folder.file("changed.gguf")
        try model.write(path)
        return path
    }

    @Test func `metadata and tensors are read as they were written`() throws {
        let path = folder.file("a.gguf")
        try writeGGUF(
            path,
            metadata: [
                ("a", .uint32(7)), ("b", .float32(0.25)), ("c", .boolean(true)), ("d", .text("naïve")),
                ("e", .texts(["x", "", "▁y"])), ("f", .integers([-1, 2])), ("g", .floats([0.5, -3])),
            ],
            tensors: [
                GGUFTensor(name: "t", shape: [2, 3], floats: [1, 2, 3, 4, 5, 6]),
                GGUFTensor(name: "u", type: .f16, shape: [1], bytes: [0, 0x3C]),
            ])
        let file = try GGUFFile(path: path)
        #expect(file.version == 3)
        guard case .integer(7) = file.metadata["a"], case .float(0.25) = file.metadata["b"],
            case .boolean(true) = file.metadata["c"], case .text("naïve") = file.metadata["d"],
            case .array(let texts) = file.metadata["e"], case .array(let integers) = file.metadata["f"],
            case .array(let floats) = file.metadata["g"]
        else {
            Issue.record("metadata differ")
            return
        }
        #expect(try texts.texts() == ["x", "", "▁y"])
        #expect(try integers.integers() == [-1, 2])
        #expect(try floats.floats() == [0.5, -3])
        #expect(throws: Failure.self) { try texts.integers() }
        #expect(try file.tensors["t"]?.floats() == [1, 2, 3, 4, 5, 6])
        #expect(file.tensors["t"]?.shape == [2, 3])
        #expect(try file.tensors["u"]?.floats() == [1])
        #expect(file.tensors.values.allSatisfy { $0.range.lowerBound % 32 == 0 })
    }

    @Test func `every truncation of the header and of the tensors is an error that names the file`() throws {
        let path = try write { _ in }
        let bytes = try readFile(path)
        let last = try #require(try GGUFFile(path: path).tensors.values.map(\.range.upperBound).max())
        let cut = folder.file("cut.gguf")
        for length in 0..<last {
            try writeFile(cut, Array(bytes.prefix(length)))
            let failure = #expect(throws: Failure.self) { try GGUFFile(path: cut) }
            #expect(failure?.message.contains("cut.gguf") == true)
        }
    }

    @Test func `a flipped bit in the header is an error or another model, never a trap`() throws {
        let path = try write { _ in }
        let bytes = try readFile(path)
        let flipped = folder.file("flipped.gguf")
        for index in 0..<min(bytes.count, 1200) {
            var changed = bytes
            changed[index] ^= 1 << UInt8(index % 8)
            try writeFile(flipped, changed)
            if let checkpoint = try? CheckpointFolder(path: flipped) { _ = try? checkpoint.baseDigest(cache: nil) }
        }
    }

    @Test func `counts, lengths and dimensions that no file can hold are refused before memory is taken`() throws {
        let bytes = try readFile(try write { _ in })
        func message(_ change: (inout [UInt8]) -> Void) throws -> String {
            var changed = bytes
            change(&changed)
            let path = folder.file("broken.gguf")
            try writeFile(path, changed)
            return refusal(path)
        }
        let huge = [UInt8](repeating: 0xFF, count: 8)
        #expect(try message { $0.replaceSubrange(8..<16, with: huge) }.contains("tensors, more than"))
        #expect(try message { $0.replaceSubrange(16..<24, with: huge) }.contains("metadata entries, more than"))
        #expect(try message { $0.replaceSubrange(24..<32, with: huge) }.contains("bytes long, but only"))
        #expect(try message { $0[4] = 1 }.contains("version 1"))
        #expect(try message { $0.replaceSubrange(4..<8, with: [0, 0, 0, 3]) }.contains("big-endian"))
        #expect(try message { $0[0] = 0 }.contains("does not begin with GGUF"))
        let name = Array("token_embd.weight".utf8)
        let at = try #require(bytes.indices.first { bytes[$0...].starts(with: name) }) + name.count
        #expect(try message { $0[at] = 9 }.contains("9 dimensions"))
        #expect(try message { $0.replaceSubrange(at + 4..<at + 12, with: huge) }.contains("has the dimension"))
        #expect(try message { $0[at + 20] = 11 }.contains("Q3_K, which is not supported"))
        #expect(try message { $0[at + 20] = 12 }.contains("no whole blocks of Q4_K"))
        #expect(try message { $0[at + 24] = 1 }.contains("multiple of 32"))
        #expect(try message { $0[at + 27] = 127 }.contains("behind its"))
        #expect(try message { $0[at + 24] = 64 }.contains("overlaps"))
    }

    @Test func `a key or a tensor that stands there twice, and an alignment that is none, are refused`() throws {
        #expect(refusal(try write { $0.metadata.append($0.metadata[1]) }).contains("llama.block_count stands in it twice"))
        #expect(refusal(try write { $0.tensors.append($0.tensors[1]) }).contains("output_norm.weight stands in it twice"))
        #expect(refusal(try write { $0.set("general.alignment", .uint32(24)) }).contains("power of two"))
        #expect(refusal(try write { $0.set("general.alignment", .uint32(0)) }).contains("power of two"))
        #expect(refusal(try write { $0.set("general.alignment", .uint32(32)) }) == "accepted")
    }

    @Test func `what a model of another kind needs is refused by its name`() throws {
        #expect(refusal(try write { _ in }) == "accepted")
        let cases: [(String, GGUFEntry?, String)] = [
            ("general.architecture", .text("gemma2"), "general.architecture is gemma2"),
            ("general.type", .text("adapter"), "holds a GGUF adapter"), ("split.count", .uint32(3), "one of 3 parts"),
            ("llama.expert_count", .uint32(8), "llama.expert_count is 8"),
            ("llama.block_count", nil, "llama.block_count is missing"),
            ("llama.block_count", .text("2"), "llama.block_count is no size"),
            ("llama.attention.head_count", .integers([1, 2]), "layers that are all alike"),
            ("llama.attention.sliding_window", .uint32(16), "sliding_window is 16"),
            ("llama.rope.scaling.type", .text("yarn"), "rope.scaling.type is yarn"),
            ("llama.rope.dimension_count", .uint32(1), "rope.dimension_count is 1"),
            ("llama.logit_scale", .float32(2), "llama.logit_scale is 2.0"),
            ("llama.attention.layer_norm_rms_epsilon", nil, "layer_norm_rms_epsilon is missing"),
            ("llama.attention.value_length", .uint32(4), "value_length is 4"),
        ]
        for (key, value, part) in cases {
            let message = refusal(try write { $0.set(key, value) })
            #expect(message.contains(part), "\(key): \(message)")
        }
        let extra = GGUFTensor(name: "blk.0.attn_q_norm.weight", shape: [2], floats: [1, 1])
        #expect(refusal(try write { $0.tensors.append(extra) }).contains("blk.0.attn_q_norm.weight is none"))
        #expect(refusal(try write { $0.tensors.removeLast() }).contains("lacks the tensor blk.0.ffn_down.weight"))
        for name in ["attn_norm.bias", "ffn_norm.bias", "attn_output.bias", "ffn_down.bias"] {
            let stray = GGUFTensor(name: "blk.0." + name, shape: [2], floats: [1, 1])
            let message = refusal(try write { $0.tensors.append(stray) })
            #expect(message.contains("tensor blk.0.\(name) is none that this llama model computes with"), "\(message)")
        }
        let factors = GGUFTensor(name: "rope_freqs.weight", shape: [1], floats: [3])
        #expect(refusal(try write { $0.tensors.append(factors) }).contains("factors that are not Llama 3's"))
        #expect(refusal(try write { $0.set("llama.block_count", .uint32(2)) }).contains("lacks the tensor blk.1."))
        #expect(refusal(try write { $0.set("llama.embedding_length", .uint32(4)) }).contains("but the metadata say"))
    }
}
