/// Small federations with planted values, and the sums that strategies are held against, in double precision.

import Adapters
import Aggregation
import Checkpoints
import Plan
import Primitives

/// One client of a test.
struct Participant {
    let name: String
    let weight: Double
    /// What it trained: A and B, or what its method trains.
    var state: AdapterState
}

/// Never square: a transposition must show.
let testMaps = [
    LinearMap(name: "model.layers.0.self_attn.q_proj", outputs: 13, inputs: 9),
    LinearMap(name: "model.layers.0.self_attn.k_proj", outputs: 8, inputs: 17),
    LinearMap(name: "model.layers.1.mlp.down_proj", outputs: 11, inputs: 10),
]

func specification(
    _ method: AdapterMethod = .lora, rank: Int, alpha: Double = 8, maps: [LinearMap] = testMaps
) throws -> AdapterSpecification {
    try AdapterSpecification(method: method, maps: maps, rank: rank, alpha: alpha, rankStabilized: false)
}

func randomState(_ layout: AdapterLayout, _ generator: inout SeededGenerator, size: Float = 1) -> AdapterState {
    AdapterState(layout: layout, values: (0..<layout.parameterCount).map { _ in generator.symmetric(size) })
}

/// Clients a, b, c, ... of these ranks and scales.
func participants(
    ranks: [Int], alphas: [Double], weights: [Double], maps: [LinearMap] = testMaps, seed: UInt64
) throws -> [Participant] {
    var generator = SeededGenerator(seed: seed, purpose: "aggregation test")
    return try ranks.indices.map { k in
        let layout = try specification(rank: ranks[k], alpha: alphas[k], maps: maps).trainedLayout
        let name = String(UnicodeScalar(UInt8(ascii: "a") + UInt8(k)))
        return Participant(name: name, weight: weights[k], state: randomState(layout, &generator))
    }
}

/// X Y for row-major X `[rows, inner]` and Y `[inner, columns]`.
func product(_ x: [Double], _ y: [Double], rows: Int, inner: Int, columns: Int) -> [Double] {
    var result = [Double](repeating: 0, count: rows * columns)
    for row in 0..<rows {
        for middle in 0..<inner {
            let factor = x[row * inner + middle]
            for column in 0..<columns { result[row * columns + column] += factor * y[middle * columns + column] }
        }
    }
    return result
}

func doubles(_ state: AdapterState, _ map: LinearMap, _ role: AdapterRole) -> [Double] {
    state.tensor(state.layout.index(map: map.name, role: role)!).map(Double.init)
}

/// scale x B A of one map, `[outputs, inputs]`, from LoRA factors or from a stack.
func delta(_ state: AdapterState, _ map: LinearMap, a: AdapterRole = .loraA, b: AdapterRole = .loraB) -> [Double] {
    let tensor = state.layout.tensors[state.layout.index(map: map.name, role: a)!]
    return product(
        doubles(state, map, b), doubles(state, map, a), rows: map.outputs, inner: tensor.rank, columns: map.inputs
    ).map { Double(tensor.scale) * $0 }
}

func stackDelta(_ state: AdapterState, _ map: LinearMap) -> [Double] { delta(state, map, a: .stackA, b: .stackB) }

/// sum_k p_k x_k.
func weightedSum(_ values: [[Double]], _ weights: [Double]) -> [Double] {
    let total = weights.reduce(0, +)
    var result = [Double](repeating: 0, count: values[0].count)
    for (value, weight) in zip(values, weights) {
        for index in result.indices { result[index] += weight / total * value[index] }
    }
    return result
}

/// sum_k p_k s_k B_k A_k: what every exact strategy must equal.
func exactDelta(_ clients: [Participant], _ map: LinearMap) -> [Double] {
    weightedSum(clients.map { delta($0.state, map) }, clients.map(\.weight))
}

/// One round of a strategy over factors that the clients trained from `given`.
func combine(
    _ strategy: StrategyName, _ clients: [Participant], given: AdapterState? = nil, maps: [LinearMap] = testMaps
) throws -> AdapterState {
    let sorted = clients.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
    var aggregator = strategy.rule.aggregator(
        AggregationStart(global: given, maps: maps, totalWeight: clients.reduce(0) { $0 + $1.weight }))
    for client in sorted {
        let contribution = given.map { client.state.update(since: $0) } ?? client.state
        try aggregator.add(client: client.name, weight: client.weight, state: contribution)
    }
    return try aggregator.finish()
}
