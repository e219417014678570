/// The strategies against NumPy's float64 values for one layer and four clients.

import Adapters
import Aggregation
import Checkpoints
import FoundationEssentials
import Plan
import Primitives
import TestSupport
import Testing

@Suite struct GoldenAggregationTests {
    struct Settings: Decodable {
        struct Homogeneous: Decodable {
            let r: Int
            let scale: Double
        }
        struct Aggregation: Decodable {
            let out: Int
            let `in`: Int
            let ranks: [Int]
            let alphas: [Double]
            let sample_counts: [Int]
            let homogeneous: Homogeneous
        }
        let aggregation: Aggregation
    }

    let settings: Settings.Aggregation
    let file: SafetensorsFile
    let map: LinearMap

    init() throws {
        let json = try Data(contentsOf: URL(filePath: Golden.path("federated/federated.json")))
        settings = try JSONDecoder().decode(Settings.self, from: json).aggregation
        file = try SafetensorsFile(path: Golden.path("federated/aggregation.safetensors"))
        map = LinearMap(name: "layer", outputs: settings.out, inputs: settings.in)
    }

    func values(_ name: String) throws -> [Double] {
        try #require(file.tensors[name], "\(name) is not in \(file.path)").doubles()
    }

    func floats(_ name: String) throws -> [Float] { try values(name).map { Float($0) } }

    func weight(_ client: Int) -> Double { Weighting.samples.weight(examples: settings.sample_counts[client]) }

    /// The four clients' states under a method, and a state that they were given, so that updates are differences.
    func homogeneous(
        _ method: AdapterMethod, _ tensors: (Int) throws -> [Float]
    ) throws -> (
        clients: [Participant], given: AdapterState
    ) {
        let rank = settings.homogeneous.r
        let layout = try specification(
            method, rank: rank, alpha: settings.homogeneous.scale * Double(rank), maps: [map]
        ).trainedLayout
        var generator = SeededGenerator(seed: 1, purpose: "given")
        let clients = try settings.sample_counts.indices.map {
            Participant(name: "\($0)", weight: weight($0), state: AdapterState(layout: layout, values: try tensors($0)))
        }
        return (clients, randomState(layout, &generator, size: 0.1))
    }

    func expect(_ actual: [Double], _ name: String, within tolerance: Double = 1e-5) throws {
        let closeness = Closeness(actual, try values(name))
        #expect(closeness.isWithin(norm: tolerance) && closeness.isWithin(ofLargest: tolerance), "\(name): \(closeness)")
    }

    @Test func floraStacksToTheExactUpdate() throws {
        let clients = try settings.ranks.indices.map { k in
            let layout = try specification(rank: settings.ranks[k], alpha: settings.alphas[k], maps: [map]).trainedLayout
            let values = try floats("client.\(k).lora_A") + floats("client.\(k).lora_B")
            return Participant(name: "\(k)", weight: weight(k), state: AdapterState(layout: layout, values: values))
        }
        let stack = try combine(.flora, clients, maps: [map])
        #expect(stack.layout.tensors.allSatisfy { $0.rank == settings.ranks.reduce(0, +) })
        try expect(stackDelta(stack, map), "flora.stacked_product")
        try expect(stackDelta(stack, map), "exact.delta")
        // As a round of a federation, whatever the smaller side.
        var correction = GlobalCorrection(maps: [map])
        let truncation = try correction.append(stack, round: 1, cap: 128)
        #expect((truncation ?? 0) < 1e-6)
        try expect(stackDelta(try #require(correction.state), map), "exact.delta")
        // The truncated spectrum is the singular values of the exact update.
        let spectrum = try values("flexlora.singular_values")
        let cap = max(1, spectrum.count / 4)
        var truncated = GlobalCorrection(maps: [map])
        let appended = try truncated.append(stack, round: 1, cap: cap)
        let error = try #require(appended)
        let squares = spectrum.map { $0 * $0 }
        let expected = (squares.dropFirst(cap).reduce(0, +) / squares.reduce(0, +)).squareRoot()
        #expect(abs(error - expected) < 1e-5)
    }

    @Test func fedITAveragesBothFactors() throws {
        let (clients, given) = try homogeneous(.lora) {
            try floats("homogeneous.\($0).lora_A") + floats("homogeneous.\($0).lora_B")
        }
        for start in [given, AdapterState(zeros: given.layout)] {
            let combined = try combine(.fedit, clients, given: start, maps: [map])
            try expect(doubles(combined, map, .loraA), "fedit.lora_A")
            try expect(doubles(combined, map, .loraB), "fedit.lora_B")
            let missing = zip(exactDelta(clients, map), delta(combined, map)).map { $0 - $1 }
            try expect(missing, "fedex.residual")
        }
    }

    @Test func ffaLoRAAveragesB() throws {
        let (clients, given) = try homogeneous(.ffaLoRA) { try floats("homogeneous.\($0).lora_B") }
        for start in [given, AdapterState(zeros: given.layout)] {
            let combined = try combine(.ffaLoRA, clients, given: start, maps: [map])
            try expect(doubles(combined, map, .loraB), "ffa.lora_B")
            let dense = product(
                doubles(combined, map, .loraB), try values("ffa.frozen_A"), rows: map.outputs,
                inner: settings.homogeneous.r, columns: map.inputs
            ).map { Double(combined.layout.tensors[0].scale) * $0 }
            try expect(dense, "ffa.delta")
        }
    }

    @Test func fedSBAveragesR() throws {
        let (clients, given) = try homogeneous(.loraSB) { try floats("fedsb.\($0).R") }
        let rank = settings.homogeneous.r
        for start in [given, AdapterState(zeros: given.layout)] {
            let combined = try combine(.fedSB, clients, given: start, maps: [map])
            try expect(doubles(combined, map, .core), "fedsb.R")
            let right = product(
                doubles(combined, map, .core), try values("homogeneous.0.lora_A"), rows: rank, inner: rank,
                columns: map.inputs)
            let dense = product(
                try values("homogeneous.0.lora_B"), right, rows: map.outputs, inner: rank, columns: map.inputs)
            try expect(dense, "fedsb.delta")
        }
    }
}
