/// PEFT files: golden adapters are read, what is written is read back, everything that is not plain LoRA is refused.

import Adapters
import Checkpoints
import Primitives
import TestSupport
import Testing

@Suite struct PEFTAdapterTests {
    let folder = TemporaryFolder()
    /// Not square, so that a transposed factor cannot pass.
    let maps = [
        LinearMap(name: "model.layers.0.self_attn.q_proj", outputs: 6, inputs: 4),
        LinearMap(name: "model.layers.0.mlp.down_proj", outputs: 4, inputs: 9),
        LinearMap(name: "model.layers.1.self_attn.q_proj", outputs: 6, inputs: 4),
        LinearMap(name: "model.layers.1.mlp.down_proj", outputs: 4, inputs: 9),
    ]

    func generator(_ purpose: String) -> SeededGenerator { SeededGenerator(seed: 5, purpose: purpose) }

    func random(_ count: Int, _ generator: inout SeededGenerator) -> [Float] { (0..<count).map { _ in generator.symmetric(1) } }

    /// scale B A, row-major.
    func product(_ entry: PEFTAdapter.Entry) -> [Double] {
        var result: [Double] = []
        for row in 0..<entry.outputs {
            for column in 0..<entry.inputs {
                var sum = 0.0
                for k in 0..<entry.rank {
                    sum += Double(entry.b[row * entry.rank + k]) * Double(entry.a[k * entry.inputs + column])
                }
                result.append(sum * Double(entry.scale))
            }
        }
        return result
    }

    func products(_ entries: [PEFTAdapter.Entry]) -> [String: [Double]] {
        Dictionary(uniqueKeysWithValues: entries.map { ($0.map, product($0)) })
    }

    func entry(_ map: LinearMap, rank: Int, scale: Float, _ generator: inout SeededGenerator) -> PEFTAdapter.Entry {
        .init(
            map: map.name, a: random(rank * map.inputs, &generator), b: random(map.outputs * rank, &generator), rank: rank,
            scale: scale, outputs: map.outputs, inputs: map.inputs)
    }

    func expectEqualProducts(_ left: [PEFTAdapter.Entry], _ right: [PEFTAdapter.Entry], _ tolerance: Double = 1e-6) {
        let (a, b) = (products(left), products(right))
        #expect(a.keys.sorted() == b.keys.sorted())
        for (map, values) in a { #expect(Closeness(values, b[map] ?? []).isWithin(norm: tolerance), "\(map)") }
    }

    @Test(arguments: ["llama-gqa", "llama3-rope-scaled-tied", "qwen2-bias", "qwen3-qknorm"])
    func aGoldenAdapterIsReadWithItsScaleAndFitsItsBase(_ name: String) throws {
        let path = Golden.path("models/" + name)
        let base = try CheckpointFolder(path: path).configuration.linearMaps
        let adapter = try PEFTAdapter(folder: path + "/adapter")
        let settings = try readJSON(path + "/case.json")["lora"]!
        let rank = settings["r"]!.int!
        let alpha = settings["alpha"]!.double!
        let scale = settings["use_rslora"]?.bool == true ? alpha / Double(rank).squareRoot() : alpha / Double(rank)
        let targets = try readJSON(path + "/case.json")["targets"]!.elements!.compactMap(\.text)
        #expect(adapter.entries.allSatisfy { $0.rank == rank && $0.scale == Float(scale) })
        let entries = try adapter.entries(for: base)
        #expect(entries.map(\.map) == base.filter { targets.contains($0.moduleName) }.map(\.name))
        let weights = try adapter.weights(maps: base)
        expectEqualProducts(exportedFactors(weights: weights), entries, 0)
        // Written and read again, it is the same.
        try adapter.write(folder: folder.file(name), maps: base)
        let again = try PEFTAdapter(folder: folder.file(name))
        #expect(try again.entries(for: base).map(\.a) == entries.map(\.a))
        #expect(try again.entries(for: base).map(\.b) == entries.map(\.b))
        expectEqualProducts(again.entries, entries)
        let modules = try readJSON(folder.file(name) + "/adapter_config.json")["target_modules"]!.elements!.compactMap(\.text)
        #expect(Set(modules) == Set(targets))
    }

    @Test func mixedRanksAndScalesArePaddedToOneRankWithTheSameProduct() throws {
        var generator = generator("mixed")
        let entries = [
            entry(maps[0], rank: 2, scale: 0.5, &generator), entry(maps[1], rank: 5, scale: 3, &generator),
            entry(maps[3], rank: 1, scale: 1, &generator),
        ]
        try PEFTAdapter(entries: entries, baseModel: "some/base").write(folder: folder.file("a"), maps: maps)
        let json = try readJSON(folder.file("a/adapter_config.json"))
        #expect(json["r"]?.int == 5 && json["lora_alpha"]?.int == 5)
        #expect(json["target_modules"]?.elements?.compactMap(\.text) == ["model.layers.0.self_attn.q_proj", "down_proj"])
        let again = try PEFTAdapter(folder: folder.file("a"))
        #expect(again.baseModel == "some/base")
        expectEqualProducts(again.entries, entries)
    }

    @Test func patternsSetRankAndAlphaOfSingleModules() throws {
        var generator = generator("patterns")
        let entries = [
            entry(maps[0], rank: 2, scale: 1, &generator), entry(maps[1], rank: 2, scale: 1, &generator),
            entry(maps[2], rank: 2, scale: 1, &generator),
        ]
        try PEFTAdapter(entries: entries).write(folder: folder.file("a"), maps: maps)
        let path = folder.file("a/adapter_config.json")
        var json = try readJSON(path)
        json.set("r", .integer(7))
        json.set("lora_alpha", .integer(8))
        json.set("rank_pattern", try JSONValue(parsing: #"{"q_proj":2,"layers\\.\\d+\\.mlp\\.down_proj":2}"#.utf8))
        json.set("alpha_pattern", try JSONValue(parsing: #"{"^model.layers.1.self_attn.q_proj":3.0,"proj":100}"#.utf8))
        try writeFile(path, Array(json.pretty.utf8))
        var scales = Dictionary(
            uniqueKeysWithValues: try PEFTAdapter(folder: folder.file("a")).entries.map { ($0.map, $0.scale) })
        #expect(scales == [maps[0].name: 4, maps[1].name: 4, maps[2].name: 1.5])
        json.set("use_rslora", .boolean(true))
        try writeFile(path, Array(json.pretty.utf8))
        scales = Dictionary(uniqueKeysWithValues: try PEFTAdapter(folder: folder.file("a")).entries.map { ($0.map, $0.scale) })
        #expect(scales[maps[0].name] == Float(8 / 2.0.squareRoot()))
        json.set("rank_pattern", try JSONValue(parsing: #"{"q_proj":3,"down_proj":2}"#.utf8))
        try writeFile(path, Array(json.pretty.utf8))
        let failure = #expect(throws: Failure.self) { try PEFTAdapter(folder: folder.file("a")) }
        #expect(failure?.message.contains("says rank 3") == true)
    }

    @Test(arguments: [
        ("use_dora", "true"), ("bias", "\"all\""), ("lora_bias", "true"), ("modules_to_save", "[\"lm_head\"]"),
        ("fan_in_fan_out", "true"), ("some_future_thing", "{\"a\":1}"), ("peft_type", "\"IA3\""),
        ("init_lora_weights", "\"pissa\""),
        ("task_type", "\"TOKEN_CLS\""), ("r", "0"), ("lora_alpha", "null"), ("loftq_config", "{\"bits\":4}"),
    ])
    func whatIsNotPlainLoRAIsRefusedByName(_ key: String, _ value: String) throws {
        var generator = generator("refused")
        try PEFTAdapter(entries: [entry(maps[0], rank: 2, scale: 1, &generator)]).write(folder: folder.file("a"), maps: maps)
        var json = try readJSON(folder.file("a/adapter_config.json"))
        json.set(key, try JSONValue(parsing: value.utf8))
        try writeFile(folder.file("a/adapter_config.json"), Array(json.pretty.utf8))
        let failure = #expect(throws: Failure.self) { try PEFTAdapter(folder: folder.file("a")) }
        #expect(failure?.message.contains("\(key) is ") == true, "\(failure?.message ?? "")")
    }

    @Test func badTensorsAreRefusedByName() throws {
        var generator = generator("bad")
        let good = entry(maps[0], rank: 2, scale: 1, &generator)
        try PEFTAdapter(entries: [good]).write(folder: folder.file("a"), maps: maps)
        let a = "base_model.model.\(maps[0].name).lora_A.weight"
        let b = "base_model.model.\(maps[0].name).lora_B.weight"
        func message(_ tensors: [(name: String, shape: [Int], values: [Float])]) throws -> String {
            try writeSafetensors(folder.file("a/adapter_model.safetensors"), floats: tensors)
            return #expect(throws: Failure.self) { try PEFTAdapter(folder: folder.file("a")) }?.message ?? ""
        }
        var poisoned = good.b
        poisoned[3] = .nan
        #expect(try message([(a, [2, 4], good.a), (b, [6, 2], poisoned)]).contains("tensor \(b) holds nan at position 3"))
        #expect(try message([(a, [2, 4], good.a)]).contains("one lora_A and one lora_B"))
        #expect(try message([(a, [4, 2], good.a), (b, [6, 2], good.b)]).contains("says rank 2"))
        #expect(try message([(a, [8], good.a), (b, [6, 2], good.b)]).contains("not rows and columns"))
        let extra = "base_model.model.\(maps[0].name).lora_magnitude_vector"
        #expect(try message([(a, [2, 4], good.a), (b, [6, 2], good.b), (extra, [6], [1, 1, 1, 1, 1, 1])]).contains(extra))
        #expect(throws: Failure.self) { try PEFTAdapter(folder: folder.file("nowhere")) }
    }

    @Test func anAdapterOfAnotherBaseIsRefused() throws {
        var generator = generator("other")
        let adapter = PEFTAdapter(entries: [entry(maps[0], rank: 2, scale: 1, &generator)], origin: "some/adapter")
        var failure = #expect(throws: Failure.self) { try adapter.entries(for: [maps[1]]) }
        #expect(failure?.message.contains("some/adapter belongs to another base model") == true)
        failure = #expect(throws: Failure.self) {
            try adapter.weights(maps: [LinearMap(name: maps[0].name, outputs: 4, inputs: 6)])
        }
        #expect(failure?.message.contains("as 6 x 4, but here it is 4 x 6") == true)
    }

    @Test func loraSBIsExportedAsOrdinaryFactors() throws {
        let specification = try AdapterSpecification(method: .loraSB, maps: maps, rank: 3, alpha: 1, rankStabilized: false)
        var generator = generator("sb")
        var weights = specification.initialWeights(&generator)
        weights.trained.values = random(weights.trained.values.count, &generator)
        weights.frozen!.values = random(weights.frozen!.values.count, &generator)
        let factors = exportedFactors(weights: weights)
        for (index, map) in maps.enumerated() {
            let r = weights.trained.tensor(index).map(Double.init)
            let b = weights.frozen!.tensor(2 * index).map(Double.init)
            let a = weights.frozen!.tensor(2 * index + 1).map(Double.init)
            var expected: [Double] = []
            for row in 0..<map.outputs {
                for column in 0..<map.inputs {
                    var sum = 0.0
                    for i in 0..<3 { for j in 0..<3 { sum += b[row * 3 + i] * r[i * 3 + j] * a[j * map.inputs + column] } }
                    expected.append(sum)
                }
            }
            #expect(factors[index].map == map.name)
            #expect(Closeness(product(factors[index]), expected).isWithin(norm: 1e-6))
        }
        try PEFTAdapter(entries: factors).write(folder: folder.file("sb"), maps: maps)
        #expect(try readJSON(folder.file("sb/adapter_config.json"))["lora_alpha"]?.int == 3)
    }

    @Test func ffaAndCorrectionsAreExportedWithTheirScalesOnce() throws {
        var generator = generator("ffa")
        let ffa = try AdapterSpecification(method: .ffaLoRA, maps: maps, rank: 2, alpha: 6, rankStabilized: false)
        var weights = ffa.initialWeights(&generator)
        weights.trained.values = random(weights.trained.values.count, &generator)
        var factors = exportedFactors(weights: weights)
        #expect(factors.map(\.map) == maps.map(\.name))
        #expect(factors.allSatisfy { $0.scale == 3 && $0.rank == 2 })
        #expect(factors[1].a == Array(weights.frozen!.tensor(1)) && factors[1].b == Array(weights.trained.tensor(1)))

        // A correction alone, then with a trained adapter beside it.
        let lora = try AdapterSpecification(method: .lora, maps: maps, rank: 2, alpha: 6, rankStabilized: false)
        weights = lora.initialWeights(&generator)
        var correction = AdapterState(zeros: AdapterSpecification.stackLayout(maps: maps, rank: 3))
        correction.values = random(correction.values.count, &generator)
        weights.correction = correction
        #expect(exportedFactors(weights: weights) == stackedFactors(correction))
        weights.trained.values = random(weights.trained.values.count, &generator)
        factors = exportedFactors(weights: weights)
        var alone = weights
        alone.correction = nil
        let parts = (products(stackedFactors(correction)), products(exportedFactors(weights: alone)))
        for factor in factors {
            #expect(factor.rank == 5)
            let expected = zip(parts.0[factor.map]!, parts.1[factor.map]!).map(+)
            #expect(Closeness(product(factor), expected).isWithin(norm: 1e-6))
        }
    }

    @Test func aCorrectionBeyondAMatrixsSmallerSideIsExportedWithinItWithTheSameProduct() throws {
        var generator = generator("wide corrections")
        let lora = try AdapterSpecification(method: .lora, maps: maps, rank: 2, alpha: 6, rankStabilized: false)
        var weights = lora.initialWeights(&generator)
        let layout = AdapterSpecification.stackLayout(maps: maps, ranks: maps.map { min($0.outputs, $0.inputs) + 5 })
        let correction = AdapterState(layout: layout, values: random(layout.parameterCount, &generator))
        weights.correction = correction
        let expected = products(stackedFactors(correction))
        for (map, factor) in zip(maps, exportedFactors(weights: weights)) {
            #expect(factor.map == map.name && factor.rank == min(map.outputs, map.inputs))
            #expect(Closeness(product(factor), expected[map.name]!).isWithin(norm: 1e-6))
        }
    }

    @Test func concatenatedStacksAddTheirProducts() throws {
        var generator = generator("stacks")
        let states = [1, 3, 2].map { rank in
            let layout = AdapterSpecification.stackLayout(maps: maps, rank: rank)
            return AdapterState(layout: layout, values: random(layout.parameterCount, &generator))
        }
        let parts = states.map { products(stackedFactors($0)) }
        for factor in stackedFactors(try #require(AdapterState.concatenated(stacks: states))) {
            #expect(factor.rank == 6)
            let expected = parts.dropFirst().reduce(parts[0][factor.map]!) { zip($0, $1[factor.map]!).map(+) }
            #expect(Closeness(product(factor), expected).isWithin(norm: 1e-6))
        }
        #expect(AdapterState.concatenated(stacks: [states[1]]) == states[1])
    }

    @Test func aRunStartsFromAnAdapterWithTheSameProduct() throws {
        var generator = generator("start")
        let stored = PEFTAdapter(entries: [
            entry(maps[0], rank: 2, scale: 3, &generator), entry(maps[3], rank: 1, scale: 3, &generator),
        ])
        for method in [AdapterMethod.lora, .ffaLoRA] {
            let specification = try AdapterSpecification(method: method, maps: maps, rank: 3, alpha: 6, rankStabilized: false)
            let start = specification.initialWeights(&generator)
            let weights = try stored.weights(specification, maps: maps, start: start)
            let changed = products(exportedFactors(weights: weights))
            for entry in stored.entries { #expect(Closeness(changed[entry.map]!, product(entry)).isWithin(norm: 1e-6)) }
            #expect(changed[maps[1].name]!.allSatisfy { $0 == 0 })
            // The rank that was missing starts with a random A, so that it can learn.
            let a = exportedFactors(weights: weights)[0].a
            #expect(a[8...].contains { $0 != 0 })
        }
        let small = try AdapterSpecification(method: .lora, maps: maps, rank: 1, alpha: 6, rankStabilized: false)
        var failure = #expect(throws: Failure.self) {
            try stored.weights(small, maps: maps, start: small.initialWeights(&generator))
        }
        #expect(failure?.message.contains("use a rank of at least 2") == true)
        let narrow = try AdapterSpecification(method: .lora, maps: [maps[0]], rank: 2, alpha: 6, rankStabilized: false)
        failure = #expect(throws: Failure.self) {
            try stored.weights(narrow, maps: maps, start: narrow.initialWeights(&generator))
        }
        #expect(failure?.message.contains(maps[3].name) == true)

        let stack = try stored.stack(targets: maps, maps: maps)
        let stackProducts = products(stackedFactors(stack))
        #expect(stack.layout.tensors.map(\.rank) == [Int](repeating: 2, count: 8))
        for entry in stored.entries { #expect(Closeness(stackProducts[entry.map]!, product(entry)).isWithin(norm: 1e-6)) }
        #expect(stackProducts[maps[2].name]!.allSatisfy { $0 == 0 })
    }
}
