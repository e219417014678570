/// FLoRA's stacking: one low-rank correction whose product is exactly sum_k p_k s_k B_k A_k (Wang et al. 2024,
/// arXiv:2409.05976, section 3).
///
/// stackA_k = p_k s_k A_k, under one another; stackB_k = B_k, beside one another. Weight p_k = w_k / sum(w) and scale
/// s_k are folded in exactly once, into A, in double precision with one rounding: folding them into both factors would
/// give p_k squared. Ranks and scales may differ between clients; the ranks of the result are their sums. A head behind the
/// factors is averaged: sum_k p_k H_k.

import Adapters
import Checkpoints
import Primitives

public struct StackedFactors: Aggregator {
    private let maps: [LinearMap]
    private let head: [AdapterTensor]
    private let totalWeight: Double
    /// For each map: rows of stackA, and of stackB transposed, both `[rank so far, side]`, row-major.
    private var stackA: [[Float]]
    private var stackBTransposed: [[Float]]
    /// Weighted sums of the heads' values.
    private var headSums: [Double]
    private var admission = Admission()

    /// - Parameters:
    ///   - maps: the adapted linear maps, in model order
    ///   - head: the layout of the head behind the factors, if there is one
    ///   - totalWeight: the sum of the weights of all clients that will be added
    public init(maps: [LinearMap], head: AdapterLayout? = nil, totalWeight: Double) {
        self.maps = maps
        self.head = head?.tensors ?? []
        self.totalWeight = totalWeight
        headSums = [Double](repeating: 0, count: head?.parameterCount ?? 0)
        stackA = [[Float]](repeating: [], count: maps.count)
        stackBTransposed = stackA
    }

    /// - Parameter state: A and B of each map in LoRA's layout, of any one rank and scale for each map; then the head.
    public mutating func add(client: String, weight: Double, state: AdapterState) throws(AggregationError) {
        try admission.check(client: client, weight: weight)
        guard totalWeight.isFinite, totalWeight > 0 else { throw .nothingToCombine }
        try Admission.checkLayout(
            state.layout, expected: try expectedLayout(state.layout, client: client), client: client)
        try Admission.checkFinite(state, client: client)
        admission.admit(client: client, weight: weight)
        guard weight > 0 else { return }
        for (index, value) in state.values.suffix(headSums.count).enumerated() { headSums[index] += weight * Double(value) }
        for (index, map) in maps.enumerated() {
            let a = state.layout.tensors[2 * index]
            let factor = weight / totalWeight * Double(a.scale)
            stackA[index] += state.tensor(2 * index).lazy.map { Float(factor * Double($0)) }
            let start = state.layout.offsets[2 * index + 1]
            for column in 0..<a.rank {
                stackBTransposed[index] += (0..<map.outputs).lazy.map { state.values[start + $0 * a.rank + column] }
            }
        }
    }

    /// The stack, with the sum of the clients' ranks for each map, even where that is above the matrix's smaller side; then the
    /// head.
    public mutating func finish() throws(AggregationError) -> AdapterState {
        guard admission.totalWeight > 0 else { throw .nothingToCombine }
        // The caller sums the same numbers, perhaps in another order.
        guard abs(admission.totalWeight - totalWeight) <= 1e-9 * totalWeight else {
            throw .otherTotalWeight(expected: totalWeight, found: admission.totalWeight)
        }
        let ranks = zip(maps, stackA).map { map, a in a.count / map.inputs }
        let layout = AdapterLayout(AdapterSpecification.stackLayout(maps: maps, ranks: ranks).tensors + head)
        var values: [Float] = []
        values.reserveCapacity(layout.parameterCount)
        for (index, map) in maps.enumerated() {
            values += stackA[index]
            stackA[index] = []
            for row in 0..<map.outputs {
                for column in 0..<ranks[index] { values.append(stackBTransposed[index][column * map.outputs + row]) }
            }
            stackBTransposed[index] = []
        }
        values += headSums.lazy.map { Float($0 / admission.totalWeight) }
        if let position = values.firstIndex(where: { !$0.isFinite }) {
            throw Admission.notFinite(position, in: layout, client: "")
        }
        return AdapterState(layout: layout, values: values)
    }

    /// LoRA's layout for these maps, with the ranks and scales that the contribution states for its A.
    private func expectedLayout(_ found: AdapterLayout, client: String) throws(AggregationError) -> AdapterLayout {
        var tensors: [AdapterTensor] = []
        for map in maps {
            guard let index = found.index(map: map.name, role: .loraA) else {
                throw .missingTensor(client: client, map: map.name, role: .loraA)
            }
            let rank = found.tensors[index].rank
            let scale = found.tensors[index].scale
            guard rank >= 1, rank <= min(map.outputs, map.inputs) else {
                throw .wrongRank(
                    client: client, map: map.name, role: .loraA, expected: min(map.outputs, map.inputs), found: rank)
            }
            guard scale.isFinite else {
                throw .wrongScale(client: client, map: map.name, role: .loraA, expected: 1, found: scale)
            }
            tensors.append(
                AdapterTensor(map: map.name, role: .loraA, rows: rank, columns: map.inputs, rank: rank, scale: scale))
            tensors.append(
                AdapterTensor(map: map.name, role: .loraB, rows: map.outputs, columns: rank, rank: rank, scale: scale))
        }
        return AdapterLayout(tensors + head)
    }
}
