/// Adapters for llama.cpp: names, alpha, and rows of B where a converted weight has them.

import Adapters
import Checkpoints
import Primitives
import TestSupport
import Testing

@Suite struct GGUFAdapterTests {
    let folder = TemporaryFolder()

    private func export(_ adapter: PEFTAdapter, _ configuration: ModelConfiguration) throws -> GGUFFile {
        let path = folder.file("adapter.gguf")
        try adapter.writeGGUF(path: path, configuration: configuration, name: "sample")
        return try GGUFFile(path: path)
    }

    private func alpha(_ file: GGUFFile) throws -> Float {
        guard case .float(let alpha) = file.metadata["adapter.lora.alpha"] else {
            throw Failure(.badData, "adapter.lora.alpha is missing")
        }
        return alpha
    }

    /// (alpha / r) B A as llama.cpp forms it.
    private func product(_ file: GGUFFile, _ weight: String) throws -> [Float] {
        let a = try #require(file.tensors[weight + ".lora_a"])
        let b = try #require(file.tensors[weight + ".lora_b"])
        #expect(a.shape[0] == b.shape[1])
        let scale = try alpha(file) / Float(b.shape[1])
        return multiplied(try b.floats(), try a.floats(), rows: b.shape[0], inner: a.shape[0], scale: scale)
    }

    private func multiplied(_ b: [Float], _ a: [Float], rows: Int, inner: Int, scale: Float) -> [Float] {
        let columns = a.count / inner
        return (0..<rows * columns).map { place in
            let (row, column) = (place / columns, place % columns)
            return scale * (0..<inner).reduce(Float(0)) { $0 + b[row * inner + $1] * a[$1 * columns + column] }
        }
    }

    @Test(arguments: ["llama-gqa", "qwen2-bias"]) func `what llama.cpp adds to a converted weight is our update of it`(
        name: String
    ) throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/" + name))
        let configuration = checkpoint.configuration
        let adapter = try PEFTAdapter(folder: Golden.path("models/\(name)/adapter"))
        let file = try export(adapter, configuration)
        guard case .text(let architecture) = file.metadata["general.architecture"],
            case .text("adapter") = file.metadata["general.type"],
            case .text("lora") = file.metadata["adapter.type"]
        else {
            Issue.record("metadata are missing")
            return
        }
        #expect(architecture == configuration.architecture.rawValue)
        #expect(file.tensors.count == 2 * adapter.entries.count)
        for entry in adapter.entries {
            var expected = multiplied(entry.b, entry.a, rows: entry.outputs, inner: entry.rank, scale: entry.scale)
            let parts = entry.map.split(separator: ".")
            let short = [
                "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
                "up_proj": "ffn_up", "down_proj": "ffn_down",
            ][String(parts[4])]!
            if name == "llama-gqa", short == "attn_q" || short == "attn_k" {
                expected = SampleModel.turned(expected, rows: entry.outputs, headSize: configuration.headSize)
            }
            let closeness = Closeness(try product(file, "blk.\(parts[2]).\(short).weight"), expected)
            #expect(closeness.isWithin(ofLargest: 1e-6), "\(entry.map): \(closeness)")
        }
    }

    @Test func `alpha stands for rank-stabilized and for mixed scales, too`() throws {
        let configuration = try CheckpointFolder(path: Golden.path("models/qwen2-bias")).configuration
        let map = try #require(configuration.linearMaps.first)
        let other = configuration.linearMaps[5]
        func entry(_ map: LinearMap, rank: Int, scale: Float) -> PEFTAdapter.Entry {
            PEFTAdapter.Entry(
                map: map.name, a: (0..<rank * map.inputs).map { Float($0 % 7) - 3 },
                b: (0..<map.outputs * rank).map { Float($0 % 5) - 2 },
                rank: rank, scale: scale, outputs: map.outputs, inputs: map.inputs)
        }
        let stabilized = try export(PEFTAdapter(entries: [entry(map, rank: 4, scale: 16 / 2)]), configuration)
        #expect(try alpha(stabilized) == 32)
        let entries = [entry(map, rank: 4, scale: 0.5), entry(other, rank: 2, scale: 3)]
        let mixed = try export(PEFTAdapter(entries: entries), configuration)
        for (entry, weight) in zip(entries, ["blk.0.attn_q.weight", "blk.0.ffn_up.weight"]) {
            let expected = multiplied(entry.b, entry.a, rows: entry.outputs, inner: entry.rank, scale: entry.scale)
            #expect(Closeness(try product(mixed, weight), expected).isWithin(ofLargest: 1e-6))
        }
    }

    @Test func `a scale of zero adds nothing`() throws {
        let configuration = try CheckpointFolder(path: Golden.path("models/qwen2-bias")).configuration
        let map = try #require(configuration.linearMaps.first)
        let entry = PEFTAdapter.Entry(
            map: map.name, a: [Float](repeating: 1, count: map.inputs), b: [Float](repeating: 1, count: map.outputs), rank: 1,
            scale: 0, outputs: map.outputs, inputs: map.inputs)
        let file = try export(PEFTAdapter(entries: [entry]), configuration)
        // llama.cpp takes an alpha of 0 as none.
        #expect(try alpha(file) == 1)
        #expect(try product(file, "blk.0.attn_q.weight").allSatisfy { $0 == 0 })
    }

    @Test func `only an adapter is written over`() throws {
        let configuration = try CheckpointFolder(path: Golden.path("models/qwen2-bias")).configuration
        let adapter = try PEFTAdapter(folder: Golden.path("models/qwen2-bias/adapter"))
        let path = folder.file("adapter.gguf")
        for _ in 0..<2 { _ = try export(adapter, configuration) }
        try SampleModel(vocabulary: 5).write(path)
        let model = try readFile(path)
        let failure = #expect(throws: Failure.self) { try export(adapter, configuration) }
        #expect(failure?.status == .cannotCreate && failure?.message.contains("is no GGUF adapter") == true)
        #expect(try readFile(path) == model)
        try writeFile(path, [1, 2, 3])
        #expect(throws: Failure.self) { try export(adapter, configuration) }
        #expect(try readFile(path) == [1, 2, 3])
    }

    @Test func `an adapter of another base, and an adapter file as a model, are refused`() throws {
        let configuration = try CheckpointFolder(path: Golden.path("models/qwen2-bias")).configuration
        let adapter = try PEFTAdapter(folder: Golden.path("models/llama-gqa/adapter"))
        #expect(throws: Failure.self) { try export(adapter, configuration) }
        _ = try export(try PEFTAdapter(folder: Golden.path("models/qwen2-bias/adapter")), configuration)
        #expect(refusal(folder.file("adapter.gguf")).contains("holds a GGUF adapter, not a model"))
    }
}
