/// Classifiers' heads in PEFT files: saved modules or a file of their own, and what does not fit.

import Adapters
import Checkpoints
import Primitives
import TestSupport
import Testing

@Suite struct HeadTests {
    let folder = TemporaryFolder()
    let maps = (0..<2).flatMap { layer in
        [
            ("attention.self.query", 6, 6), ("attention.output.dense", 6, 6), ("intermediate.dense", 10, 6),
            ("output.dense", 6, 10),
        ].map { LinearMap(name: "bert.encoder.layer.\(layer)." + $0.0, outputs: $0.1, inputs: $0.2) }
    }
    let head = [
        PEFTAdapter.HeadEntry(map: "classifier.dense", weight: (0..<36).map { Float($0) / 7 }, bias: (0..<6).map { Float($0) }),
        PEFTAdapter.HeadEntry(map: "classifier.out_proj", weight: (0..<12).map { -Float($0) }, bias: [0.25, -3]),
    ]

    private func entry(_ map: LinearMap) -> PEFTAdapter.Entry {
        var generator = SeededGenerator(seed: 6, purpose: map.name)
        return .init(
            map: map.name, a: (0..<2 * map.inputs).map { _ in generator.symmetric(1) },
            b: (0..<map.outputs * 2).map { _ in generator.symmetric(1) }, rank: 2, scale: 0.5, outputs: map.outputs,
            inputs: map.inputs)
    }

    @Test(arguments: ["bert-classifier", "roberta-classifier"]) func `a golden adapter's head is read, and written as PEFT does`(
        name: String
    ) throws {
        let path = Golden.path("models/" + name)
        let checkpoint = try CheckpointFolder(path: path)
        let adapter = try PEFTAdapter(folder: path + "/adapter")
        let labels = try #require(try SafetensorsFile(path: path + "/expected.safetensors").tensors["base_logits"]).shape[1]
        let maps = checkpoint.configuration.linearMaps
        #expect(
            adapter.head.map { LinearMap(name: $0.map, outputs: $0.outputs, inputs: $0.inputs) }
                == checkpoint.configuration.head(labelCount: labels))
        #expect(adapter.headPlace == .savedModules && PEFTAdapter.HeadPlace(checkpoint.configuration) == .savedModules)
        let weights = try adapter.weights(maps: maps)
        let again = PEFTAdapter(entries: exportedFactors(weights: weights), head: exportedHead(weights: weights))
        try again.write(folder: folder.file(name), maps: maps)
        let read = try SafetensorsFile(path: folder.file(name + "/adapter_model.safetensors"))
        let golden = try SafetensorsFile(path: path + "/adapter/adapter_model.safetensors")
        #expect(read.names == golden.names)
        for name in golden.names {
            #expect(try read.tensors[name]?.floats() == golden.tensors[name]?.floats(), "\(name)")
            #expect(read.tensors[name]?.shape == golden.tensors[name]?.shape, "\(name)")
        }
        let json = try readJSON(folder.file(name + "/adapter_config.json"))
        #expect(json["task_type"]?.text == "SEQ_CLS")
        #expect(json["modules_to_save"]?.elements?.compactMap(\.text) == ["classifier"])
    }

    @Test func `a head of an encoder without a class for it lies beside the adapter`() throws {
        let entries = maps.map(entry)
        try PEFTAdapter(entries: entries, head: head, headPlace: .file).write(folder: folder.file("a"), maps: maps)
        let names = try SafetensorsFile(path: folder.file("a/adapter_model.safetensors")).names
        #expect(names.count == 16 && names.allSatisfy { $0.contains("lora_") })
        #expect(try SafetensorsFile(path: folder.file("a/head.safetensors")).names.count == 4)
        let json = try readJSON(folder.file("a/adapter_config.json"))
        #expect(json["task_type"]?.text == "FEATURE_EXTRACTION" && json["modules_to_save"]?.isNull == true)
        let read = try PEFTAdapter(folder: folder.file("a"))
        #expect(read.head == head && read.headPlace == .file)
        #expect(try read.entries(for: maps) == entries)
        // A later adapter without a head leaves no old one behind.
        try PEFTAdapter(entries: entries).write(folder: folder.file("a"), maps: maps)
        #expect(try PEFTAdapter(folder: folder.file("a")).head.isEmpty)
    }

    @Test func `modules whose short names mean several are named by as much of the path as tells them apart`() throws {
        func targets(_ chosen: [LinearMap]) throws -> [String]? {
            try PEFTAdapter(entries: chosen.map(entry)).write(folder: folder.file("names"), maps: maps)
            return try readJSON(folder.file("names/adapter_config.json"))["target_modules"]?.elements?.compactMap(\.text)
        }
        // `dense` would be the pooler's too, and `output.dense` attention's.
        #expect(
            try targets(maps) == [
                "query", "attention.output.dense", "intermediate.dense", "bert.encoder.layer.0.output.dense",
                "bert.encoder.layer.1.output.dense",
            ])
        #expect(
            try targets([maps[0], maps[2]]) == [
                "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.intermediate.dense",
            ])
    }

    @Test func `a run starts from an adapter's head, or from its own where the adapter has none`() throws {
        let linear = head.map { LinearMap(name: $0.map, outputs: $0.outputs, inputs: $0.inputs) }
        let specification = try AdapterSpecification(
            method: .lora, maps: maps, rank: 2, alpha: 1, rankStabilized: false, head: linear)
        var generator = SeededGenerator(seed: 1, purpose: "lora-a")
        let start = specification.initialWeights(&generator)
        let adapter = PEFTAdapter(entries: maps.map(entry), head: head)
        let weights = try adapter.weights(specification, maps: maps, start: start)
        #expect(exportedHead(weights: weights) == head)
        #expect(exportedFactors(weights: weights).map(\.map) == maps.map(\.name))
        let headless = try PEFTAdapter(entries: maps.map(entry)).weights(specification, maps: maps, start: start)
        #expect(exportedHead(weights: headless) == exportedHead(weights: start))
        for wrong in [
            [head[0], PEFTAdapter.HeadEntry(map: "classifier.out_proj", weight: [1, 2, 3, 4, 5, 6], bias: [1])],
            [PEFTAdapter.HeadEntry(map: "classifier", weight: [1, 2, 3, 4, 5, 6], bias: [1])],
        ] {
            let failure = #expect(throws: Failure.self) {
                try PEFTAdapter(entries: maps.map(entry), head: wrong).weights(specification, maps: maps, start: start)
            }
            #expect(failure?.message.contains("which is not this run's") == true, "\(failure?.message ?? "")")
        }
    }

    @Test func `labels are compared by their bytes with those of the head`() throws {
        func adapter(_ labels: [String], head: [PEFTAdapter.HeadEntry]) -> PEFTAdapter {
            PEFTAdapter(entries: maps.map(entry), head: head, labels: labels)
        }
        let known = adapter(["\u{e9}", "no"], head: head)
        try known.checkLabels(["\u{e9}", "no"])
        // Nobody named any: the adapter's own are taken.
        try known.checkLabels([])
        for planned in [["no", "\u{e9}"], ["e\u{301}", "no"], ["\u{e9}", "no", "yes"], ["no"]] {
            let failure = #expect(throws: Failure.self) { try known.checkLabels(planned) }
            #expect(failure?.message.contains("in another order") == true, "\(planned)")
        }
        let unknown = adapter([], head: head)
        try unknown.checkLabels(["b", "a"])
        let failure = #expect(throws: Failure.self) { try unknown.checkLabels([]) }
        #expect(failure?.message.contains("no labels.json") == true)
        try adapter([], head: []).checkLabels([])
    }

    @Test func `labels that are not distinct are refused with the file and the label`() throws {
        func write(_ labels: [String]) throws {
            try PEFTAdapter(entries: maps.map(entry), head: head, labels: labels).write(folder: folder.file("l"), maps: maps)
        }
        // Equal to a reader, and not to a computer.
        try write(["\u{e9}", "e\u{301}"])
        #expect(try PEFTAdapter(folder: folder.file("l")).labels.count == 2)
        try write(["yes", "yes"])
        let failure = #expect(throws: Failure.self) { try PEFTAdapter(folder: folder.file("l")) }
        #expect(failure?.message.contains("l/labels.json names \"yes\" twice") == true, "\(failure?.message ?? "")")
    }

    @Test func `damaged heads and other saved modules are refused by name`() throws {
        try PEFTAdapter(entries: [entry(maps[0])], head: head).write(folder: folder.file("b"), maps: maps)
        let file = try SafetensorsFile(path: folder.file("b/adapter_model.safetensors"))
        let good = try file.names.map { (name: $0, shape: file.tensors[$0]!.shape, values: try file.tensors[$0]!.floats()) }
        func message(
            _ change: ([(name: String, shape: [Int], values: [Float])]) -> [(name: String, shape: [Int], values: [Float])]
        )
            throws -> String
        {
            try writeSafetensors(folder.file("b/adapter_model.safetensors"), floats: change(good))
            return #expect(throws: Failure.self) { try PEFTAdapter(folder: folder.file("b")) }?.message ?? ""
        }
        let bias = "base_model.model.classifier.out_proj.bias"
        #expect(try message { $0.filter { $0.name != bias } }.contains("lacks the tensor \(bias)"))
        #expect(
            try message { $0.map { $0.name == bias ? ($0.name, [3], [1, 2, 3]) : $0 } }.contains("has 2 rows, but its bias 3"))
        #expect(
            try message { $0.map { $0.name == bias ? ($0.name, [2], [1, .nan]) : $0 } }.contains(
                "\(bias) holds nan at position 1"))
        #expect(
            try message { $0 + [(name: "base_model.model.classifier.scale", shape: [1], values: [1])] }
                .contains("classifier.scale is no weight or bias"))
        #expect(
            try message { $0 + [(name: "base_model.model.bert.pooler.dense.weight", shape: [1, 1], values: [1])] }
                .contains("pooler.dense.weight is not supported"))
    }
}
