/// Merged and quantized model folders: every tensor is what it should be, everything else is kept.

import Adapters
import Checkpoints
import LinearAlgebra
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

    @Test func theFoldersThatModulesNameAreCopied() throws {
        let path = folder.file("sentences")
        try TinyEncoder.write(isBare: true, to: path)
        let modules = #"[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}, {"path": "../elsewhere"}]"#
        try FileWriting.replace(path + "/modules.json", with: modules)
        #expect(makeFolders(path + "/1_Pooling") && makeFolders(folder.file("elsewhere")) && makeFolders(path + "/other"))
        try FileWriting.replace(path + "/1_Pooling/config.json", with: #"{"pooling_mode_mean_tokens": true}"#)
        let checkpoint = try CheckpointFolder(path: path)
        let map = checkpoint.configuration.linearMaps[0]
        let adapter = PEFTAdapter(entries: [
            .init(
                map: map.name, a: [Float](repeating: 0, count: map.inputs), b: [Float](repeating: 0, count: map.outputs), rank: 1,
                scale: 1, outputs: map.outputs, inputs: map.inputs)
        ])
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: adapter, output: folder.file("merged"))
        #expect(try readFile(folder.file("merged/1_Pooling/config.json")) == readFile(path + "/1_Pooling/config.json"))
        let names = try listFolder(folder.file("merged"))
        #expect(names.contains("modules.json") && !names.contains("other") && !names.contains("2_Normalize"))
        // A copy that is stopped leaves nothing.
        let failure = #expect(throws: Failure.self) {
            try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: adapter, output: folder.file("stopped")) { _ in false }
        }
        #expect(failure?.status == .interrupted)
        #expect(try listFolder(folder.file("")) == ["elsewhere", "merged", "sentences"])
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

    @Test func aBaseInBytesIsMergedIntoADenseOne() throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("quant/bnb-int8"))
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: PEFTAdapter(entries: []), output: folder.file("merged"))
        let merged = try CheckpointFolder(path: folder.file("merged"))
        #expect(merged.configuration.quantization == nil)
        #expect(merged.tensorNames.allSatisfy { $0.hasSuffix(".weight") })
        for map in checkpoint.configuration.linearMaps {
            let expected = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored).decoded()
            #expect(Closeness(try merged.tensor(map.name + ".weight").floats(), expected).isWithin(norm: 1e-3))
        }
    }

    @Test(arguments: [("bnb-bert-nf4", false), ("bnb-bert-nf4", true), ("bnb-roberta-int8", false)])
    func whatIsPackedBesideTheBlocksIsMergedIntoADenseModelToo(_ name: String, _ isBare: Bool) throws {
        let path = Golden.path("quant/" + name)
        makeFolders(folder.file("base"))
        var json = try readJSON(path + "/config.json")
        // A class without a head leaves the pooler unused.
        if isBare { json.set("architectures", .array([.string("BertModel")])) }
        try writeFile(folder.file("base/config.json"), Array(json.compact.utf8))
        try writeFile(folder.file("base/model.safetensors"), try readFile(path + "/model.safetensors"))
        let checkpoint = try CheckpointFolder(path: folder.file("base"))
        #expect(checkpoint.unusedPackedMaps.map(\.name) == (isBare ? ["bert.pooler.dense"] : []))
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: PEFTAdapter(entries: []), output: folder.file("merged"))
        let merged = try CheckpointFolder(path: folder.file("merged"))
        #expect(merged.configuration.quantization == nil && merged.headLabelCount == checkpoint.headLabelCount)
        #expect(merged.tensorNames.allSatisfy { $0.hasSuffix(".weight") || $0.hasSuffix(".bias") })
        let head = checkpoint.configuration.head(labelCount: try #require(checkpoint.headLabelCount))
        let pooler = checkpoint.configuration.pooler.map { [$0] } ?? []
        for map in checkpoint.configuration.linearMaps + pooler + head + checkpoint.unusedPackedMaps {
            let expected = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored).decoded()
            let tensor = try merged.tensor(map.name + ".weight")
            #expect(tensor.dtype == (name.hasSuffix("int8") ? .f16 : .bf16) && tensor.shape == [map.outputs, map.inputs])
            #expect(Closeness(try tensor.floats(), expected).isWithin(norm: 4e-3), "\(map.name)")
        }
    }

    @Test func aDenseWeightWithATraceOfPackingBesideItIsCopied() throws {
        let path = Golden.path("models/bert-classifier")
        let source = try SafetensorsFile(path: path + "/model.safetensors")
        var tensors = try source.names.map { name in
            let tensor = try #require(source.tensors[name])
            return (name: name, type: tensor.dtype, shape: tensor.shape, bytes: Array(tensor.bytes))
        }
        let classifier = try #require(source.tensors["classifier.weight"])
        let state = Array(#"{"shape": \#(classifier.shape)}"#.utf8)
        for map in ["classifier", "bert.pooler.dense", "bert.encoder.layer.0.attention.self.query", "nothing"] {
            for form in ["nf4", "fp4"] {
                tensors.append((map + ".weight.quant_state.bitsandbytes__" + form, .u8, [state.count], state))
            }
            tensors.append((map + ".SCB", .f32, [1], [0, 0, 0, 0]))
        }
        makeFolders(folder.file("base"))
        try writeSafetensors(folder.file("base/model.safetensors"), tensors: tensors)
        var json = try readJSON(path + "/config.json")
        json.set("quantization_config", .object([.init("load_in_8bit", .boolean(true))]))
        try writeFile(folder.file("base/config.json"), Array(json.compact.utf8))
        let checkpoint = try CheckpointFolder(path: folder.file("base"))
        #expect(checkpoint.unusedPackedMaps.isEmpty)
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: PEFTAdapter(entries: []), output: folder.file("merged"))
        let merged = try CheckpointFolder(path: folder.file("merged"))
        #expect(try merged.tensor("classifier.weight").bytes.elementsEqual(classifier.bytes))
    }

    @Test func labelsOfAMergedHeadAreTheAdaptersOrUnknown() throws {
        let path = Golden.path("models/bert-classifier")
        let adapter = try PEFTAdapter(folder: path + "/adapter")
        makeFolders(folder.file("base"))
        var json = try readJSON(path + "/config.json")
        let count = try #require(adapter.head.last?.outputs)
        let base = (0..<count).map { "base \($0)" }
        json.set("id2label", .object(base.enumerated().map { .init(String($0), .string($1)) }))
        try writeFile(folder.file("base/config.json"), Array(json.compact.utf8))
        try writeFile(folder.file("base/model.safetensors"), try readFile(path + "/model.safetensors"))
        let checkpoint = try CheckpointFolder(path: folder.file("base"))
        #expect(try checkpoint.ownLabels() == base)
        let own = (0..<count).map { "own \($0)" }
        for (labels, expected) in [(own, own), ([], (0..<count).map { "LABEL_\($0)" })] {
            let labelled = PEFTAdapter(entries: adapter.entries, head: adapter.head, labels: labels)
            let output = folder.file("merged-\(labels.count)")
            try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: labelled, output: output)
            #expect(try CheckpointFolder(path: output).configuration.encoder?.labels == expected)
        }
    }

    @Test func aSumThatTheStoredTypeCannotHoldIsRefused() throws {
        // Halves, which end at 65504.
        let checkpoint = try CheckpointFolder(path: Golden.path("quant/bnb-int8"))
        let map = checkpoint.configuration.linearMaps[5]
        var b = [Float](repeating: 0, count: map.outputs)
        b[3] = 1e6
        let adapter = PEFTAdapter(entries: [
            .init(
                map: map.name, a: [Float](repeating: 0.5, count: map.inputs), b: b, rank: 1, scale: 1, outputs: map.outputs,
                inputs: map.inputs)
        ])
        let failure = #expect(throws: Failure.self) {
            try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: adapter, output: folder.file("merged"))
        }
        #expect(failure?.message.contains("in row 3, which is no finite number as F16") == true, "\(String(describing: failure))")
        #expect(!fileExists(folder.file("merged")))
    }

    private func quantization(_ format: any FourBitFormat.Type, block: Int = 64, nested: Bool = true) -> ModelQuantization {
        var settings = ModelQuantization()
        settings.format = format
        settings.blockSize = block
        settings.nested = nested
        return settings
    }

    @Test(arguments: [("nf4", 64, true), ("nf4", 128, false), ("fp4", 64, false), ("fp4", 128, true)])
    func aQuantizedBaseIsReadBackAsItsCodes(_ name: String, _ block: Int, _ nested: Bool) throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        let format: any FourBitFormat.Type = name == "nf4" ? NF4.self : FP4.self
        var reports: [WritingProgress] = []
        var settings = quantization(format, block: block, nested: nested)
        settings.measuresError = true
        let outcome = try settings.write(checkpoint, to: folder.file("out")) {
            reports.append($0)
            return true
        }
        #expect(reports.last?.bytesDone == reports.last?.byteCount && reports.last?.tensorsDone == reports.count)
        let quantized = try CheckpointFolder(path: folder.file("out"))
        #expect(quantized.configuration.quantization?.type == name && quantized.weightFiles.count == 1)
        #expect(outcome.entries.isEmpty && outcome.errors.map(\.map) == checkpoint.configuration.linearMaps.map(\.name))
        for (map, error) in zip(checkpoint.configuration.linearMaps, outcome.errors) {
            #expect(quantized.isBitsAndBytes4Bit(map.name))
            let tensor = try checkpoint.tensor(map.name + ".weight")
            let codes = QuantizedMatrix(
                try format.encode(tensor, blockSize: block, nested: nested), rows: map.outputs, columns: map.inputs)
            let stored = try QuantizedMatrix.load(map: map, from: quantized, as: .stored)
            #expect(stored.formatName == name && stored.decoded() == codes.decoded())
            let closeness = Closeness(stored.decoded(), try tensor.floats()).relativeNorm
            #expect(closeness < 0.15 && abs(error.relativePlain - closeness) < 1e-6 && error.started == error.plain)
        }
        #expect(try quantized.tensor("model.norm.weight").bytes.elementsEqual(checkpoint.tensor("model.norm.weight").bytes))
        #expect(
            try readFile(folder.file("out/generation_config.json")) == readFile(checkpoint.path + "/generation_config.json"))
        #expect(throws: Failure.self) { try settings.write(quantized, to: folder.file("again")) }
    }

    @Test func aLargeBaseIsCutIntoFilesThatAnIndexNames() throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        var settings = quantization(NF4.self)
        _ = try settings.write(checkpoint, to: folder.file("whole"))
        settings.shardBytes = 60_000
        _ = try settings.write(checkpoint, to: folder.file("cut"))
        let whole = try CheckpointFolder(path: folder.file("whole"))
        let cut = try CheckpointFolder(path: folder.file("cut"))
        #expect(cut.weightFiles.count > 2 && cut.tensorNames == whole.tensorNames)
        #expect(cut.weightFiles[0].hasSuffix("model-00001-of-0000\(cut.weightFiles.count).safetensors"))
        for name in whole.tensorNames { #expect(try cut.tensor(name).bytes.elementsEqual(whole.tensor(name).bytes)) }
        #expect(try cut.baseDigest(cache: nil) == whole.baseDigest(cache: nil))
    }

    @Test(arguments: QuantizationStart.Order.allCases)
    func aStartsAdapterMakesUpForAPartOfTheError(_ order: QuantizationStart.Order) throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        let maps = checkpoint.configuration.linearMaps
        let targets = maps.filter { $0.moduleName != "o_proj" }
        var settings = quantization(NF4.self)
        settings.start = .init(order: order, maps: targets, rank: 4, scale: 2, steps: 3, seed: 1)
        let outcome = try settings.write(checkpoint, to: folder.file("base"))
        #expect(outcome.entries.map(\.map) == targets.map(\.name))
        try PEFTAdapter(entries: outcome.entries).write(folder: folder.file("adapter"), maps: maps)
        let base = try CheckpointFolder(path: folder.file("base"))
        let adapter = try PEFTAdapter(folder: folder.file("adapter"))
        let entries = Dictionary(uniqueKeysWithValues: adapter.entries.map { ($0.map, $0) })
        for (map, error) in zip(maps, outcome.errors) {
            let weights = try checkpoint.tensor(map.name + ".weight").floats()
            var held = try QuantizedMatrix.load(map: map, from: base, as: .stored).decoded()
            if let entry = entries[map.name] {
                let product = multiply(entry.b, entry.a, m: map.outputs, n: map.inputs, k: entry.rank)
                for index in held.indices { held[index] += entry.scale * product[index] }
            }
            let left = Closeness(held, weights).relativeNorm
            #expect(abs(left - error.relativeStarted) < 1e-5, "\(map.name)")
            #expect(targets.contains(map) ? error.started < error.plain : error.started == error.plain)
        }
    }

    @Test func anExistingModelIsNeverReplacedAndAStopKeepsNothing() throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        makeFolders(folder.file("there"))
        try writeFile(folder.file("there/config.json"), [1])
        let failure = #expect(throws: Failure.self) { try ModelQuantization().write(checkpoint, to: folder.file("there")) }
        #expect(failure?.status == .cannotCreate)
        let stopped = #expect(throws: Failure.self) {
            try ModelQuantization().write(checkpoint, to: folder.file("new")) { $0.tensorsDone < 3 }
        }
        #expect(stopped?.status == .interrupted)
        #expect(try listFolder(folder.path) == ["there"])
    }
}
