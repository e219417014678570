/// Merged and quantized model folders: every tensor is what it should be, everything else is kept.

import Adapters
import Checkpoints
import Primitives
import Quantization
import TestSupport
import Testing
import Training

@Suite struct ModelFolderWritingTests {
    let folder = TemporaryFolder()

    @Test(arguments: ["llama-gqa", "llama3-rope-scaled-tied", "qwen2-bias", "qwen3-qknorm"])
    func aMergedBaseHoldsTheSumOfBaseAndAdapter(_ name: String) throws {
        let path = Golden.path("models/" + name)
        let checkpoint = try CheckpointFolder(path: path)
        let adapter = try PEFTAdapter(folder: path + "/adapter")
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: adapter, output: folder.file("merged"))
        let merged = try CheckpointFolder(path: folder.file("merged"))
        #expect(merged.configuration == checkpoint.configuration)
        #expect(merged.tensorNames == checkpoint.tensorNames)
        let entries = Dictionary(uniqueKeysWithValues: adapter.entries.map { ($0.map + ".weight", $0) })
        for name in checkpoint.tensorNames {
            let before = try checkpoint.tensor(name)
            let after = try merged.tensor(name)
            #expect(after.dtype == before.dtype && after.shape == before.shape)
            guard let entry = entries[name] else {
                #expect(after.bytes.elementsEqual(before.bytes))
                continue
            }
            var expected = try before.floats().map(Double.init)
            for row in 0..<entry.outputs {
                for column in 0..<entry.inputs {
                    var sum = 0.0
                    for k in 0..<entry.rank {
                        sum += Double(entry.b[row * entry.rank + k]) * Double(entry.a[k * entry.inputs + column])
                    }
                    expected[row * entry.inputs + column] += Double(entry.scale) * sum
                }
            }
            #expect(Closeness(try after.floats().map(Double.init), expected).isWithin(norm: 1e-6), "\(name)")
        }
    }

    @Test func aBaseInFourBitsIsMergedIntoADenseOne() throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("quant/bnb4bit-llama"))
        let map = checkpoint.configuration.linearMaps[5]
        let b = (0..<map.outputs).map { Float($0 % 7) / 8 }
        let adapter = PEFTAdapter(entries: [
            .init(
                map: map.name, a: [Float](repeating: 0.5, count: map.inputs), b: b, rank: 1, scale: 2, outputs: map.outputs,
                inputs: map.inputs)
        ])
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: adapter, output: folder.file("merged"))
        let merged = try CheckpointFolder(path: folder.file("merged"))
        #expect(merged.configuration.quantization == nil)
        for other in checkpoint.configuration.linearMaps {
            var expected = try QuantizedMatrix.load(map: other, from: checkpoint, as: .stored).decoded()
            if other == map {
                for index in expected.indices { expected[index] += b[index / map.inputs] }
            }
            #expect(Closeness(try merged.tensor(other.name + ".weight").floats(), expected).isWithin(norm: 1e-6))
        }
    }

    @Test(arguments: [true, false]) func aQuantizedBaseIsReadBackAsItsCodes(_ nested: Bool) throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        var reports: [WritingProgress] = []
        // The closure stays on this thread.
        nonisolated(unsafe) let note = { (progress: WritingProgress) in reports.append(progress) }
        try ModelFolderWriting.quantize(checkpoint: checkpoint, output: folder.file("nf4"), nested: nested) {
            note($0)
            return true
        }
        #expect(reports.last?.bytesDone == reports.last?.byteCount && reports.last?.tensorsDone == reports.count)
        let quantized = try CheckpointFolder(path: folder.file("nf4"))
        #expect(quantized.configuration.quantization?.type == "nf4")
        for map in checkpoint.configuration.linearMaps {
            #expect(quantized.isBitsAndBytes4Bit(map.name))
            let codes = try QuantizedMatrix.load(map: map, from: checkpoint, as: .nf4)
            let stored = try QuantizedMatrix.load(map: map, from: quantized, as: .stored)
            if nested { #expect(stored.decoded() == codes.decoded()) }
            #expect(Closeness(stored.decoded(), try checkpoint.tensor(map.name + ".weight").floats()).relativeNorm < 0.12)
        }
        #expect(try quantized.tensor("model.norm.weight").bytes.elementsEqual(checkpoint.tensor("model.norm.weight").bytes))
        #expect(try readFile(folder.file("nf4/generation_config.json")) == readFile(checkpoint.path + "/generation_config.json"))
        #expect(throws: Failure.self) { try ModelFolderWriting.quantize(checkpoint: quantized, output: folder.file("again")) }
    }

    @Test func anExistingModelIsNeverReplacedAndAStopKeepsNothing() throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        makeFolders(folder.file("there"))
        try writeFile(folder.file("there/config.json"), [1])
        let failure = #expect(throws: Failure.self) {
            try ModelFolderWriting.quantize(checkpoint: checkpoint, output: folder.file("there"))
        }
        #expect(failure?.status == .cannotCreate)
        let stopped = #expect(throws: Failure.self) {
            try ModelFolderWriting.quantize(checkpoint: checkpoint, output: folder.file("new")) { $0.tensorsDone < 3 }
        }
        #expect(stopped?.status == .interrupted)
        #expect(try listFolder(folder.path) == ["there"])
    }
}
